"""PaddleCallback: a callback of paddle.Model's, called at the same moments of a fit here."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import overridden
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError

_HERE = {
    "ModelCheckpoint": "paddlelite_trainer.callbacks.ModelCheckpoint keeps checkpoints that a run goes on from",
    "ProgBarLogger": "paddlelite_trainer.callbacks.ProgressBar shows how far the run is, and is there by default",
    "LRScheduler": "the trainer steps a schedule by itself: return it from configure_optimizers, or give it to "
    "Module.of as learning_rate",
    "VisualDL": "Trainer(logger=...) takes loggers, which a resumed run goes on with",
    "WandbCallback": "Trainer(logger=...) takes loggers, which a resumed run goes on with",
}


class PaddleCallback(Callback):
    """Calls a `paddle.callbacks.Callback` as `paddle.Model` would; `Trainer(callbacks=[...])` takes one as it is too.

        Trainer(callbacks=[PaddleCallback(paddle.callbacks.EarlyStopping("acc", patience=5, save_best_model=False))])

    Its `logs` have what was logged under our names and, in evaluations, without `val_` and `test_` too: `loss`, `acc`.
    Its `model` has `network`, `stop_training`, `save(path)` and the optimizer, no more of a paddle.Model. Numbers and
    words among its attributes are kept in checkpoints, so EarlyStopping and ReduceLROnPlateau go on counting.

    Args:
        callback: an object of a class of your own, or paddle.callbacks.EarlyStopping or ReduceLROnPlateau. Others of
            Paddle's have something here that does the same and survives: they are refused with its name.

    Raises:
        ConfigurationError: it is one of these others.
        ConfigurationTypeError: it is no callback of Paddle's.
    """

    def __init__(self, callback: Any) -> None:
        if not isinstance(callback, paddle.callbacks.Callback):
            raise ConfigurationTypeError(
                f"PaddleCallback takes an object of a paddle.callbacks.Callback, got {callback!r}"
            )
        for kind, here in _HERE.items():
            if isinstance(callback, getattr(paddle.callbacks, kind, ())):
                raise ConfigurationError(f"paddle.callbacks.{kind} is not used here: {here}")
        self.callback = callback
        self._loaded: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        return f"PaddleCallback[{type(self.callback).__qualname__}]"

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.callback).items() if _is_plain(value) and name != "params"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = dict(state)

    # -- training ------------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._meet(trainer, module)
        self._call("on_train_begin", {})
        vars(self.callback).update(self._loaded)  # what on_train_begin has reset is gone on with
        self._loaded = {}

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._call("on_train_end", _numbers(trainer, ""))

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self._call("on_epoch_begin", trainer.current_epoch, {})

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._call("on_epoch_end", trainer.current_epoch, _numbers(trainer, "train_"))

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        self._call("on_train_batch_begin", batch_idx, {})

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_written("on_train_batch_end"):  # reading the numbers waits for the device
            self._call("on_train_batch_end", batch_idx, {**_numbers(trainer, "train_"), **_loss(outputs)})

    # -- evaluations ---------------------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        self._meet(trainer, module)
        self._call("on_eval_begin", {})

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking:
            return
        rates = _rates(trainer)
        self._call("on_eval_end", _numbers(trainer, "val_"))
        for optimizer, before in zip(trainer.optimizers, rates):
            if optimizer.get_lr() != before:
                optimizer.set_lr(optimizer.get_lr())  # ReduceLROnPlateau tells the optimizer, and not its steps

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._call("on_eval_batch_begin", batch_idx, {})

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._call("on_eval_batch_end", batch_idx, {})

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._meet(trainer, module)
        self._call("on_eval_begin", {})

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._call("on_eval_end", _numbers(trainer, "test_"))

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._meet(trainer, module)
        self._call("on_predict_begin", {})

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self._call("on_predict_end", {})

    def on_predict_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._call("on_predict_batch_begin", batch_idx, {})

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._call("on_predict_batch_end", batch_idx, {})

    # ------------------------------------------------------------------------------------------------------------------
    def _meet(self, trainer: Trainer, module: Module) -> None:
        self.callback.set_model(_Model(trainer, module, type(self.callback).__name__))
        steps = getattr(trainer, "num_training_batches", None)
        epochs = trainer.max_epochs
        self.callback.set_params({"epochs": epochs, "steps": steps, "verbose": 0, "metrics": ["loss"]})

    def _is_written(self, hook: str) -> bool:
        return overridden(self.callback, hook, paddle.callbacks.Callback) is not None

    def _call(self, hook: str, *arguments: Any) -> None:
        if self._is_written(hook):
            getattr(self.callback, hook)(*arguments)


class _Model:
    """What a paddle callback finds as its `model`."""

    def __init__(self, trainer: Trainer, module: Module, of: str) -> None:
        self.trainer, self.module = trainer, module
        self.network: Any = getattr(module, "net", module)
        self._of = of
        self._stops = False

    @property
    def _optimizer(self) -> Any:
        return self.trainer.optimizers[0]

    @property
    def stop_training(self) -> bool:
        return self._stops

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self._stops = bool(stops)
        if stops:
            self.trainer.stop(f"{self._of} set model.stop_training")

    def save(self, path: str, training: bool = True) -> None:
        """`<path>.pdparams`, and `<path>.pdopt`, on rank 0, as paddle.Model writes them."""
        if self.trainer.is_global_zero:
            paddle.save(self.network.state_dict(), f"{path}.pdparams")
            if training:
                paddle.save(self._optimizer.state_dict(), f"{path}.pdopt")

    def parameters(self) -> Any:
        return self.network.parameters()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._of} asks for model.{name}: under a Trainer there is no paddle.Model, only network, stop_training, "
            "save, parameters, and module and trainer of paddlelite_trainer"
        )


def _rates(trainer: Trainer) -> list[float]:
    return [optimizer.get_lr() for optimizer in trainer.optimizers] if trainer.state == "fit" else []


def _numbers(trainer: Trainer, prefix: str) -> dict[str, Any]:
    found = dict(trainer.callback_metrics)
    short = {name.removeprefix(prefix): value for name, value in found.items() if prefix and name.startswith(prefix)}
    return {name: float(value) for name, value in {**found, **short}.items()}


def _loss(outputs: Any) -> dict[str, float]:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return {"loss": float(loss.item())} if isinstance(loss, paddle.Tensor) and loss.size == 1 else {}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, numbers.Number, str, np.generic))
