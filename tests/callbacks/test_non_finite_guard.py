"""NonFiniteGuard: a NaN stops, is skipped, or rolls back, and never reaches the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from small_runs import BATCHES, Net, batches, differing, net, same, trainer, weights, whole_state

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint, NonFiniteGuard
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import CheckpointNotFoundError, ConfigurationError, NonFiniteError

BAD = 5  # the batch of the run, from 0, at which something breaks


class NaNLoss(Net):
    bad: tuple[int, ...] = (BAD,)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.progress.total_batches in self.bad else loss


class InfiniteGradient(NaNLoss):
    """The loss is finite, the head's gradient is not."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = Net.training_step(self, batch, batch_idx)
        if self.trainer.progress.total_batches in self.bad:
            zero = self.head.bias.sum() * 0.0
            loss = loss + paddle.sqrt(zero)
        return loss


class Steps(Callback):
    def __init__(self) -> None:
        self.weights: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(
            {
                name: value.numpy().copy()
                for name, value in module.named_parameters()
                if "_" not in name.split(".")[-1][:1]
            }
        )


@pytest.mark.parametrize("kind", [NaNLoss, InfiniteGradient])
def test_stop_raises_before_the_weights_change(tmp_path: Path, kind: type[Net]) -> None:
    module, steps = net(kind=kind), Steps()
    what = "the loss" if kind is NaNLoss else "the gradient of head.bias"
    with pytest.raises(NonFiniteError, match=rf"{what} is NaN or infinite in epoch 1, batch 1\. .*detect_anomaly"):
        trainer(tmp_path, [NonFiniteGuard(), steps]).fit(module, batches())
    assert len(steps.weights) == BAD
    assert all((steps.weights[-1][name] == weights(module)[name]).all() for name in steps.weights[-1])


@pytest.mark.parametrize("kind", [NaNLoss, InfiniteGradient])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_skip_changes_no_weight_and_no_optimizer_value_and_counts(
    tmp_path: Path, kind: type[Net], clip: float | None
) -> None:
    module, steps, guard = net(kind=kind), Steps(), NonFiniteGuard("skip")
    run = trainer(tmp_path, [guard, steps], gradient_clip_val=clip)
    run.fit(module, batches())
    assert all((steps.weights[BAD][name] == steps.weights[BAD - 1][name]).all() for name in steps.weights[BAD])
    assert not all((steps.weights[BAD][name] == steps.weights[BAD + 1][name]).all() for name in steps.weights[BAD])
    assert run.global_step == 2 * BATCHES
    assert run.callback_metrics["non_finite_steps"] == 1
    assert [record["non_finite_steps"] for record in run.history] == [0.0, 1.0]
    assert run.checkpoints.entries()[-1].healthy


def test_a_skipped_batch_leaves_what_a_run_without_it_has(tmp_path: Path) -> None:
    """Without dropout and BatchNorm, whose forward pass the bad batch does see."""

    class Plain(NaNLoss):
        def forward(self, x: Any) -> Any:
            return self.head(self.backbone[0](x))

    run = trainer(tmp_path, [NonFiniteGuard("skip")], max_epochs=1)
    module = net(kind=Plain)
    module.bad = (3,)
    run.fit(module, batches(6))
    expected = net(kind=Plain)
    good = [batch for index, batch in enumerate(batches(6)) if index != 3]
    expected.bad = ()
    shorter = trainer(tmp_path, max_epochs=1)
    shorter.fit(expected, good)
    one, other = whole_state(run), whole_state(shorter)
    assert set(differing(one, other)) <= {"steps", "random"}


def test_a_bad_batch_inside_an_accumulation_window_drops_the_window(tmp_path: Path) -> None:
    module, steps, guard = net(kind=NaNLoss), Steps(), NonFiniteGuard("skip")
    run = trainer(tmp_path, [guard, steps], accumulate_grad_batches=2)
    module.bad = (4,)
    run.fit(module, batches())
    assert guard.steps == 1
    assert all((steps.weights[5][name] == steps.weights[3][name]).all() for name in steps.weights[5])
    assert all(bool(paddle.isfinite(value).all()) for value in module.parameters())


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    module = net(kind=NaNLoss)
    module.bad = (1, 3, 4, 5)
    with pytest.raises(NonFiniteError, match=r"the 3\. bad step in a row"):
        trainer(tmp_path, [NonFiniteGuard("skip", max_in_a_row=3)]).fit(module, batches())


