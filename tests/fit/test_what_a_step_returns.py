"""What training_step may return, and what hooks are given of it."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, CSVLogger
from paddlelite_trainer.errors import TrainingError


class Keeps(Callback):
    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)


# -- what hooks keep holds no graph ------------------------------------------------------------------------------------
@pytest.mark.parametrize("automatic", [True, False])
def test_what_on_train_batch_end_is_given_is_detached_from_the_graph(automatic: bool) -> None:
    class Returns(Classifier):
        automatic_optimization = automatic

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            if not automatic:
                self.manual_backward(loss)
                self.optimizers().step()
                self.optimizers().clear_grad()
            self.returned = {"loss": loss, "more": [loss * 2, (loss * 3, "text")], "scores": self(batch[0])}
            return self.returned

    keeps, module = Keeps(), Returns()
    quiet_trainer(callbacks=[keeps]).fit(module, make_batches(2))
    for outputs in keeps.outputs:
        assert list(outputs) == ["loss", "more", "scores"]
        tensors = [outputs["loss"], outputs["more"][0], outputs["more"][1][0], outputs["scores"]]
        assert all(tensor.stop_gradient for tensor in tensors)
        assert outputs["more"][1][1] == "text"
    assert not module.returned["scores"].stop_gradient  # what the module keeps of its own is its own
    assert keeps.outputs[-1]["scores"].numpy().tolist() == module.returned["scores"].numpy().tolist()


def test_a_loss_that_a_hook_keeps_is_detached_from_the_graph() -> None:
    keeps = Keeps()
    quiet_trainer(callbacks=[keeps]).fit(Classifier(), make_batches(2))
    assert [loss.stop_gradient for loss in keeps.outputs] == [True, True]


# -- None skips the batch ----------------------------------------------------------------------------------------------
class Skips(Classifier):
    """Returns no loss for some batches, by their index."""

    def __init__(self, *skipped: int) -> None:
        super().__init__()
        self.skipped = skipped

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("seen", float(batch_idx), on_step=True, on_epoch=True)
        return None if batch_idx in self.skipped else self.loss(batch)


def without(batches: list[Any], *skipped: int) -> list[Any]:
    return [batch for index, batch in enumerate(batches) if index not in skipped]


@pytest.mark.parametrize("skipped", [(0,), (2, 3), (5,), (0, 1, 2, 3, 4)])
def test_a_batch_without_a_loss_makes_no_step(skipped: tuple[int, ...]) -> None:
    batches, module, expected, keeps = make_batches(6), Skips(*skipped), Classifier(), Keeps()
    trainer = quiet_trainer(max_epochs=2, callbacks=[keeps])
    trainer.fit(module, batches)
    quiet_trainer(max_epochs=2).fit(expected, without(batches, *skipped))
    assert same_weights(weights_of(module), weights_of(expected))
    assert trainer.global_step == 2 * (6 - len(skipped))
    assert trainer.progress.total_batches == 12
    assert [outputs is None for outputs in keeps.outputs[:6]] == [index in skipped for index in range(6)]
    assert trainer.callback_metrics["seen"] == 2.5


@pytest.mark.parametrize("skipped", [(1,), (2, 6), (0, 3), (5, 6)])
def test_an_accumulation_window_is_so_many_losses(skipped: tuple[int, ...]) -> None:
    batches, module, expected = make_batches(7), Skips(*skipped), Classifier()
    trainer, reference = (quiet_trainer(accumulate_grad_batches=3) for _ in range(2))
    trainer.fit(module, batches)
    reference.fit(expected, without(batches, *skipped))
    assert trainer.global_step == reference.global_step
    for name, value in weights_of(expected).items():
        np.testing.assert_allclose(weights_of(module)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("cut", range(1, 7))
def test_a_run_that_skips_batches_is_the_same_when_it_is_resumed(tmp_path: Path, cut: int, window: int) -> None:
    class Leaves(Callback):
        done = 0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.done += 1
            if self.done == cut:
                os.kill(os.getpid(), signal.SIGTERM)

    def fit(root: str, *callbacks: Any) -> Any:
        as_if_started_again()
        trainer = quiet_trainer(
            max_epochs=2,
            accumulate_grad_batches=window,
            callbacks=list(callbacks),
            logger=CSVLogger(),
            log_every_n_steps=1,
            enable_checkpointing=True,
            default_root_dir=tmp_path / root,
        )
        trainer.fit(Skips(1, 2, 4), make_batches(6), ckpt_path="last")
        return trainer

    with pytest.raises(SystemExit):
        fit("cut", Leaves())
    resumed, whole = fit("cut"), fit("whole")
    assert same_weights(weights_of(resumed.model), weights_of(whole.model))
    assert resumed.progress.state_dict() | {"seconds": 0} == whole.progress.state_dict() | {"seconds": 0}
    assert resumed.history == whole.history
    logs = [(trainer.run_dir / "metrics.csv").read_text(encoding="utf-8") for trainer in (resumed, whole)]
    assert logs[0] == logs[1]


def test_a_window_given_up_for_a_signal_after_a_skipped_batch_goes_on_as_it_was(tmp_path: Path) -> None:
    class Leaves(Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, *more: Any) -> None:
            if trainer.progress.batches_in_epoch == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    def fit(root: str, *callbacks: Any) -> Any:
        as_if_started_again()
        trainer = quiet_trainer(
            max_epochs=1,
            accumulate_grad_batches=4,
            val_check_interval=1,
            callbacks=list(callbacks),
            enable_checkpointing=True,
            default_root_dir=tmp_path / root,
        )
        trainer.fit(Skips(4), make_batches(7), make_batches(1), ckpt_path="last")
        return trainer

    with pytest.raises(SystemExit):
        fit("cut", Leaves())
    resumed, whole = fit("cut"), fit("whole")
    assert same_weights(weights_of(resumed.model), weights_of(whole.model))


def test_the_first_batch_without_a_loss_is_told(recwarn: pytest.WarningsRecorder) -> None:
    quiet_trainer(max_epochs=2).fit(Skips(1, 3), make_batches(4))
    told = [str(warning.message) for warning in recwarn if "returned None" in str(warning.message)]
    assert told == [
        "Skips.training_step returned None in batch 1, so the batch is skipped: it makes no step. "
        "If that is not meant, return the loss."
    ]


@pytest.mark.filterwarnings("ignore:Skips.training_step returned None")
def test_an_epoch_without_a_loss_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"Skips\.training_step returned None for all 4 batches of epoch 0.*return"):
        quiet_trainer(max_epochs=2).fit(Skips(0, 1, 2, 3), make_batches(4))


@pytest.mark.filterwarnings("ignore:Skips.training_step returned None")
def test_endless_data_without_a_loss_end_with_an_error() -> None:
    with pytest.raises(TrainingError, match=r"Skips\.training_step returned None for 1000 batches in a row"):
        quiet_trainer(max_steps=3, limit_train_batches=2000).fit(Skips(*range(2000)), Endless())


class Endless:
    def __iter__(self) -> Any:
        (batch,) = make_batches(1)
        return itertools.repeat(batch)
