"""Threads of CPU operators: a stated default, what overrides it, and what a resumed run does."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.machine.device import available_cores, use_cpu_threads

CALLS = {
    "large": "use_cpu_threads('auto')",
    "of 1000": "use_cpu_threads('auto', parameters=1000)",
    "of 10**7": "use_cpu_threads('auto', parameters=10**7)",
}


@functools.cache
def chosen(*environment: tuple[str, str]) -> dict[str, str]:
    """{call: the number} in a process that is started with this environment."""
    command = "import paddle; from paddlelite_trainer.machine.device import *\n"
    command += "".join(f"print('CHOSEN', {name!r}, {code}, sep=':')\n" for name, code in CALLS.items())
    path = str(Path(__file__).parents[2])
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, **dict(environment)},
    )
    lines = [line.split(":") for line in out.stdout.splitlines() if line.startswith("CHOSEN:")]
    return {name: number for _, name, number in lines}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, str(available_cores())),
        ({"OMP_NUM_THREADS": "1"}, "1"),
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"PADDLELITE_CPU_THREADS": "5", "OMP_NUM_THREADS": "1"}, "5"),
        ({"PADDLE_LOCAL_SIZE": "64"}, "1"),
    ],
)
def test_the_default_is_the_cores_and_the_environment_overrides_it(environment: dict[str, str], expected: str) -> None:
    assert chosen(*environment.items())["large"] == expected


def test_a_small_model_gets_one_thread() -> None:
    assert chosen()["of 1000"] == "1"
    assert chosen()["of 10**7"] == str(available_cores())


def test_a_checkpoints_number_wins_over_the_default_and_a_given_one_over_both() -> None:
    assert use_cpu_threads("auto", saved=2) == 2
    assert use_cpu_threads(1, saved=2) == 1


def test_a_wrong_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLELITE_CPU_THREADS", "many")
    with pytest.raises(ConfigurationError, match="PADDLELITE_CPU_THREADS must be a number >= 1, got 'many'"):
        use_cpu_threads("auto")


def test_a_resumed_run_goes_on_with_the_threads_it_had_and_tells_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(epochs: int, **settings: int) -> int | None:
        trainer = quiet_trainer(
            max_epochs=epochs,
            enable_checkpointing=True,
            callbacks=[ModelCheckpoint()],
            default_root_dir=tmp_path,
            **settings,
        )
        trainer.fit(Classifier(), make_batches(1), ckpt_path="last")
        return trainer.cpu_threads_in_use

    assert fit(1, cpu_threads=2) == 2
    assert fit(2) == 2
    assert "threads" not in capsys.readouterr().out
    assert fit(3, cpu_threads=1) == 1
    assert "threads of a CPU operator: saved 2, now 1" in capsys.readouterr().out