def test_roll_back_puts_back_the_newest_healthy_checkpoint_and_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    module, steps, guard = net(kind=NaNLoss), Steps(), NonFiniteGuard("roll_back")
    ema = ExponentialMovingAverage(0.5)
    seen: dict[str, Any] = {}

    class After(Callback):
        def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
            if trainer.progress.total_batches == BAD:
                seen.update(whole_state(trainer), average={n: v.numpy().copy() for n, v in ema.averages.items()})

    run = trainer(tmp_path, [guard, ema, steps, After(), ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)])
    run.fit(module, batches())
    saved = open_checkpoint(next(entry.path for entry in run.checkpoints.entries() if entry.step == 3))
    assert same(
        {n.removeprefix("weight "): v for n, v in seen.items() if n.startswith("weight ")},
        saved.tensors("model.pdparams"),
    )
    assert same(
        {n.replace("optimizer 0 ", "optimizer_0/"): v for n, v in seen.items() if n.startswith("optimizer 0 ")},
        saved.tensors("optimizer.pdopt"),
    )
    assert same(seen["average"], {n: v for n, v in saved.tensors("ema.pdparams").items() if n in seen["average"]})
    assert (run.global_step, guard.steps, guard.roll_backs) == (2 * BATCHES, 1, 1)
    assert run.callback_metrics["non_finite_roll_backs"] == 1


def test_after_a_roll_back_the_average_goes_on_from_the_one_that_was_put_back(tmp_path: Path) -> None:
    ema, steps = ExponentialMovingAverage(0.5), Steps()
    saver = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
    run = trainer(tmp_path, [NonFiniteGuard("roll_back"), ema, steps, saver])
    run.fit(net(kind=NaNLoss), batches())
    third = next(entry.path for entry in run.checkpoints.entries() if entry.step == 3)
    expected = paddle.to_tensor(open_checkpoint(third).tensors("ema.pdparams")["head.weight"])
    for weights_of_step in steps.weights[BAD:]:
        expected.lerp_(paddle.to_tensor(weights_of_step["head.weight"]), 0.5)
    assert (ema.averages["head.weight"].numpy() == expected.numpy()).all()


@pytest.mark.parametrize("action", ["skip", "roll_back"])
@pytest.mark.parametrize(
    "cut", [4, 6, 7]
)  # stopping at 5 saves a checkpoint there, which the rolled back run would find
def test_a_guarded_run_resumes_exactly(tmp_path: Path, action: Any, cut: int) -> None:
    def run(root: Path, **settings: Any) -> Trainer:
        saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
        return trainer(root, [NonFiniteGuard(action), saver], **settings)

    whole = run(tmp_path / "whole")
    whole.fit(net(kind=NaNLoss), batches())
    expected = whole_state(whole)
    run(tmp_path / "parts", max_steps=cut).fit(net(kind=NaNLoss), batches())
    resumed = run(tmp_path / "parts")
    resumed.fit(net(kind=NaNLoss), batches(), ckpt_path="last")
    assert differing(expected, whole_state(resumed)) == []
    assert resumed.callback_metrics["non_finite_steps"] == whole.callback_metrics["non_finite_steps"] == 1


def test_roll_back_without_a_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    module = net(kind=NaNLoss)
    module.bad = (1,)
    with pytest.raises(CheckpointNotFoundError, match="no healthy checkpoint in this run to roll back to"):
        trainer(tmp_path, [NonFiniteGuard("roll_back")]).fit(module, batches())


class Manual(NaNLoss):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.trainer.progress.total_batches in self.bad:
            loss = loss * float("nan")
        optimizer = self.optimizers()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.clear_grad()


def test_manual_optimization_is_guarded_by_its_gradients(tmp_path: Path) -> None:
    module, guard = net(kind=Manual), NonFiniteGuard("skip")
    trainer(tmp_path, [guard]).fit(module, batches())
    assert guard.steps == 1
    assert all(bool(paddle.isfinite(value).all()) for value in module.parameters())


def lbfgs(module: Module) -> Any:
    return paddle.optimizer.LBFGS(learning_rate=0.1, max_iter=2, parameters=module.parameters())


def test_lbfgs_can_be_stopped_and_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot hold back LBFGS"):
        trainer(tmp_path, [NonFiniteGuard("skip")]).fit(net(lbfgs), batches())
    with pytest.raises(NonFiniteError, match="the loss is NaN or infinite in epoch 1, batch 1"):
        trainer(tmp_path, [NonFiniteGuard()]).fit(net(lbfgs, kind=NaNLoss), batches())


def test_a_misspelt_action_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'roll_back'"):
        NonFiniteGuard("rollback")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="must be >= 1, got 0"):
        NonFiniteGuard(max_in_a_row=0)
