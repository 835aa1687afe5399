"""Module: what the user writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import paddle

from .callback import HOOKS as CALLBACK_HOOKS
from .callback import Callback
from .errors import ConfigurationError, ConfigurationTypeError, NoTrainerError
from .forward_inputs import ForwardInputs
from .hyperparameters import HyperParameters, constructed, keep
from .layers import statistics_of
from .logs import Logs
from .machine.device import refuse_static_mode
from .machine.stand_ins import StandIn
from .module_hooks import ModuleHooks
from .of_network import MADE_BY, MadeOfNetwork, made_again

if TYPE_CHECKING:
    from .reporting.log_target import LogTarget
    from .trainer import Trainer

ModuleType = TypeVar("ModuleType", bound="Module")


class RunOfModule(Protocol):
    """What a module needs of the fit or evaluation that it takes part in."""

    target: LogTarget
    optimization: Any


class Module(Logs, ModuleHooks, MadeOfNetwork, paddle.nn.Layer):
    """A Paddle layer that knows how to train itself; Trainer calls its steps and hooks.

    A whole one, of which `training_step` and `configure_optimizers` are what a fit needs:

        class Classifier(Module):
            def __init__(self, hidden=64, lr=1e-3):
                super().__init__()
                self.save_hyperparameters()
                layers = paddle.nn.Linear(64, hidden), paddle.nn.ReLU(), paddle.nn.Linear(hidden, 10)
                self.net = paddle.nn.Sequential(*layers)

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = paddle.nn.functional.cross_entropy(self(x), y)
                self.log("train_loss", loss)
                return loss

            def validation_step(self, batch, batch_idx):
                x, y = batch
                self.log("val_acc", paddle.metric.accuracy(self(x), y.reshape([-1, 1])), prog_bar=True)

            def configure_optimizers(self):
                return paddle.optimizer.AdamW(self.hparams.lr, parameters=self.parameters())
    """

    automatic_optimization: bool = True
    """False: training_step itself calls `manual_backward` and steps the optimizers."""
    strict_loading: bool = True
    """False: load_from_checkpoint, and evaluations with a `ckpt_path`, take the weights that fit."""

    def __init__(self) -> None:
        refuse_static_mode(f"{type(self).__name__}()")  # its parameters would be a program's variables
        super().__init__()
        self._trainer: Trainer | None = None
        self._run: RunOfModule | None = None
        self.log_target: LogTarget | None = None
        self.hparams = HyperParameters()
        """What `save_hyperparameters` has kept; the keys are attributes too."""
        self.hparams_initial = HyperParameters()
        """As `save_hyperparameters` was given them, whatever `hparams` becomes."""
        self.hparams_name: str | None = None
        """The argument that was given to `save_hyperparameters` whole: a dict, Namespace or dataclass."""
        self.forward_inputs = ForwardInputs()
        """What `forward` is called with, for an export."""
        self._logs_hparams = True
        self._has_configured_model = False

    # -- what you write ------------------------------------------------------------------------------------------------
    if TYPE_CHECKING:
        forward: Callable[..., Any]  # of any signature
    else:

        def forward(self, x=None, *more):
            """The network itself: what `self(x)`, `predict` and `paddle.jit.save` call.

            Raises:
                ConfigurationError: the class has none of its own, and it is called.
            """
            raise ConfigurationError(
                f"{type(self).__name__} has no forward: write forward(self, x), which self(x), trainer.predict and "
                "paddle.jit.save call. For trainer.predict alone predict_step(self, batch, batch_idx) will do."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss, a scalar tensor still attached to the graph, or a dict that has it under "loss".

        `batch` is what the loader gave, moved to the device. In manual optimization anything may be returned.
        """
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Called without gradients, in eval mode; add `dataloader_idx=0` where there are several loaders."""
        raise NotImplementedError

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """As validation_step, for `trainer.test`."""
        raise NotImplementedError

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What `trainer.predict` collects for a batch; by default forward of the batch, or of its first entry."""
        return self(batch[0] if isinstance(batch, (list, tuple)) else batch)

    def configure_model(self) -> None:
        """Build layers here rather than in `__init__`; called once, after `setup` and before weights come.

        In a fit with strategy="sharding_stage3" large weights are cut over the ranks as they are made, so that no rank
        ever has all of them: see docs/many-devices.md.
        """

    def configure_optimizers(self) -> Any:
        """Return an optimizer, (optimizer, scheduler), lists of them, a dict, or None to train nothing.

        A dict has "optimizer" and "lr_scheduler", which is a schedule or a dict: {"scheduler": ..., "interval": "epoch"
        or "step", "frequency": 1, "monitor": ..., "strict": True, "name": ...}. All forms: docs/optimization.md.
        """
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that this module wants; one of a class that the Trainer has too replaces the Trainer's."""
        return []

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Override to clip in your own way; gradients are unscaled when it is called."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def backward(self, loss: Any, retain_graph: bool = False) -> None:  # type: ignore[override]
        """Override to do it in your own way; `loss` is scaled where the precision asks for it."""
        loss.backward(retain_graph=retain_graph)

    def lr_scheduler_step(self, scheduler: Any, metric: float | None) -> None:
        """Override to step schedulers in your own way."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def train_dataloader(self) -> Any:
        """The training data, where `fit` is given none."""
        raise NotImplementedError

    def val_dataloader(self) -> Any:
        """The validation data, a loader or a list of several, where `fit` and `validate` are given none."""
        raise NotImplementedError

    def test_dataloader(self) -> Any:
        """The test data, where `test` is given none."""
        raise NotImplementedError

    def predict_dataloader(self) -> Any:
        """The data to predict, where `predict` is given none."""
        raise NotImplementedError

    # -- what you call -------------------------------------------------------------------------------------------------
    def save_hyperparameters(
        self, *names: Any, ignore: str | tuple[str, ...] | list[str] = (), logger: bool = True
    ) -> None:
        """Keep the arguments of `__init__`, all or those named, in `self.hparams` and in every checkpoint.

        Call it in `__init__` after `super().__init__()`. Instead of names it takes one dict, Namespace or dataclass of
        hyper-parameters. Layers, functions and sets cannot be stored; name them in `ignore`. Configuration objects
        come back as dicts whose keys are attributes too, paths as strings. With `logger=False` they are not logged.

        Raises:
            ConfigurationError: one cannot be stored, or there is no such argument.
        """
        if "hparams" not in vars(self):
            raise ConfigurationError(
                f"call super().__init__() in {type(self).__name__}.__init__ before save_hyperparameters()"
            )
        self.hparams_name = keep(self, inspect.currentframe(), names, ignore)
        self._logs_hparams = self._logs_hparams and logger

    @property
    def hparams_to_log(self) -> dict[str, Any]:
        """What loggers are given; nothing after `save_hyperparameters(logger=False)`."""
        return dict(self.hparams) if self._logs_hparams else {}

    @classmethod
    def load_from_checkpoint(
        cls: type[ModuleType],
        checkpoint_path: str | Path,
        *,
        map_location: Any = None,
        strict: bool | None = None,
        **arguments: Any,
    ) -> ModuleType:
        """A module built from a checkpoint's hyper-parameters, `arguments` winning over them, with its weights.

        `checkpoint_path`: a checkpoint directory, a link such as `runs/version_0/best`, or a `.pdparams` file of any
        Paddle tool.

        `strict=False` takes the weights that fit, by default as the module's `strict_loading` says. `map_location` is
        accepted for Lightning's sake: weights go to the device that the new module is on.

        Raises:
            CheckpointError: it is not there, damaged, does not fit, or asks for code; see errors.py.
            ConfigurationTypeError: `strict` is no bool.
        """
        from .run.weights import load_weights_at, state_at

        if strict is not None and not isinstance(strict, bool):
            raise ConfigurationTypeError(f"load_from_checkpoint(strict=...) must be a bool or None, got {strict!r}")
        saved = state_at(checkpoint_path)
        kept, whole = (saved["hyper_parameters"], saved.get("hyper_parameters_name")) if saved else ({}, None)
        module = made_again(cls, kept, arguments) if MADE_BY in kept else constructed(cls, kept, whole, arguments)
        module.configure_once()
        if saved is not None:
            module.on_load_checkpoint(saved)
        load_weights_at(module, checkpoint_path, strict=module.strict_loading if strict is None else strict)
        return module

    def optimizers(self) -> Any:
        """The optimizer, or the list of several, for manual optimization."""
        wrapped = self._optimization.manual_optimizers
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def lr_schedulers(self) -> Any:
        """The scheduler, the list of several, or None; in manual optimization you step them."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def manual_backward(self, loss: Any, *, retain_graph: bool = False) -> None:
        """`loss.backward()`, scaled where the precision asks for it; `retain_graph` where another follows on it."""
        self._optimization.manual_backward(loss, retain_graph)

    def clip_gradients(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> Any:
        """Clip the optimizer's gradients in place by "norm" (all together) or "value"; returns the former norm.

        `paddle.nn.utils.clip_grad_norm_` and `clip_grad_value_` do it.
        """
        return self._optimization.clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Let only this optimizer's parameters collect gradients, until `untoggle_optimizer`."""
        self._optimization.toggle(optimizer)

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Let all parameters collect gradients again that `toggle_optimizer` has held back."""
        self._optimization.untoggle()

    def freeze(self: ModuleType) -> ModuleType:
        """Stop all parameters from learning and go to eval mode; returns the module."""
        for parameter in self.parameters():
            parameter.stop_gradient = True
        self.eval()
        return self

    def unfreeze(self: ModuleType) -> ModuleType:
        """Let all parameters learn and go to train mode; the running statistics of BatchNorm stay statistics."""
        statistics = {id(value) for value in statistics_of(self).values()}
        for parameter in self.parameters():
            if id(parameter) not in statistics:
                parameter.stop_gradient = False
        self.train()
        return self

    def print(self, *values: Any, **options: Any) -> None:
        """print() on rank 0 that does not tear the progress bar."""
        self.trainer.print(*values, **options)

    def all_gather(self, data: Any) -> Any:
        """Tensors, arrays and numbers of nested data over all ranks, [world_size, ...] each, without gradients.

        All ranks must call it, with the same keys, shapes and types. With one process data come back as they are.

        Raises:
            RankFailedError: they are not the same.
        """
        return self.trainer.ranks.all_gather(data)

    # -- where you are -------------------------------------------------------------------------------------------------
    @property
    def trainer(self) -> Trainer:
        """The Trainer of the run that this module takes part in, or took part in last.

        Raises:
            NoTrainerError: it has taken part in none.
        """
        if self._trainer is None:
            raise NoTrainerError(
                "this module has no trainer: self.trainer exists during and after fit, validate, test and predict"
            )
        return self._trainer

    @property
    def _optimization(self) -> Any:
        """The optimizers of the fit that this module takes part in."""
        if self._run is None or self._run.optimization is None:
            raise NoTrainerError(
                "this module is not being fitted: optimizers, clipping and backward by hand exist during fit"
            )
        return self._run.optimization

    def configure_once(self, building: AbstractContextManager[Any] | None = None) -> None:
        """Call `configure_model`, within `building`, unless this module's has been called."""
        if not self._has_configured_model:
            with building or nullcontext():
                self.configure_model()
            self._has_configured_model = True

    @property
    def is_in_a_run(self) -> bool:
        """Whether a fit or evaluation that this module takes part in has not ended yet."""
        return self._trainer is not None and self._trainer.runs(self._run)

    def attach_run(self, shown: Any, run: RunOfModule) -> Callable[[], None]:
        """Called where a run begins, with what `self.trainer` is to be.

        Calling the result gives a run that this one interrupts its module back.
        """
        before = self._trainer, self._run
        self._trainer, self._run, self.log_target = shown, run, run.target

        def put_back() -> None:
            if before[0] is not None and before[0].runs(before[1]):
                self._trainer, self._run = before
                self.log_target = before[1].target if before[1] is not None else None

        return put_back

    def lend_to(self, run: RunOfModule) -> Callable[[], None]:
        """Let `self.log` go to another run for a while, whatever has run before; calling the result ends that."""
        before, self._run = self._run, run

        def put_back() -> None:
            self._run = before

        return put_back

    @property
    def current_epoch(self) -> int:
        """The trainer's `current_epoch`; 0 without one."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """The trainer's `global_step`; 0 without one."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """The trainer's `global_rank`; 0 without one."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def device(self) -> Any:
        """The place of the parameters."""
        return next((parameter.place for parameter in self.parameters()), paddle.CPUPlace())

    @property
    def local_rank(self) -> int:
        """The trainer's `local_rank`; 0 without one."""
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def dtype(self) -> Any:
        """The type of the parameters."""
        return next((parameter.dtype for parameter in self.parameters()), paddle.get_default_dtype())

    @property
    def loggers(self) -> list[Any]:
        """The trainer's loggers; none without one."""
        return list(self._trainer.loggers) if self._trainer is not None else []

    @property
    def logger(self) -> Any:
        """The first of the trainer's loggers, or None."""
        return self._trainer.logger if self._trainer is not None else None

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled module is on its own: the trainer, its data and its open files do not come along.
        state = {**self.__dict__, "_trainer": None, "_run": None, "log_target": None}
        state["forward_inputs"] = ForwardInputs()
        if isinstance(state.get("forward"), StandIn):  # it is this module's alone
            del state["forward"]
        return state


# Paddle's translator is not to look into it: what is logged in a forward belongs to no program.
paddle.jit.not_to_static(Module.log)


def is_written(module: Module, method: str) -> bool:
    """Whether the user's class, or the instance, has its own version of a Module method; None is none."""
    own = getattr(module, method)
    return own is not None and getattr(own, "__func__", None) is not getattr(Module, method)


HOOKS = (CALLBACK_HOOKS - {"on_save_point"}) | {
    *("training_step", "validation_step", "test_step", "predict_step"),
    *("configure_optimizers", "configure_callbacks", "configure_gradient_clipping", "lr_scheduler_step"),
    *("prepare_data", "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    *("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device"),
    "backward",
    "configure_model",
}
