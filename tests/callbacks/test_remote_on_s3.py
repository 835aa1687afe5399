"""RemoteCopy on an S3 server: a machine is wiped and goes on bit for bit, whatever the server answers meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_support import Between, Server
from small_runs import batches, differing, net, trainer, whole_state

from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.checkpoint import CheckpointStore, Copier, Remote
from paddlelite_trainer.checkpoint.remote import copier
from paddlelite_trainer.errors import RemoteError

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(copier, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(copier, "LONGEST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr("paddlelite_trainer.run.remote_run.FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # ours are what is tried here


def train(root: Path, copy: RemoteCopy | None, epochs: int = 3, **settings: Any) -> Trainer:
    keep = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    run = trainer(root, [keep, *([copy] if copy else [])], max_epochs=epochs, **settings)
    run.fit(net(), batches(), batches(2, 5), ckpt_path="last")
    return run


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return whole_state(train(tmp_path_factory.mktemp("whole"), None))


def steps_there(url: str, options: dict[str, Any]) -> list[int]:
    remote = Remote(url, options)
    return sorted(int(one.entry_name[5:14]) for one in remote.checkpoints() if remote.is_complete(one))


def copies(url: str, options: dict[str, Any], **more: Any) -> RemoteCopy:
    return RemoteCopy(url, storage_options=options, final_wait_seconds=60, **more)


def test_a_wiped_machine_goes_on_from_s3_bit_for_bit_and_retention_keeps_what_is_named(
    tmp_path: Path, server: Server, expected: dict[str, Any]
) -> None:
    url = server.url()
    train(tmp_path / "first", copies(url, server.options, keep_last_n=1), 1)
    train(tmp_path / "second", copies(url, server.options, keep_last_n=1), 2)
    third = train(tmp_path / "third", copies(url, server.options, keep_last_n=1))
    assert differing(whole_state(third), expected) == []
    remote = Remote(url, server.options)
    named = {one.name for held in remote.names().values() for one in held}
    folders = {key.partition("/")[0] for key in server.keys(url)}
    assert folders == named | {"names.json", "names-copy.json"}
    assert remote.checkpoints()[0].entry_name == "step-000000012"


def every(which: int, *what: str) -> Callable[[int, str, str], str]:
    """Each n-th request meets the next of these."""
    return lambda number, method, path: "pass" if number % which else what[number // which % len(what)]


KINDS = ("throttled", "broken", "torn", "drip", "lost", "dropped")


@pytest.mark.parametrize("what", ["in turn", *(pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS)])
def test_whatever_the_server_answers_a_wiped_machine_goes_on_bit_for_bit(
    tmp_path: Path, server: Server, expected: dict[str, Any], what: str
) -> None:
    """Each seventh request of both machines."""
    url = server.url()
    with Between(server, every(7, *(KINDS if what == "in turn" else (what,)))) as door:
        train(tmp_path / "first", copies(url, door.options), 2)
        assert len(door.requests) > 30
        second = train(tmp_path / "second", copies(url, door.options))
    assert differing(whole_state(second), expected) == []
    assert steps_there(url, server.options)[-1] == 12


@pytest.mark.parametrize(
    "what", ["expired", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("skewed", "forbidden"))]
)
def test_what_lasts_is_told_once_and_copied_when_it_is_over(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A clock that is set right, credentials that are renewed."""
    url = server.url()
    first_data = []

    def behave(number: int, method: str, path: str) -> str:
        if method == "PUT" and "step-" in path:
            first_data.append(number)
        return what if first_data and number < first_data[0] + 20 else "pass"

    with Between(server, behave) as door:
        copy = copies(url, door.options)
        train(tmp_path, copy, 2)
    out = capsys.readouterr().out
    said = {"skewed": "RequestTimeTooSkewed", "expired": "expired", "forbidden": "Access Denied"}[what]
    assert out.count("failed, and is tried again") == 1 and said in out and "works again" in out
    assert copy.not_copied == [] and steps_there(url, server.options)[-1] == 8


