"""After fit every parameter is as the user left it, whatever toggle_optimizer held back."""

from __future__ import annotations

import contextlib
from typing import Any

import paddle
import pytest
from models import make_batches, quiet_trainer

from paddlelite_trainer import Callback, Module


class Shared(Module):
    """Three optimizers that share one layer; `then` says what comes after toggling one of them."""

    def __init__(self, then: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.then = then
        self.layers = paddle.nn.LayerList([paddle.nn.Linear(4, 4) for _ in range(4)])
        self.layers[1].bias.stop_gradient = True

    def configure_optimizers(self) -> Any:
        shared = self.layers[0].parameters()
        return [paddle.optimizer.SGD(0.1, parameters=[*shared, *layer.parameters()]) for layer in self.layers[1:]]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            self.seen = [parameter.stop_gradient for parameter in self.layers[0].parameters()]
            if index == 1 and self.then == "an error":
                raise ValueError("bad batch")
            self.manual_backward(self.layers[index + 1](self.layers[0](batch[0])).mean())
            optimizer.step()
            optimizer.clear_grad()
            if self.then == "untoggled":
                self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize("then", ["untoggled", "forgotten", "an error"])
def test_parameters_that_optimizers_share_are_as_the_user_left_them(then: str) -> None:
    module = Shared(then)
    before = [parameter.stop_gradient for parameter in module.parameters()]
    with contextlib.suppress(ValueError):
        quiet_trainer(max_epochs=1).fit(module, make_batches(2))
    assert module.seen == [False, False]
    assert [parameter.stop_gradient for parameter in module.parameters()] == before


class Phases(Shared):
    """One toggle after another without an untoggle between, undone in the wrong order, too often or never."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second, third = self.optimizers()
        self.toggle_optimizer(first)
        self.toggle_optimizer(second)
        self.toggle_optimizer(third)
        self.toggle_optimizer(third)
        self.seen = [parameter.stop_gradient for parameter in self.layers[3].parameters()]
        if self.then == "inner first":
            self.untoggle_optimizer(third)
            self.untoggle_optimizer(first)
        elif self.then == "another's":
            self.untoggle_optimizer(second)
        elif self.then == "twice":
            self.untoggle_optimizer(first)
            self.untoggle_optimizer(first)


@pytest.mark.parametrize("then", ["inner first", "another's", "twice", "never"])
def test_nested_toggles_of_three_optimizers_leave_no_parameter_frozen(then: str) -> None:
    module = Phases(then)
    before = [parameter.stop_gradient for parameter in module.parameters()]
    quiet_trainer(max_epochs=1).fit(module, make_batches(2))
    assert module.seen == [False, False]
    assert [parameter.stop_gradient for parameter in module.parameters()] == before


def test_what_a_hook_unfreezes_while_an_optimizer_is_toggled_stays_unfrozen() -> None:
    module = Phases("never")

    class Unfreezes(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch:
                module.layers[1].bias.stop_gradient = False

    quiet_trainer(max_epochs=2, callbacks=[Unfreezes()]).fit(module, make_batches(1))
    assert not any(parameter.stop_gradient for parameter in module.parameters())
