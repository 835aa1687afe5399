"""A resumed run knows which of a monitored metric's values were looked at, and whose weights earned them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint

SCORES = [3.0, 3.0, 1.0, 2.0]  # of the epochs


class Records(Callback):
    """Gives the epoch's score in its second batch, before the checkpoint that is resumed from."""

    def __init__(self, how: str, fails_in: int | None = None) -> None:
        self.how, self.fails_in = how, fails_in

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.fails_in and batch_idx == 3:
            raise RuntimeError("planned")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and self.how == "recorded":
            trainer.record("score", SCORES[trainer.current_epoch])
        elif batch_idx == 1:
            module.log("score", SCORES[trainer.current_epoch], on_step=True, on_epoch=False)


def trainer_in(root: Path, how: str, fails_in: int | None = None) -> tuple[Trainer, EarlyStopping]:
    stopping = EarlyStopping("score", patience=9)
    trainer = quiet_trainer(
        default_root_dir=root,
        run_name="run",
        enable_checkpointing=True,
        max_epochs=4,
        callbacks=[Records(how, fails_in), stopping, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)],
    )
    return trainer, stopping


@pytest.mark.parametrize("how", ["recorded", "logged on a step"])
@pytest.mark.parametrize("fails_in", [0, 1, 2, 3])
def test_a_value_that_came_before_the_checkpoint_is_evaluated_once(tmp_path: Path, how: str, fails_in: int) -> None:
    trainer, undisturbed = trainer_in(tmp_path / "a", how)
    trainer.fit(Classifier(), make_batches(4))
    failing, _ = trainer_in(tmp_path / "b", how, fails_in)
    with pytest.raises(RuntimeError, match="planned"):
        failing.fit(Classifier(), make_batches(4))
    resumed, stopping = trainer_in(tmp_path / "b", how)
    resumed.fit(Classifier(), make_batches(4), ckpt_path="last")
    assert (stopping.best_score, stopping.wait_count) == (undisturbed.best_score, undisturbed.wait_count) == (1.0, 1)
