"""BackboneFinetuning: what is frozen, when it thaws, at which rate, and all of it after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from small_runs import Net, batches, differing, net, trainer, weights, whole_state

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import BackboneFinetuning, BaseFinetuning
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.optimizers import parameters_of


def only_trainable(module: Module) -> Any:
    return paddle.optimizer.AdamW(0.05, parameters=[p for p in module.parameters() if not p.stop_gradient])


def everything(module: Module) -> Any:
    return paddle.optimizer.AdamW(0.05, parameters=module.parameters())


class Notes(Callback):
    """At each epoch's end: weights, the backbone's rate, how many parameters the optimizer has."""

    def __init__(self) -> None:
        self.weights: list[Any] = []
        self.ratios: list[float] = []
        self.parameters: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self.weights.append(weights(module))
        self.ratios.append(module.backbone[0].weight.optimize_attr["learning_rate"])
        self.parameters.append(len(list(parameters_of(trainer.optimizers[0]))))


@pytest.mark.parametrize("optimizer", [only_trainable, everything])
def test_the_backbone_rests_until_its_epoch_and_then_learns_at_a_growing_rate(tmp_path: Path, optimizer: Any) -> None:
    notes = Notes()
    finetuning = BackboneFinetuning(2, backbone_initial_ratio_lr=0.25, ratio_growth=2.0, train_bn=False)
    module = net(optimizer)
    before = weights(module)
    trainer(tmp_path, [finetuning, notes], max_epochs=6).fit(module, batches())
    name = "backbone.0.weight"
    assert np.array_equal(notes.weights[0][name], before[name])
    assert np.array_equal(notes.weights[1][name], before[name])
    assert not np.array_equal(notes.weights[2][name], before[name])
    assert notes.ratios[2:] == [0.25, 0.5, 1.0, 1.0]
    assert not np.array_equal(notes.weights[0]["head.weight"], before["head.weight"])
    assert len(set(notes.parameters)) == (2 if optimizer is only_trainable else 1)


def test_a_frozen_backbone_trains_as_if_its_parameters_were_not_there(tmp_path: Path) -> None:
    module, expected = net(only_trainable), net()
    trainer(tmp_path, [BackboneFinetuning(9)]).fit(module, batches())
    for name, parameter in expected.named_parameters():
        if name.startswith("backbone.0"):
            parameter.stop_gradient = True
    expected._optimizer = only_trainable
    trainer(tmp_path).fit(expected, batches())
    assert differing(weights(module), weights(expected)) == []


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_of_a_frozen_backbone_learns_or_keeps_its_statistics(tmp_path: Path, train_bn: bool) -> None:
    module = net()
    before = weights(module)
    trainer(tmp_path, [BackboneFinetuning(9, train_bn=train_bn)]).fit(module, batches(), batches(1, seed=1))
    changed = {name for name in differing(before, weights(module)) if name.startswith("backbone")}
    norm = {"backbone.1.weight", "backbone.1.bias", "backbone.1._mean", "backbone.1._variance"}
    assert changed == (norm if train_bn else set())


def test_without_alignment_the_rate_grows_on(tmp_path: Path) -> None:
    notes = Notes()
    finetuning = BackboneFinetuning(0, backbone_initial_ratio_lr=0.5, ratio_growth=3.0, should_align=False)
    trainer(tmp_path, [finetuning, notes], max_epochs=3).fit(net(), batches())
    assert notes.ratios == [0.5, 1.5, 4.5]


def test_a_function_says_how_the_rate_of_the_backbone_grows() -> None:
    finetuning = BackboneFinetuning(1, lambda epoch: 1.0 + epoch, 0.05)  # as Lightning calls it, with the next epoch
    assert [finetuning.learning_rate_ratio(epoch) for epoch in range(1, 5)] == pytest.approx([0.05, 0.2, 1.0, 1.0])
    with pytest.raises(ConfigurationError, match=r"takes one of lambda_func and ratio_growth"):
        BackboneFinetuning(1, lambda_func=float, ratio_growth=3.0)
    with pytest.raises(ConfigurationError, match=r"lambda_func=\.\.\.\) must be a function of the epoch, got 2"):
        BackboneFinetuning(1, lambda_func=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [only_trainable, everything])
@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.parametrize("cut", [3, 4, 5, 8, 10])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, optimizer: Any, train_bn: bool, cut: int) -> None:
    def run(root: Path, **settings: Any) -> Trainer:
        return trainer(
            root, [BackboneFinetuning(1, backbone_initial_ratio_lr=0.25, train_bn=train_bn)], max_epochs=3, **settings
        )

    whole = run(tmp_path / "whole")
    whole.fit(net(optimizer), batches())
    expected = whole_state(whole)
    run(tmp_path / "parts", max_steps=cut).fit(net(optimizer), batches())
    resumed = run(tmp_path / "parts")
    resumed.fit(net(optimizer), batches(), ckpt_path="last")
    assert differing(expected, whole_state(resumed)) == []
    assert not resumed.model.backbone[0].weight.stop_gradient


def test_a_plan_that_is_written_as_lightning_calls_it_is_refused(tmp_path: Path) -> None:
    class Theirs(BaseFinetuning):
        def finetune_function(self, pl_module: Any, current_epoch: int, optimizer: Any) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"Theirs\.finetune_function\(pl_module, current_epoch, optimizer\) .*\(trainer, module, epoch\)",
    ):
        trainer(tmp_path, [Theirs()]).fit(net(), batches())


class Thaw(BaseFinetuning):
    def freeze_before_training(self, module: Module) -> None:
        self.freeze(module.head)

    def finetune_function(self, trainer: Trainer, module: Module, epoch: int) -> None:
        if epoch == 1:
            self.unfreeze_and_train(trainer, module.head, learning_rate_ratio=0.5)


def test_a_callback_of_ones_own_thaws_what_it_likes_when_it_likes(tmp_path: Path) -> None:
    notes, module = Notes(), net(only_trainable)
    before = weights(module)["head.weight"]
    trainer(tmp_path, [Thaw(), notes]).fit(module, batches())
    assert np.array_equal(notes.weights[0]["head.weight"], before)
    assert not np.array_equal(notes.weights[1]["head.weight"], before)
    assert notes.parameters == [4, 6]
    assert module.head.weight.optimize_attr["learning_rate"] == 0.5


@pytest.mark.parametrize("optimizer", [only_trainable, everything])
@pytest.mark.parametrize("cut", [3, 4, 5, 9])
def test_the_rates_it_set_survive_a_resume(tmp_path: Path, optimizer: Any, cut: int) -> None:
    whole = trainer(tmp_path / "whole", [Thaw()], max_epochs=3)
    whole.fit(net(optimizer), batches())
    expected = whole_state(whole)
    trainer(tmp_path / "parts", [Thaw()], max_epochs=3, max_steps=cut).fit(net(optimizer), batches())
    resumed = trainer(tmp_path / "parts", [Thaw()], max_epochs=3)
    resumed.fit(net(optimizer), batches(), ckpt_path="last")
    assert differing(expected, whole_state(resumed)) == []


def test_a_backbone_that_is_not_there_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Net has no such layer\. Did you mean 'backbone'\?"):
        trainer(tmp_path, [BackboneFinetuning(backbone="backbon")]).fit(net(), batches())


def test_settings_out_of_range_are_errors() -> None:
    for settings in ({"unfreeze_backbone_at_epoch": -1}, {"backbone_initial_ratio_lr": 0.0}, {"ratio_growth": -1.0}):
        with pytest.raises(ConfigurationError, match="must be >"):
            BackboneFinetuning(**settings)


def test_test_does_not_freeze(tmp_path: Path) -> None:
    module: Net = net()
    trainer(tmp_path, [BackboneFinetuning()]).test(module, batches(1), verbose=False)
    assert not module.backbone[0].weight.stop_gradient
