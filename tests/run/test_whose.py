"""A run has an identity: drawn once, kept wherever the run goes, and never shared by two."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from models import Classifier, make_batches, quiet_trainer
from run_support import save

from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.checkpoint import CheckpointStore
from paddlelite_trainer.checkpoint.owner import Owner, new_owner, parse_owner
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.run.directory import RunDirectory, read_run
from paddlelite_trainer.run.resolve import resolve
from paddlelite_trainer.run.whose import standing_of


def begun(path: Path) -> Owner:
    """A run that begins, or goes on, in `path`, with one more checkpoint."""
    path.mkdir(parents=True, exist_ok=True)
    run = RunDirectory.resume(path)
    store = CheckpointStore(path, owner=run.owner)
    step = 1 + max((entry.step for entry in store.entries()), default=0)
    store.save(step=step, epoch=0, files={}, states={"trainer.json": {}}, pins={f"keep_{step}": [f"step-{step:09d}"]})
    run.close("finished")
    return run.owner


def test_a_run_draws_its_identity_once_and_every_checkpoint_says_it(tmp_path: Path) -> None:
    first, again, other = begun(tmp_path / "a"), begun(tmp_path / "a"), begun(tmp_path / "b")
    assert first == again != other
    assert json.loads((tmp_path / "a/run.json").read_text())["id"] == first.id
    assert read_run(tmp_path / "a").owner == first
    manifests = [json.loads(path.read_bytes()) for path in (tmp_path / "a").rglob("manifest.json")]
    assert [manifest["run"] for manifest in manifests] == [first.to_json()] * 2


def test_a_run_from_before_there_were_ids_is_given_one_and_goes_on(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "run.json").write_text(json.dumps({"created": "2024-01-02T03:04:05+00:00"}))
    assert standing_of(tmp_path).owner is None
    owner = begun(tmp_path)
    assert owner.begun == "2024-01-02T03:04:05+00:00"
    assert [entry.owner for entry in CheckpointStore(tmp_path).entries()] == [None, owner]
    assert begun(tmp_path) == owner


def test_a_run_that_has_lost_its_run_json_knows_itself_by_its_checkpoints(tmp_path: Path) -> None:
    owner = begun(tmp_path)
    (tmp_path / "run.json").unlink()
    assert begun(tmp_path) == owner


def test_a_moved_run_is_itself_and_a_copy_of_one_that_is_still_there_is_another(tmp_path: Path) -> None:
    owner = begun(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert begun(tmp_path / "moved") == owner
    shutil.copytree(tmp_path / "moved", tmp_path / "copy", symlinks=True)
    copy = RunDirectory.resume(tmp_path / "copy")
    assert copy.owner.id != owner.id and copy.copied_from == tmp_path / "moved" and copy.owner.ancestors == (owner.id,)
    copy.close()
    again = RunDirectory.resume(tmp_path / "copy")
    assert again.owner == copy.owner and again.copied_from is None
    again.close()
    assert begun(tmp_path / "moved") == owner


def test_a_run_that_is_reached_by_another_way_is_no_copy(tmp_path: Path) -> None:
    owner = begun(tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "mounted").symlink_to(tmp_path / "run")
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "path": str(tmp_path / "mounted")}))
    assert begun(tmp_path / "run") == owner


def test_a_branch_is_of_the_same_run_and_is_kept(tmp_path: Path) -> None:
    owner = begun(tmp_path)
    run = RunDirectory.resume(tmp_path)
    branch = run.branch_off(12)
    run.close()
    assert branch.id == owner.id and branch.branch.startswith("from-12-") and branch.is_of(owner)
    assert begun(tmp_path) == branch


def test_what_is_no_owner_is_none() -> None:
    sound = new_owner().to_json()
    assert parse_owner(sound) is not None
    for changed in (
        {"id": "../x"},
        {"id": 3},
        {"begun": "\x1b[2J"},
        {"branch": "../main"},
        {"branch": None},
        {"ancestors": [3]},
    ):
        assert parse_owner({**sound, **changed}) is None
    assert parse_owner(None) is None and parse_owner([]) is None


def test_a_directory_that_holds_another_run_s_checkpoint_is_refused_with_both(tmp_path: Path) -> None:
    mine, other = begun(tmp_path / "runs/version_0"), begun(tmp_path / "other")
    begun(tmp_path / "other")
    source = tmp_path / "other/checkpoints/step-000000002"
    shutil.copytree(source, tmp_path / "runs/version_0/checkpoints/step-000000002")
    both = re.escape(f"is of {other}, and {tmp_path / 'runs/version_0'} holds {mine}: the two would be mixed. Move")
    with pytest.raises(ConfigurationError, match=both):
        resolve("last", default_root_dir=tmp_path / "runs")


def fit(root: Path, ckpt_path: str | Path = "last", **until: int) -> Trainer:
    settings = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(save_top_k=-1)], "default_root_dir": root}
    trainer = quiet_trainer(**{"max_epochs": None, **settings, **until})
    trainer.fit(Classifier(), make_batches(2), ckpt_path=ckpt_path)
    return trainer


def test_a_foreign_checkpoint_that_is_not_the_newest_is_refused_too(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=2)
    begun(tmp_path / "other")
    shutil.copytree(tmp_path / "other/checkpoints/step-000000001", tmp_path / "version_0/checkpoints/step-000000001")
    before = sorted(path.name for path in (tmp_path / "version_0/checkpoints").iterdir())
    with pytest.raises(ConfigurationError, match=r"step-000000001 is of run .* the two would be mixed"):
        fit(tmp_path, max_epochs=3)
    assert sorted(path.name for path in (tmp_path / "version_0/checkpoints").iterdir()) == before


def test_a_run_that_goes_back_is_on_a_branch_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, max_epochs=3)
    capsys.readouterr()
    back = fit(tmp_path, tmp_path / "version_0/checkpoints/step-000000002", max_steps=5)
    owners = [entry.owner for entry in back.checkpoints.entries()]
    assert [owner.branch.partition("-")[0] for owner in owners] == ["main", "from", "from"]
    assert len({owner.id for owner in owners}) == 1
    assert f"since the run goes on from here, on its branch {owners[1].branch}" in capsys.readouterr().out
    again = fit(tmp_path, max_steps=6)
    assert again.checkpoints.entries()[-1].owner == owners[1]
    assert f"(step 5, epoch 2, branch {owners[1].branch}, " in capsys.readouterr().out


def test_a_copied_run_goes_on_under_an_identity_of_its_own_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fit(tmp_path / "a", max_epochs=1).checkpoints.entries()[-1].owner
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    capsys.readouterr()
    copy = fit(tmp_path / "b", max_epochs=2)
    owner = copy.checkpoints.entries()[-1].owner
    assert copy.global_step == 4 and owner.id != one.id
    assert f"is a copy of {tmp_path / 'a' / 'version_0'}, which is still there" in capsys.readouterr().out
    assert fit(tmp_path / "b", max_epochs=3).checkpoints.entries()[-1].owner == owner
    assert fit(tmp_path / "a", max_epochs=2).checkpoints.entries()[-1].owner == one
