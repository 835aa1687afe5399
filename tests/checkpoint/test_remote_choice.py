"""Which copy a run goes on from, URLs, and the command line's `fetch` and `ls`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from copies_support import copy_now
from remote_support import (
    below,
    flipped,
    hook,
    memory_url,
    overwrite,
)
from store_support import save, step_in

from paddlelite_trainer.checkpoint import CheckpointStore, Remote, is_managed, open_checkpoint
from paddlelite_trainer.cli import FAILED, NOT_FOUND, OK, PROBLEMS, USAGE, main
from paddlelite_trainer.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
    RemoteError,
)
from paddlelite_trainer.run.resolve import RemoteCopies, Resolution, resolve

pytestmark = pytest.mark.usefixtures("retry_at_once")


# -- which one a run goes on from ------------------------------------------------------------------------------------


def last(url: str, root: Path) -> Resolution:
    return resolve("last", [RemoteCopies(Remote(url), "raise")], default_root_dir=root, run_name=None)


def test_an_unhealthy_copy_is_passed_over_for_a_healthy_one(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 1)
    save(store, 2, healthy=False)
    copy_now(store, url, everything=True)
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 1
    assert any("step-000000002.c2" in finding and "NaN or infinite" in finding for finding in found.findings)


def test_an_unhealthy_copy_is_taken_where_there_is_no_other(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 2, healthy=False)
    copy_now(store, url)
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 2


def test_a_copy_of_weights_only_is_nothing_to_go_on_from(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 1, {"whole": ["new"]})
    save(store, 2, info={"weights_only": True})
    copy_now(store, url)
    overwrite(url, "step-000000009.c9.0123456789abcdef/model.pdparams", b"never completed")
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 1 and found.findings == ()


# -- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bucket/run", "has a protocol and a place"),
        ("s3://", "has a protocol and a place"),
        ("memry://bucket/run", "Did you mean 'memory'"),
        ("oci://bucket/run", "Install ocifs"),
    ],
)
def test_a_url_that_cannot_be_opened_is_an_error_with_a_remedy(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Remote(url)


def test_a_url_is_a_str() -> None:
    with pytest.raises(ConfigurationTypeError, match="got PosixPath"):
        Remote(Path("/tmp"))  # type: ignore[arg-type]


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'paddlelite_trainer\[remote\]'"):
        Remote("s3://bucket/run")


def test_a_password_in_a_url_is_not_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Remote("nosuch://me:secret@host/run")
    assert "secret" not in str(caught.value)


def test_a_remote_that_does_not_answer_is_no_empty_remote() -> None:
    remote = Remote(memory_url())

    def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        raise ConnectionError("no route to host")

    hook(remote, around)
    with pytest.raises(RemoteError, match="ConnectionError: no route to host"):
        remote.checkpoints()


# -- the command line ------------------------------------------------------------------------------------------------


def test_fetch_brings_a_checkpoint_by_any_of_its_names(
    store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = memory_url()
    save(store, 1, {"best": ["new"], "mine": ["new"]})
    save(store, 2)
    copy_now(store, url)
    for name, step in (("latest", 2), ("best", 1), ("mine", 1), ("2", 2), ("step-000000001", 1)):
        folder = tmp_path / name
        assert main(["ckpt", "fetch", url, str(folder), "--name", name]) == OK
        assert "every byte checked" in capsys.readouterr().out
        assert step_in(open_checkpoint(folder / f"step-{step:09d}")) == step
    assert main(["ckpt", "fetch", url, str(tmp_path / "best"), "--name", "best", "--json"]) == USAGE
    assert "exists already" in capsys.readouterr().err


def test_fetch_says_what_is_there_and_what_is_wrong(
    there: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, one = there
    assert main(["ckpt", "fetch", url, str(tmp_path), "--name", "lates"]) == NOT_FOUND
    assert "Did you mean 'latest'? It has latest, step-000000007." in capsys.readouterr().err
    overwrite(url, f"{one.name}/model.pdparams", flipped(below(url)[f"{one.name}/model.pdparams"]))
    assert main(["ckpt", "fetch", url, str(tmp_path)]) == PROBLEMS
    assert "model.pdparams was altered" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["ckpt", "fetch", url, str(tmp_path / "file")]) == FAILED
    assert main(["ckpt", "fetch", "nosuch://x/y"]) == USAGE
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_ls_lists_a_remote(there: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = there
    assert main(["ckpt", "ls", url]) == OK
    assert "latest" in capsys.readouterr().out
    assert main(["ckpt", "ls", url, "--json"]) == OK
    (row,) = json.loads(capsys.readouterr().out)
    assert main(["ckpt", "ls", memory_url()]) == NOT_FOUND
    assert row["step"] == 7 and row["pins"] == ["latest"] and row["run"] == url


def test_find_raises_where_nothing_is_there() -> None:
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint"):
        Remote(memory_url()).find()


def test_names_that_runs_give_are_told_from_tags() -> None:
    assert is_managed("epoch_3") and is_managed("best_val_loss") and not is_managed("before-finetune")
