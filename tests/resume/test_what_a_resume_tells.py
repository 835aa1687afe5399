"""What a resumed run, or an evaluation, says of what is not as it was; nothing of it was told before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import CombinedLoader, InitFrom, Trainer, Tuner
from paddlelite_trainer.callbacks import ExponentialMovingAverage
from paddlelite_trainer.errors import ConfigurationTypeError


class Decaying(Classifier):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Fills(Classifier):
    """Keeps what its steps give until the epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.numpy()))
        return loss

    def on_train_epoch_end(self) -> None:
        self.losses.clear()


class Keeps(Fills):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["losses"])


def run(root: Path, module: Classifier, steps: int, **settings: Any) -> str:
    trainer = listening(max_steps=steps, default_root_dir=root, run_name="run", enable_checkpointing=True, **settings)
    trainer.fit(module, make_batches(6), make_batches(1), ckpt_path="last")
    return "\n".join(trainer.said)


def listening(**settings: Any) -> Any:
    trainer = quiet_trainer(**settings)
    trainer.said = []
    trainer.print = lambda *words, **_: trainer.said.append(" ".join(map(str, words)))
    return trainer


@pytest.mark.parametrize(
    ("make", "again", "told"),
    [
        (
            lambda p: paddle.optimizer.AdamW(0.01, parameters=p, weight_decay=0.1),
            lambda p: paddle.optimizer.AdamW(0.01, parameters=p, weight_decay=0.5, beta1=0.5),
            ["weight_decay of optimizer: saved 0.1, now 0.5", "beta1 of optimizer: saved 0.9, now 0.5"],
        ),
        (
            lambda p: paddle.optimizer.Momentum(0.01, parameters=p, weight_decay=0.1),
            lambda p: paddle.optimizer.Momentum(0.01, 0.8, parameters=p, weight_decay=0.2),
            ["weight_decay of optimizer: saved 0.1, now 0.2", "momentum of optimizer: saved 0.9, now 0.8"],
        ),
    ],
)
def test_another_constant_of_the_optimizer_is_told(tmp_path: Path, make: Any, again: Any, told: list[str]) -> None:
    run(tmp_path, Decaying(make), 2)
    assert "of optimizer: saved" not in run(tmp_path, Decaying(make), 3)
    said = run(tmp_path, Decaying(again), 4)
    assert [sentence for sentence in told if sentence not in said] == []


def test_a_list_that_steps_had_filled_and_nobody_saves_is_told(tmp_path: Path) -> None:
    run(tmp_path / "lost", Fills(), 3)
    said = run(tmp_path / "lost", Fills(), 5)
    assert "losses: a list of the module that had 3 entries is not in the checkpoint, and has 0 now" in said
    run(tmp_path / "kept", Keeps(), 3)
    assert "of the module that had" not in run(tmp_path / "kept", Keeps(), 5)
    run(tmp_path / "empty", Fills(), 6)  # an epoch's end
    assert "of the module that had" not in run(tmp_path / "empty", Fills(), 8)


def test_averaged_weights_that_an_evaluation_leaves_aside_are_told(tmp_path: Path) -> None:
    run(tmp_path, Classifier(), 4, callbacks=[ExponentialMovingAverage(0.5)])
    latest = tmp_path / "run/latest"
    without, with_it = listening(), listening(callbacks=[ExponentialMovingAverage(0.5)])
    without.validate(Classifier(), make_batches(1), ckpt_path=latest, verbose=False)
    with_it.validate(Classifier(), make_batches(1), ckpt_path=latest, verbose=False)
    assert re.search("these are the live weights; .* has averaged ones too, in ema.pdparams", "\n".join(without.said))
    assert "live weights" not in "\n".join(with_it.said)


def test_arguments_of_tuner_and_init_from_are_explained() -> None:
    trainer: Trainer = quiet_trainer()
    with pytest.raises(ConfigurationTypeError, match=r"Tuner\.lr_find has no argument 'min_lrr'\. Did you mean 'min"):
        Tuner(trainer).lr_find(Classifier(), min_lrr=1)
    with pytest.raises(ConfigurationTypeError, match=r"Tuner\.scale_batch_size has no argument 'mod'"):
        Tuner(trainer).scale_batch_size(Classifier(), mod="power")
    with pytest.raises(ConfigurationTypeError, match=r"Tuner\.lr_find\(min_lr=\.\.\.\) must be a number, got 'a'"):
        Tuner(trainer).lr_find(Classifier(), make_batches(2), min_lr="a")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationTypeError, match=r"InitFrom has no argument 'strikt'\. Did you mean 'strict'"):
        InitFrom("x", strikt=True)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationTypeError, match=r"strict=\.\.\.\) must be a bool or None, got 'no'"):
        Classifier.load_from_checkpoint("x", strict="no")  # type: ignore[arg-type]


def test_a_combined_loader_tells_its_length() -> None:
    two, three = make_batches(2), make_batches(3)
    assert len(CombinedLoader({"a": two, "b": three})) == 2
    assert len(CombinedLoader([two, three], "max_size_cycle")) == 3
    endless = CombinedLoader([two, iter(three)])
    assert endless
    with pytest.raises(ConfigurationTypeError, match="its loader 1, a list_iterator, has no length"):
        len(endless)
