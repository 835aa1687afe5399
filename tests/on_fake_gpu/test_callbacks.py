"""Averages of half precision weights, the guard beside a loss scaler, and what both cost, on the fake accelerator."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import (
    EarlyStopping,
    ExponentialMovingAverage,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteGuard,
    ProgressBar,
    ThroughputMonitor,
)
from paddlelite_trainer.checkpoint import open_checkpoint


class Net(Module):
    def __init__(self, inf_at: int = -1) -> None:
        super().__init__()
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.ReLU(), paddle.nn.Linear(8, 3))
        self.inf_at = inf_at

    def loss(self, batch: Any) -> Any:
        return paddle.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        return loss * float("inf") if self.global_step == self.inf_at else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


def net(**settings: Any) -> Net:
    seed_everything(3)
    return Net(**settings)


def batches(count: int = 4) -> list[Any]:
    numbers = np.random.RandomState(0)
    return [
        (paddle.to_tensor(numbers.randn(8, 4).astype("float32")), paddle.to_tensor(numbers.randint(0, 3, [8])))
        for _ in range(count)
    ]


def trainer(root: Path, callbacks: list[Callback], **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        **{"max_epochs": 2, "seed": 3, "default_root_dir": root, "callbacks": callbacks, **quiet, **settings}
    )


class Masters(Callback):
    """The mean that a hand-written loop takes of the float32 masters, or of float32 weights."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Any] = {}
        self.live: list[dict[str, bytes]] = []

    def _values(self, trainer: Trainer, module: Module) -> dict[str, Any]:
        masters = trainer.optimizers[0]._master_weights
        return {name: masters.get(value.name, value).astype("float32") for name, value in module.named_parameters()}

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self.average = {name: value.clone() for name, value in self._values(trainer, module).items()}

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        share = paddle.full([], 1 - self.decay, dtype="float32")
        for name, value in self._values(trainer, module).items():
            self.average[name] = paddle.lerp(self.average[name], value, share)
        self.live.append({name: value.numpy().tobytes() for name, value in module.state_dict().items()})


def bits(tensors: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "16-true"])
def test_the_average_is_that_of_the_float32_masters_and_validation_leaves_the_weights_alone(
    tmp_path: Path, precision: str
) -> None:
    ema, by_hand = ExponentialMovingAverage(0.9), Masters(0.9)
    run = trainer(tmp_path, [ema, by_hand], precision=precision)
    module = net()
    run.fit(module, batches(), batches(1))
    assert bits(ema.averages) == bits(by_hand.average)
    assert {str(value.dtype).rpartition(".")[2] for value in ema.averages.values()} == {"float32"}
    assert bits(module.state_dict()) == by_hand.live[-1]
    saved = open_checkpoint(tmp_path / "version_0/latest")
    assert {name: array.tobytes() for name, array in saved.tensors("ema.pdparams").items()} == bits(by_hand.average)
    assert {name: array.tobytes() for name, array in saved.tensors("model.pdparams").items()} == by_hand.live[-1]


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_a_resumed_average_is_the_same(tmp_path: Path, precision: str, cut: int) -> None:
    whole, first, second = (ExponentialMovingAverage(0.9) for _ in range(3))
    trainer(tmp_path / "whole", [whole], precision=precision).fit(net(), batches(), batches(1))
    trainer(tmp_path / "parts", [first], precision=precision, max_steps=cut).fit(net(), batches(), batches(1))
    trainer(tmp_path / "parts", [second], precision=precision).fit(net(), batches(), batches(1), ckpt_path="last")
    assert bits(second.averages) == bits(whole.averages)


@pytest.mark.parametrize("precision", ["32-true", "16-true"])
def test_moving_and_swapping_the_average_copies_nothing_to_the_host(tmp_path: Path, precision: str) -> None:
    ema, module = ExponentialMovingAverage(0.9), net()
    run = trainer(tmp_path, [ema], precision=precision)
    run.fit(module, batches())
    before = fake_gpu.device_to_host_copies()
    ema.move(run, module, 0.1)
    ema.put_averages_in_place(module, ema.averages)
    ema.put_live_weights_back()
    assert fake_gpu.device_to_host_copies() == before


def test_with_a_loss_scaler_the_guard_looks_at_losses_and_leaves_gradients_to_the_scaler(tmp_path: Path) -> None:
    guard = NonFiniteGuard("skip")
    run = trainer(
        tmp_path, [guard], precision="16-mixed", precision_options={"scaler_options": {"init_loss_scaling": 2.0**40}}
    )
    run.fit(net(), batches())
    assert guard.steps == 0  # the first scales overflow float16, which is no business of the guard's
    module = net(inf_at=3)
    guarded = trainer(tmp_path, [guard], precision="16-mixed")
    guarded.fit(module, batches())
    assert guard.steps == 1
    assert all(bool(paddle.isfinite(value).all().item()) for value in module.parameters())


class CopiesToTheHost(Callback):
    """Counts them from each batch's start to the next one's."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.counts.append(fake_gpu.device_to_host_copies())


def copies_a_batch(root: Path, callbacks: list[Callback], module: Module, **settings: Any) -> list[int]:
    counted = CopiesToTheHost()
    bare = {"max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1000}
    trainer(root, [*callbacks, counted], **{**bare, **settings}).fit(module, batches(16), batches(1))
    return [after - before for before, after in pairwise(counted.counts)]


def test_a_guarded_step_costs_one_copy_to_the_host(tmp_path: Path) -> None:
    plain = copies_a_batch(tmp_path, [], net())
    assert copies_a_batch(tmp_path, [NonFiniteGuard("skip")], net()) == [count + 1 for count in plain]
    assert copies_a_batch(tmp_path, [ExponentialMovingAverage(0.9)], net()) == plain


class Logs(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, prog_bar=True)
        self.log("twice", loss.detach() * 2, on_step=True, on_epoch=True)
        self.log("square", loss * loss, on_step=False, on_epoch=True)
        return loss


def test_a_logging_step_copies_once_to_the_host_and_the_steps_between_never(tmp_path: Path) -> None:
    plain = copies_a_batch(tmp_path, [], net())  # 2.6 copies in its own cross_entropy
    watching = [
        *(ModelCheckpoint(monitor="val_loss", every_n_train_steps=100), EarlyStopping("val_loss"), LRMonitor()),
        *(ThroughputMonitor(), ProgressBar()),
    ]
    seed_everything(3)
    everything = {"enable_checkpointing": True, "logger": True, "log_every_n_steps": 5}
    found = copies_a_batch(tmp_path, watching, Logs(), **everything)
    assert [own - bare for own, bare in zip(found, plain)] == [0, 0, 0, 0, 1] * 3
