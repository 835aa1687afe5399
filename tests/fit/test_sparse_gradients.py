"""Embedding(sparse=True): clipping, watching, guarding, accumulating and resuming know its gradients, or refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, Module
from paddlelite_trainer.callbacks import GradientNormWatch, ModelCheckpoint, NonFiniteGuard
from paddlelite_trainer.errors import ConfigurationError, NonFiniteError


def batches(count: int = 6) -> list[Any]:
    numbers = np.random.RandomState(0)
    return [
        [paddle.to_tensor(numbers.randint(0, 20, (8, 3))), paddle.to_tensor(numbers.randint(0, 3, 8))]
        for _ in range(count)
    ]


class Recommends(Module):
    """An embedding and a layer on top, always with the same initial weights."""

    def __init__(self, sparse: bool = True, optimizer: str = "Adam", grad_clip: Any = None) -> None:
        super().__init__()
        self.table, self.top = paddle.nn.Embedding(20, 4, sparse=sparse), paddle.nn.Linear(4, 3)
        self.optimizer, self.grad_clip = optimizer, grad_clip
        numbers = np.random.RandomState(7)
        for parameter in self.parameters():
            parameter.set_value(numbers.randn(*parameter.shape).astype("float32"))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        ids, labels = batch
        return paddle.nn.functional.cross_entropy(self.top(self.table(ids).mean(1)), labels)

    def configure_optimizers(self) -> Any:
        lazy = {"lazy_mode": True} if self.optimizer == "Adam" and self.table._sparse else {}
        make = getattr(paddle.optimizer, self.optimizer)
        return make(0.05, parameters=self.parameters(), grad_clip=self.grad_clip, **lazy)


def trained(module: Module, data: Any = None, **settings: Any) -> dict[str, Any]:
    quiet_trainer(max_epochs=2, **settings).fit(module, data if data is not None else batches())
    return weights_of(module)


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_clipping_by_norm_is_that_of_the_optimizer_s_own_clip(optimizer: str) -> None:
    ours = trained(Recommends(optimizer=optimizer), gradient_clip_val=0.05)
    close(ours, trained(Recommends(optimizer=optimizer, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.05))))


def test_clipping_by_norm_is_that_of_the_dense_layer() -> None:
    dense = trained(Recommends(sparse=False, optimizer="SGD"), gradient_clip_val=0.05)
    close(trained(Recommends(optimizer="SGD"), gradient_clip_val=0.05), dense)
    assert not same_weights(dense, trained(Recommends(sparse=False, optimizer="SGD")))


def test_clipping_by_value_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r'"value" cannot clip .*sparse gradient .*\[20, 4\].*sparse=True'):
        trained(Recommends(), gradient_clip_val=0.05, gradient_clip_algorithm="value")


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_norm_that_is_watched_is_that_of_the_dense_layer(per_layer: bool) -> None:
    norms = []
    for sparse in (True, False):
        watch = GradientNormWatch(every_n_steps=1, per_layer=per_layer)
        trainer = quiet_trainer(callbacks=[watch], log_every_n_steps=1)
        trainer.fit(Recommends(sparse, "SGD"), batches(1))
        norms.append({name: value for name, value in trainer.callback_metrics.items() if "grad_norm" in name})
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert len(norms[0]) == (3 if per_layer else 1)


@pytest.mark.parametrize("action", ["stop", "skip", "roll_back"])
def test_the_guard_lets_finite_sparse_gradients_pass(action: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    guarded = trained(Recommends(), callbacks=[NonFiniteGuard(action)], **settings)
    assert same_weights(guarded, trained(Recommends()))


def test_the_guard_names_a_sparse_gradient_that_is_not_finite() -> None:
    class Spoils(Recommends):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rows = self.table(batch[0]).mean(1)
            rows.register_hook(lambda gradient: gradient * float("nan"))
            return self.top(rows).mean()

    with pytest.raises(NonFiniteError, match=r"gradient of table\.weight"):
        trained(Spoils(), callbacks=[NonFiniteGuard("stop")])


def test_a_short_last_window_weighs_its_batches_as_with_a_dense_layer() -> None:
    class Endless(paddle.io.IterableDataset):  # of a length that nobody knows, so the window is rescaled at its end
        def __iter__(self) -> Any:
            numbers = np.random.RandomState(0)
            for _ in range(40):
                yield numbers.randint(0, 20, 3), numbers.randint(0, 3)

    def weights(sparse: bool) -> dict[str, Any]:
        loader = paddle.io.DataLoader(Endless(), batch_size=8)
        return trained(Recommends(sparse, "SGD"), loader, accumulate_grad_batches=3)

    close(weights(True), weights(False))


class Interrupts(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == 5:
            raise RuntimeError("planned")


class Accumulates(Recommends):
    """Manual optimization that steps every third batch, so gradients wait where a checkpoint is written."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.clear_grad()


@pytest.mark.parametrize("make", [Recommends, Accumulates])
def test_a_resumed_run_ends_with_the_same_bits(make: Any, tmp_path: Path) -> None:
    undisturbed = trained(make())
    settings: dict[str, Any] = {
        "enable_checkpointing": True,
        "default_root_dir": tmp_path,
        "run_name": "run",
        "max_epochs": 2,
    }
    saves = ModelCheckpoint(every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="planned"):
        quiet_trainer(callbacks=[Interrupts(), saves, SavesEachBatch()], **settings).fit(make(), batches())
    resumed = make()
    trainer = quiet_trainer(**settings)
    trainer.fit(resumed, batches(), ckpt_path="last")
    assert same_weights(undisturbed, weights_of(resumed))


class SavesEachBatch(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint("now", replace=True)
