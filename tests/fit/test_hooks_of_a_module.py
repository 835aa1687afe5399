"""Hooks that a module may override beyond its steps: configure_model, backward, the modes around an evaluation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Module
from paddlelite_trainer.errors import ConfigurationError


# -- configure_model ---------------------------------------------------------------------------------------------------
class Late(Classifier):
    """Builds its layers in configure_model, as wide as a checkpoint may say."""

    def __init__(self, hidden: int = 6) -> None:
        Module.__init__(self)
        self.save_hyperparameters()
        self.calls: list[str] = []

    def setup(self, stage: str) -> None:
        self.calls.append("setup")

    def configure_model(self) -> None:
        self.calls.append("configure_model")
        numbers = np.random.RandomState(3)
        hidden = self.hparams.hidden
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, hidden), paddle.nn.ReLU(), paddle.nn.Linear(hidden, 3))
        for parameter in self.net.parameters():
            parameter.set_value(numbers.randn(*parameter.shape).astype("float32"))

    def configure_optimizers(self) -> Any:
        self.calls.append("configure_optimizers")
        return paddle.optimizer.Momentum(0.1, parameters=self.parameters())


def test_configure_model_comes_once_after_setup_and_before_the_optimizers() -> None:
    module, trainer = Late(), quiet_trainer()
    trainer.fit(module, make_batches(2))
    trainer.test(module, make_batches(1))
    assert module.calls == ["setup", "configure_model", "configure_optimizers", "setup"]
    trainer.fit(copy.deepcopy(module), make_batches(2))
    assert module.calls.count("configure_model") == 1


def test_a_resumed_run_builds_its_layers_before_the_weights_come(tmp_path: Path) -> None:
    def fit(root: str, **settings: Any) -> Any:
        as_if_started_again()
        trainer = quiet_trainer(enable_checkpointing=True, default_root_dir=tmp_path / root, **settings)
        trainer.fit(Late(), make_batches(4), ckpt_path="last")
        return trainer

    fit("cut", max_steps=3)
    resumed, whole = fit("cut", max_epochs=2), fit("whole", max_epochs=2)
    assert same_weights(weights_of(resumed.model), weights_of(whole.model))
    loaded = Late.load_from_checkpoint(resumed.run_dir / "latest")
    assert same_weights(weights_of(loaded), weights_of(whole.model))
    assert loaded.calls == ["configure_model"]
    fresh = Late()
    resumed.test(fresh, make_batches(1), ckpt_path="last")
    assert same_weights(weights_of(fresh), weights_of(whole.model))
    resumed.fit(loaded, make_batches(4))  # its layers are there already
    assert loaded.calls == ["configure_model", "setup", "configure_optimizers"]


def test_weights_of_another_tool_find_the_layers_of_configure_model(tmp_path: Path) -> None:
    module = Late()
    module.configure_once()
    paddle.save(module.state_dict(), str(tmp_path / "weights.pdparams"))
    loaded = Late.load_from_checkpoint(tmp_path / "weights.pdparams")
    assert same_weights(weights_of(loaded), weights_of(module))


# -- backward ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("automatic", [True, False])
def test_a_backward_of_the_module_s_own_is_called_with_the_loss(automatic: bool) -> None:
    class Own(Classifier):
        automatic_optimization = automatic

        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            if not automatic:
                self.manual_backward(loss)
                self.optimizers().step()
                self.optimizers().clear_grad()
            return loss

        def backward(self, loss: Any) -> None:  # type: ignore[override]
            self.losses.append(float(loss))
            (loss * 2).backward()

    class Twice(Classifier):
        def loss(self, batch: Any) -> Any:
            return super().loss(batch) * 2

    own, expected = Own(), Twice()
    quiet_trainer().fit(own, make_batches(3))
    quiet_trainer().fit(expected, make_batches(3))
    assert len(own.losses) == 3
    assert same_weights(weights_of(own), weights_of(expected))


def test_a_backward_that_calls_the_class_above_is_the_usual_one() -> None:
    class Same(Classifier):
        def backward(self, loss: Any, retain_graph: bool = False) -> None:
            super().backward(loss, retain_graph=True)

    same, expected = Same(), Classifier()
    quiet_trainer(accumulate_grad_batches=2).fit(same, make_batches(3))
    quiet_trainer(accumulate_grad_batches=2).fit(expected, make_batches(3))
    assert same_weights(weights_of(same), weights_of(expected))


def test_manual_backward_may_keep_the_graph() -> None:
    class Twice(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self(batch[0]).square().mean()  # cross_entropy's own backward is right once only (docs/paddle.md)
            self.manual_backward(loss, retain_graph=True)
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().clear_grad()

    class Doubled(Classifier):
        def loss(self, batch: Any) -> Any:
            return self(batch[0]).square().mean() * 2

    twice, expected = Twice(), Doubled()
    quiet_trainer().fit(twice, make_batches(3))
    quiet_trainer().fit(expected, make_batches(3))
    for name, value in weights_of(expected).items():
        np.testing.assert_allclose(weights_of(twice)[name], value, rtol=1e-5)


# -- no optimizer ------------------------------------------------------------------------------------------------------
class Counts(Classifier):
    """Learns nothing and counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += batch[0].shape[0]
        self.log("seen", float(self.seen), on_step=False, on_epoch=True, reduce_fx="max")
        return self.loss(batch)

    def configure_optimizers(self) -> None:
        return None


def test_without_an_optimizer_the_steps_run_and_nothing_is_trained() -> None:
    module, expected = Counts(), Classifier()
    trainer = quiet_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"Counts\.configure_optimizers returned None: nothing is trained"):
        trainer.fit(module, make_batches(3), make_batches(1))
    assert same_weights(weights_of(module), weights_of(expected))
    assert (module.seen, trainer.global_step, trainer.current_epoch) == (48, 0, 2)
    assert trainer.callback_metrics["seen"] == 48.0
    assert all(parameter.grad is None for parameter in module.parameters())


def test_without_an_optimizer_a_fit_by_steps_alone_would_never_end() -> None:
    with pytest.raises(ConfigurationError, match=r"returned None.*max_steps=5 is never reached.*max_epochs"):
        quiet_trainer(max_steps=5).fit(Counts(), make_batches(3))


def test_an_empty_list_of_optimizers_is_an_error_still() -> None:
    class Empty(Classifier):
        def configure_optimizers(self) -> Any:
            return [], []

    with pytest.raises(ConfigurationError, match="returned no optimizer"):
        quiet_trainer().fit(Empty(), make_batches(1))


# -- a plateau that the module steps by itself -------------------------------------------------------------------------
def test_in_manual_optimization_a_plateau_needs_no_monitor() -> None:
    rates: list[float] = []

    class Steps(Classifier):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            schedule = paddle.optimizer.lr.ReduceOnPlateau(0.1, factor=0.5, patience=0)
            return [paddle.optimizer.SGD(schedule, parameters=self.parameters())], [schedule]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss(batch))
            self.optimizers().step()
            self.optimizers().clear_grad()

        def on_train_epoch_end(self) -> None:
            self.lr_schedulers().step(1.0)
            rates.append(self.trainer.optimizers[0].get_lr())

    quiet_trainer(max_epochs=3).fit(Steps(), make_batches(2))
    assert rates == [0.1, 0.05, 0.025]
