"""OnExceptionCheckpoint: what was before an error is kept under a name, until a fit ends without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import OnExceptionCheckpoint
from paddlelite_trainer.errors import ConfigurationError


class Fails(Classifier):
    fails = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.fails and self.global_step == 4:
            raise RuntimeError("planned")
        return super().training_step(batch, batch_idx)


def trainer_in(root: Path, keeps: OnExceptionCheckpoint) -> Trainer:
    return quiet_trainer(
        max_epochs=3, callbacks=[keeps], enable_checkpointing=True, default_root_dir=root, run_name="run"
    )


@pytest.mark.parametrize("how", ["last", "by its path"])
def test_the_state_before_an_error_is_kept_until_a_fit_ends_well(tmp_path: Path, how: str) -> None:
    keeps = OnExceptionCheckpoint(tmp_path / "mine")
    trainer = trainer_in(tmp_path, keeps)
    with pytest.raises(RuntimeError, match="planned"):
        trainer.fit(Fails(), make_batches(3), ckpt_path="last")
    assert keeps.ckpt_path == str(tmp_path / "run" / "on_exception")
    assert [entry.step for entry in trainer.checkpoints.by_pin("on_exception")] == [4]
    assert (tmp_path / "mine" / "on_exception").resolve().is_dir()

    again = trainer_in(tmp_path, OnExceptionCheckpoint(tmp_path / "mine"))
    module = Fails()
    module.fails = False
    again.fit(module, make_batches(3), ckpt_path=how if how == "last" else keeps.ckpt_path)
    assert again.global_step == 9
    assert again.ckpt_path is not None and again.ckpt_path.name == "step-000000004"
    assert "on_exception" not in again.checkpoints.pins()
    assert list((tmp_path / "mine").iterdir()) == []
    assert "latest" in again.checkpoints.pins()  # of the ModelCheckpoint that was added as ever


def test_the_name_is_one_s_own(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, OnExceptionCheckpoint(filename="crashed"))
    with pytest.raises(RuntimeError, match="planned"):
        trainer.fit(Fails(), make_batches(3))
    assert "crashed" in trainer.checkpoints.pins()


@pytest.mark.parametrize("name", ["latest", "a/b", "best_val_loss", ""])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OnExceptionCheckpoint\(filename="):
        OnExceptionCheckpoint(filename=name)


def test_beside_no_checkpoints_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="OnExceptionCheckpoint was passed together with enable_checkpointing"):
        quiet_trainer(callbacks=[OnExceptionCheckpoint()], enable_checkpointing=False)
