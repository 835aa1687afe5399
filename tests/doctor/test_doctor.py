"""`paddlelite doctor`: whole on the CPU and on fake accelerators; a crash is a finding, and nothing private is told."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_gpu
import paddle
import pytest

from paddlelite_trainer import Callback
from paddlelite_trainer.doctor import Finding, build, training
from paddlelite_trainer.machine.precision import PRECISIONS

IS_2 = paddle.__version__.startswith("2.")
SECRET = "hunter2-not-to-be-told"
MEASURED = {"disk", "shared memory", "what a step costs", "what a loader costs", "batches copied ahead"}
"""What may be a warning on a busy machine."""
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def examined(directory: Path, environment: dict[str, str], *options: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the report, and the output."""
    command = [sys.executable, "-W", "ignore", "-m", "paddlelite_trainer.cli", "doctor", "--quick", *options]
    root = str(Path(__file__).parents[2])
    environment = {**environment, "A_PASSWORD": SECRET}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH", ""), root]))
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    text = (directory / "paddlelite-doctor.json").read_text()
    for private in (SECRET, socket.gethostname(), str(directory), str(Path.home()), sys.prefix, root):
        assert private not in text
    assert f'"{getpass.getuser()}"' not in text and f"/{getpass.getuser()}" not in text
    return done.returncode, json.loads(text), done.stdout


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {one["check"]: one["verdict"] for one in report["findings"] if one["check"] not in MEASURED}


@pytest.mark.soak
def test_it_runs_whole_on_the_cpu_and_says_what_is_not_possible_there(tmp_path: Path) -> None:
    code, report, out = examined(tmp_path, dict(os.environ))
    impossible = dict.fromkeys(f"{name} beside a loop by hand" for name in PRECISIONS)
    expected = {
        **dict.fromkeys(["versions", "device", "kernels in float32", "resume from every step"], "ok"),
        **dict.fromkeys(["reads of the device by the host", "collectives between devices", "strategy ddp"], "ok"),
        **dict.fromkeys(["kernels in float16", "kernels in bfloat16"], "not possible here"),
        **dict.fromkeys(["waits of the host in a step", "strategy sharding_stage2"], "not possible here"),
        **dict.fromkeys(impossible, "not possible here"),
        **dict.fromkeys([f"{name} beside a loop by hand" for name in ("32-true", "64-true")], "ok"),
    }
    assert verdicts(report) == expected, report
    assert {one["check"] for one in report["findings"]} - expected.keys() == MEASURED
    assert (code, report["verdict"]) in ((0, "ok"), (0, "warning"))
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert "attach it to a bug report" in out.splitlines()[-1]


@pytest.mark.fake_gpu
@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device")
def test_it_runs_whole_on_fake_accelerators(tmp_path: Path) -> None:
    backend = {"PADDLE_DISTRI_BACKEND": "xccl", "PADDLE_XCCL_BACKEND": "fake_gpu", "FAKE_GPU_CCL_TIMEOUT": "60"}
    code, report, out = examined(tmp_path, fake_gpu.environment(FAKE_GPU_COUNT="2", **backend), "--json")
    assert json.loads(out) == report
    found = verdicts(report)
    assert {check for check, verdict in found.items() if verdict not in ("ok", "not possible here")} == set(), report
    numbers = {one["check"]: one["numbers"] for one in report["findings"]}
    assert numbers["device"]["accelerators"] == {"fake_gpu": 2}
    assert numbers["collectives between devices"]["ranks"] == 2
    for name in ("32-true", "16-mixed", "16-true", "64-true"):
        assert numbers[f"{name} beside a loop by hand"] == {"steps": 6, "same": 6}
    assert numbers["resume from every step"]["steps"] == numbers["resume from every step"]["same"] == 4
    assert found["strategy sharding_stage2"] == ("not possible here" if IS_2 else "ok")
    assert code == 0


@pytest.mark.parametrize(
    ("paddle_is", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process was ended by SIGSEGV"),
        ("raise ImportError('libcudnn.so.8: cannot open /opt/me/lib/libcudnn.so.8')", "<path>/libcudnn.so.8"),
        ("import sys; print('no kernel image'); sys.exit(3)", "its process ended with exit code 3: no kernel image"),
    ],
)
def test_a_paddle_that_crashes_is_a_finding(tmp_path: Path, paddle_is: str, words: str) -> None:
    (tmp_path / "broken/paddle").mkdir(parents=True)
    (tmp_path / "broken/paddle/__init__.py").write_text(paddle_is)
    code, report, out = examined(tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path / "broken")})
    assert (code, report["verdict"]) == (1, "failed")
    failed = [one for one in report["findings"] if one["verdict"] == "failed"]
    assert [one["check"] for one in failed] == ["build", "training", "several"]
    assert all(words in one["words"] for one in failed), failed
    assert "3 failed" in out


def test_an_operation_without_a_kernel_or_with_a_wrong_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(tensor: Any) -> Any:
        raise RuntimeError("CUDA error(209), no kernel image is available for execution on the device")

    monkeypatch.setitem(build.OPERATIONS, "gelu", missing)
    found = build.check_kernels("float32")
    assert found.verdict == "failed" and "no kernel image" in found.words and "compute capability" in found.remedy

    def wrong(tensor: Any) -> Any:
        x = tensor(8, 16)
        return [x], x * (1.01 if x.dtype == paddle.float32 else 1.0)

    monkeypatch.setitem(build.OPERATIONS, "gelu", wrong)
    assert build.check_kernels("float32").numbers["broken"] == {"gelu": "is 1.0e-02 off"}


def test_a_trainer_with_other_bits_or_a_read_in_each_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "32-true beside a loop by hand"
    assert training.check_precision("32-true", name).verdict == "ok"
    hand = training.by_hand
    monkeypatch.setattr(training, "by_hand", lambda given, precision: [*hand(given, precision)[:-1], "another"])
    assert training.check_precision("32-true", name).numbers == {"steps": 6, "same": 5}
    assert training.check_reads().verdict == "ok"
    made = training.trainer

    class Reads(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            outputs.item()

    monkeypatch.setattr(training, "trainer", lambda *callbacks, **settings: made(Reads(), *callbacks, **settings))
    assert training.check_reads().verdict == "failed"


def test_a_directory_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paddlelite_trainer.cli", "doctor", "--directory", "/no/such"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "paddlelite: --directory /no/such is no directory: name one on the disk that runs are kept on\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('File "/secret/eve/train.py", line 3', 'File "<path>/train.py", line 3'),
        ("no room in ~/runs/version_3", "no room in <path>/version_3"),
        (f"rank 0 on {socket.gethostname()} failed", "rank 0 on <host> failed"),
        ("3 MB/s, 16/32 samples", "3 MB/s, 16/32 samples"),
    ],
)
def test_what_is_private_is_taken_out_of_an_error(text: str, expected: str) -> None:
    assert Finding("a", "failed", text).without_private().words == expected
