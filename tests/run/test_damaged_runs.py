"""Runs with damaged checkpoints: what is used instead is said, what is damaged set aside, no other is called best."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, InitFrom, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointSaveError,
    ConfigurationError,
)


class Scored(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", float(self.current_epoch))


def trained(root: Path, max_epochs: int = 4, callbacks: Any = (), **settings: Any) -> Trainer:
    fit = {key: settings.pop(key) for key in ("ckpt_path", "init_from") if key in settings}
    keeps = ModelCheckpoint(monitor="score", mode="max", save_top_k=2, keep_last_n=4)
    trainer = quiet_trainer(
        callbacks=[keeps, *callbacks],
        default_root_dir=root,
        max_epochs=max_epochs,
        enable_checkpointing=True,
        **settings,
    )
    trainer.fit(Scored(), make_batches(2), make_batches(1), **fit)
    return trainer


def damage(checkpoint: Path, kind: str) -> None:
    if kind == "no manifest":
        (checkpoint / "manifest.json").unlink()
    else:
        file = checkpoint / ("manifest.json" if kind == "a flipped manifest" else "model.pdparams")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


KINDS = ["no manifest", "a flipped manifest", "a flipped weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_best_is_an_error_and_never_the_second_best(tmp_path: Path, kind: str) -> None:
    trainer = trained(tmp_path)
    damage(trainer.checkpoints.first_of_pin("best").path, kind)
    for use in (
        lambda: trained(tmp_path, ckpt_path="best"),
        lambda: trained(tmp_path, ckpt_path="best_score"),
        lambda: trainer.validate(dataloaders=make_batches(1), ckpt_path="best", verbose=False),
    ):
        with pytest.raises(CheckpointCorruptError, match="step-000000008"):
            use()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_newest_is_told_once_and_moved_to_quarantine(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(tmp_path).checkpoints.first_of_pin("latest").path
    damage(path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = trained(tmp_path, ckpt_path="last", max_epochs=5)
    told = capsys.readouterr().out
    assert told.count(f"Checkpoint {path.name} is damaged; using step-000000006") == 1
    assert f"moved to checkpoints/.quarantine/: {path.name}" in told
    assert [found.name for found in (trainer.run_dir / "checkpoints" / ".quarantine").iterdir()] == [path.name]
    assert not (trainer.run_dir / "checkpoints" / ".superseded").exists()
    assert trainer.current_epoch == 5
    assert all(not trainer.checkpoints.verify(entry) for entry in trainer.checkpoints.entries())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_run_does_not_begin_among_damaged_checkpoints(tmp_path: Path, kind: str) -> None:
    trainer = trained(tmp_path, run_name="mine")
    for entry in trainer.checkpoints.entries():
        damage(entry.path, kind)
    with pytest.raises(ConfigurationError, match="already holds a run with checkpoints"):
        trained(tmp_path, run_name="mine")


def test_what_is_set_aside_by_going_on_from_an_older_checkpoint_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trained(tmp_path)
    trainer.save_checkpoint("of epoch 4")
    older = trainer.checkpoints.entries()[0].path
    trained(tmp_path, ckpt_path=older)
    told = capsys.readouterr().out
    assert "4 checkpoints after step 2 moved to checkpoints/.superseded/" in told
    assert "names are free again: best, best_score, of epoch 4" in told


def test_the_user_s_own_exception_leaves_fit_though_a_background_save_failed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 2:

                def full(*_: Any) -> None:
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(trainer.checkpoints._fs, "rename", full, raising=False)
            if trainer.global_step == 3:
                raise KeyError("mine")

    with (
        pytest.warns(UserWarning, match="while ending after the KeyError above: .*was not saved"),
        pytest.raises(KeyError, match="mine"),
    ):
        trained(tmp_path, callbacks=[Fails()], async_checkpoint=True)


def test_a_background_save_that_failed_last_is_raised_where_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(trainer.checkpoints._fs, "rename", full, raising=False)

    with pytest.raises(CheckpointSaveError):
        trained(tmp_path, max_epochs=1, callbacks=[Fails()], async_checkpoint=True)


def test_a_start_that_does_not_fit_leaves_no_directory(tmp_path: Path) -> None:
    other = trained(tmp_path / "other")
    weights = {f"wrong.{name}": value.numpy() for name, value in other.model.state_dict().items()}
    import paddle

    paddle.save(weights, str(tmp_path / "wrong.pdparams"))
    with pytest.raises(CheckpointMismatchError, match=r"None of them does|rename="):
        trained(tmp_path / "runs", init_from=InitFrom(tmp_path / "wrong.pdparams", strict=False))
    assert not (tmp_path / "runs").exists()
