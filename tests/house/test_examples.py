"""The examples do what the README says of them."""

from __future__ import annotations

import atexit
import csv
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

for needed in ("sklearn", "matplotlib"):
    pytest.importorskip(needed, reason="the examples need scikit-learn and matplotlib")


@pytest.fixture(scope="module")
def digits_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Where examples/digits.py wrote, what it said, and what it said when it was run again."""
    root = tmp_path_factory.mktemp("digits")
    return root / "version_0", _run("digits.py", "--root", str(root)), _run("digits.py", "--root", str(root))


def test_digits_reaches_97_percent_and_says_where_things_are(digits_twice: tuple[Path, str, str]) -> None:
    run_dir, said, _ = digits_twice
    assert _test_accuracy(said) >= 97.0
    for path in re.findall(r"^(?:best weights|curves) +(\S+)$", said, re.MULTILINE):
        assert Path(path).is_file(), path
    assert f"tensorboard --logdir {run_dir.parent}" in said


def test_digits_leaves_a_picture_of_its_curves(digits_twice: tuple[Path, str, str]) -> None:
    picture = (digits_twice[0] / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_digits_keeps_the_three_best_and_the_latest(digits_twice: tuple[Path, str, str]) -> None:
    run_dir = digits_twice[0]
    pins = json.loads((run_dir / "checkpoints/pins.json").read_text())
    pins = pins.get("pins", pins)
    assert len(pins["best_val_acc"]) == 3
    kept = {path.name for path in (run_dir / "checkpoints").glob("step-*")}
    assert kept == {*pins["best_val_acc"], *pins["latest"]}
    weights = paddle.load(str(run_dir / "best.pdparams"))
    assert "net.0.weight" in weights


def test_digits_stops_early_and_says_so_when_run_again(digits_twice: tuple[Path, str, str]) -> None:
    run_dir, first, again = digits_twice
    assert "early stopping: val_acc has not improved in 10 evaluations" in first
    assert "already stopped" in again
    assert not re.search(r"^Epoch \d+", again, re.MULTILINE)
    assert _test_accuracy(first) == _test_accuracy(again)
    assert [path.name for path in run_dir.parent.iterdir()] == ["version_0"]


@pytest.mark.soak
def test_digits_killed_in_its_third_epoch_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _run("digits.py", "--root", str(whole), "--max-epochs", "5")
    _kill_in_epoch(3, "digits.py", "--root", str(killed), "--max-epochs", "5")
    said = _run("digits.py", "--root", str(killed), "--max-epochs", "5")
    assert "going on with" in said
    assert re.findall(r"^Epoch (\d)/5", said, re.MULTILINE)[-1] == "5"
    for name in ("latest.pdparams", "latest.pdopt"):
        assert (whole / "version_0" / name).read_bytes() == (killed / "version_0" / name).read_bytes()
    assert _csv_steps(whole) == _csv_steps(killed)


@pytest.mark.soak
def test_resume_shows_that_a_killed_run_ends_as_an_undisturbed_one() -> None:
    said = _run("resume.py")
    assert said.endswith("The resumed run is the same run.\n")
    fingerprints = re.findall(r"[0-9a-f]{64}", said)
    assert len(fingerprints) == 2 and fingerprints[0] == fingerprints[1]


def test_the_fingerprint_of_resume_sees_a_changed_bit(tmp_path: Path) -> None:
    resume = _load("resume.py")
    weights = {"w": paddle.ones([3])}
    paddle.save(weights, str(tmp_path / "latest.pdparams"))
    paddle.save({"m": paddle.zeros([3])}, str(tmp_path / "latest.pdopt"))
    before = resume.fingerprint(tmp_path)
    assert before == resume.fingerprint(tmp_path)
    weights["w"][1] = 1.0000001
    paddle.save(weights, str(tmp_path / "latest.pdparams"))
    assert before != resume.fingerprint(tmp_path)


def test_a_custom_callback_counts_on_across_runs(tmp_path: Path) -> None:
    first = _run("custom_callback.py", "--root", str(tmp_path), "--max-epochs", "1")
    second = _run("custom_callback.py", "--root", str(tmp_path), "--max-epochs", "2")
    assert "Epoch 1/" not in second
    one, two = (int(re.findall(r"^ *(\d+) x  \d taken for \d$", said, re.MULTILINE)[0]) for said in (first, second))
    assert one <= two
    assert (tmp_path / "version_0").is_dir() and not (tmp_path / "version_1").exists()


@pytest.mark.parametrize("labels", [[8], [8, 1]], ids=["[N]", "[N, 1]"])
@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_s_example_trains_goes_on_predicts_and_is_exported(
    name: str, labels: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 29
    monkeypatch.chdir(tmp_path)
    x, y = paddle.rand([8, 64]), paddle.arange(8).reshape(labels)
    loader = paddle.io.DataLoader(paddle.io.TensorDataset([x, y]), batch_size=4)
    for epochs in (1, 2):
        names = {"train_loader": loader, "val_loader": loader}
        script = tmp_path / "train.py"
        script.write_text(code.replace("max_epochs=100", f"max_epochs={epochs}"))
        exec(compile(script.read_text(), str(script), "exec"), names)  # paddle.jit reads the source of forward
        assert names["trainer"].current_epoch == epochs
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    assert "net.0.weight" in paddle.load("runs/version_0/best.pdparams")
    trainer, module = names["trainer"], names["trainer"].model
    assert [list(scores.shape) for scores in trainer.predict(dataloaders=loader)] == [[4, 10]] * 2
    assert trainer.validate(dataloaders=loader)[0]["val_acc"] in [hits / 8 for hits in range(9)]
    module.eval()
    paddle.jit.save(module, "exported/net", input_spec=[paddle.static.InputSpec([None, 64], "float32")])
    assert np.allclose(paddle.jit.load("exported/net")(x).numpy(), module(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_in_one_sentence_what_it_shows(path: Path) -> None:
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith('"""') and first_line.endswith('."""')


def _command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", str(ROOT / "examples" / script), *arguments]


def _run(script: str, *arguments: str) -> str:
    ran = subprocess.run(_command(script, *arguments), capture_output=True, text=True, env=_environment(), timeout=250)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ccache" not in ran.stderr
    return ran.stdout


def _kill_in_epoch(epoch: int, script: str, *arguments: str) -> None:
    """SIGKILL while the epoch (from 1) runs: its predecessor has been reported, itself not yet."""
    process = subprocess.Popen(
        _command(script, *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment()
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"Epoch {epoch - 1}/"):
            break
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@functools.cache
def _environment() -> dict[str, str]:
    """An environment in which every Python process finds the package, installed or not."""
    folder = tempfile.mkdtemp(prefix="paddlelite-sitecustomize-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "sitecustomize.py").write_text(
        f"import importlib.util, sys; sys.path.append({str(ROOT)!r})\n"
        "if importlib.util.find_spec('paddlelite_trainer.callbacks') is None:\n"
        "    import zlib  # before Paddle 2.6, see docs/paddle.md\n"
        "    import conftest\n"
    )
    return {**os.environ, "PYTHONPATH": folder, "COLUMNS": "120"}


def _test_accuracy(said: str) -> float:
    (percent,) = re.findall(r"^test accuracy +([\d.]+)%$", said, re.MULTILINE)
    return float(percent)


def _csv_steps(root: Path) -> list[str]:
    with open(root / "version_0/metrics.csv", newline="") as file:
        return [json.dumps(row) for row in csv.DictReader(file)]


def _load(script: str) -> object:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "examples" / script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