def test_a_bucket_that_is_not_there_is_an_error_at_the_start_that_names_it(tmp_path: Path, server: Server) -> None:
    with pytest.raises(RemoteError, match=r"s3://no-such-bucket/run.*bucket does not exist"):
        train(tmp_path, copies("s3://no-such-bucket/run", server.options), 1)
    assert not list(tmp_path.iterdir())


def killed_at(root: Path, url: str, server: Server, number: int, before: bool) -> int:
    """A training whose process is killed at its n-th request; returns its exit code."""
    here = Path(__file__).parent
    process: list[str] = []

    def behave(at: int, method: str, path: str) -> str:
        return f"{'-' if before else ''}{process[0]}" if at == number else "pass"

    with Between(server, behave) as door:
        script = (
            "import sys; sys.path[:0] = sys.argv[4:]\n"
            "import conftest, json, s3fs; from pathlib import Path\n"
            "s3fs.S3FileSystem.retries = 1\n"
            "sys.stdin.readline()\n"
            "from small_runs import *; from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy\n"
            "keep = ModelCheckpoint(monitor='val_loss', save_top_k=2)\n"
            "copy = RemoteCopy(sys.argv[2], storage_options=json.loads(sys.argv[3]), keep_last_n=1)\n"
            "run = trainer(Path(sys.argv[1]), [keep, copy], max_epochs=3)\n"
            "run.fit(net(), batches(), batches(2, 5), ckpt_path='last')\n"
        )
        paths = [str(here.parents[1]), str(here.parent), str(here)]
        command = [sys.executable, "-W", "ignore", "-c", script, str(root), url, json.dumps(door.options), *paths]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        process.append(str(run.pid))
        try:
            run.communicate(b"\n", timeout=120)
        finally:
            if run.poll() is None:
                os.kill(run.pid, signal.SIGKILL)
        return run.returncode


@pytest.mark.parametrize(("number", "before"), [(28, False), pytest.param(18, True, marks=pytest.mark.soak)])
def test_killed_at_a_request_and_the_machine_wiped_it_goes_on_bit_for_bit(
    tmp_path: Path, server: Server, expected: dict[str, Any], number: int, before: bool
) -> None:
    assert check_kill(tmp_path, server, expected, number, before) == -signal.SIGKILL


def check_kill(tmp_path: Path, server: Server, expected: dict[str, Any], number: int, before: bool) -> int:
    url = server.url()
    code = killed_at(tmp_path / "first", url, server, number, before)
    if code == 0:
        return code  # it made fewer requests
    assert code == -signal.SIGKILL
    there = steps_there(url, server.options)
    second = train(tmp_path / "second", copies(url, server.options))
    assert (second.ckpt_path is None) == (not there)
    is_over = there[-1:] == [12]  # nothing is drawn then
    assert set(differing(whole_state(second), expected)) <= ({"random"} if is_over else set())
    return code


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_request(tmp_path: Path, server: Server, expected: dict[str, Any], before: bool) -> None:
    number = 1
    while check_kill(tmp_path / str(number), server, expected, number, before):
        number += 1
    assert number > 40


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_checkpoints(tmp_path: Path, server: Server) -> None:
    """All are there, all are found, and the last 10 and what is named are all that retention leaves."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
    from store_support import save

    url = server.url()
    store = CheckpointStore(tmp_path / "run")

    def copy(steps: range, **more: Any) -> None:
        one = Copier(store, Remote(url, server.options), is_wanted=lambda name: True, **more)
        one.start()
        for step in steps:
            save(store, step, {"hundredth": ["new"]} if step % 100 == 0 else {})
        assert one.wait(3000)
        assert one.finish() == []

    copy(range(1, 1001), everything=True)
    assert steps_there(url, server.options) == [*range(1, 1001)]
    copy(range(1001, 1002), keep_last_n=10)
    assert steps_there(url, server.options) == [*range(992, 1002)]
