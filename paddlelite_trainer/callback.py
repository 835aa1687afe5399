"""Callback: every hook a run calls, in call order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .data.batch_size import batch_size_of as batch_size_of  # for callbacks
from .errors import ConfigurationError, NoTrainerError, did_you_mean
from .logs import Logs
from .names_elsewhere import refuse_class as refuse_class
from .reporting.terminal import from_here as from_here
from .reporting.terminal import imports_without_a_draw as imports_without_a_draw  # these for callbacks
from .reporting.terminal import is_terminal as is_terminal
from .reporting.terminal import print_line as print_line
from .reporting.terminal import table as table

if TYPE_CHECKING:
    from .checkpoint import Entry
    from .module import Module
    from .reporting.log_target import LogTarget
    from .trainer import Trainer

Pins = Mapping[str, Sequence[str]]
"""{pin name: names of the checkpoints it keeps, best first}; an empty sequence removes the pin."""


Reason = Literal["train_batch", "validation", "train_epoch", "lr_drop", "exception", "stop"]


class SavePoint:
    """A moment at which a checkpoint may be taken, and what a callback decides from.

    `reason` is "train_batch" after any batch but an epoch's last, "validation" after a batch that was followed by
    validation, "train_epoch" after an epoch's end, "lr_drop" just before a scheduler lowers the learning rate in one
    jump, "exception" when user code raised (the state is that of the last completed batch) and "stop" when the run
    ends within an epoch. Only the fit makes it.

    Args:
        reason: one of these.
        candidate: gives the checkpoint as it would be; asked once, when a callback looks.
        entries: gives the checkpoints on disk, oldest first.
        is_added: whether an undisturbed run has no such moment, as it comes of an exception or a signal.
    """

    def __init__(
        self,
        reason: Reason,
        candidate: Callable[[], Entry],
        entries: Callable[[], Sequence[Entry]],
        is_added: bool = False,
    ) -> None:
        self.reason, self.is_added = reason, is_added
        self._candidate, self._entries = candidate, entries

    @functools.cached_property
    def candidate(self) -> Entry:
        """The checkpoint that would be written now: its name, step, epoch and metrics."""
        return self._candidate()

    @property
    def entries(self) -> Sequence[Entry]:
        """Checkpoints on disk, oldest first; one that is still being written is waited for."""
        return self._entries()


class Callback(Logs):
    """Base class of callbacks; override the hooks you need, the others cost nothing.

    Callbacks are called in list order, and the module's hook of the same name after them; at an epoch's start and end
    those with `comes_last_at_epoch_start`, `comes_last_at_epoch_end` after all others. On several ranks `on_save_point`
    and `on_save_checkpoint` are called on rank 0 alone, the others on every rank. What must survive a crash goes into
    `state_dict`, as nested dicts, lists, numbers, strings, bytes, arrays and tensors.

        class PrintLoss(Callback):
            def on_train_epoch_end(self, trainer, module):
                print(trainer.current_epoch, trainer.callback_metrics["train_loss"])
    """

    comes_last_at_epoch_end: bool = False
    """Whether on_train_epoch_end comes after all others', whose values are in callback_metrics then."""
    comes_last_at_epoch_start: bool = False
    """Whether on_train_epoch_start comes after all others' and the module's, which may set learning rates there."""

    @property
    def sets_learning_rates(self) -> bool:
        """Whether it sets the rates from now on, so that what schedules do has no effect."""
        return False

    _module: Module | None = None

    @property
    def log_target(self) -> LogTarget | None:  # type: ignore[override]
        """Where what is logged goes at this moment: with what the module logs in whose run this takes part.

        Raises:
            NoTrainerError: it takes part in no run now.
        """
        if self._module is None:
            raise NoTrainerError(
                f"{type(self).__name__} logs while it takes part in no run: it can in its hooks during fit, validate, "
                "test and predict"
            )
        return self._module.log_target

    def attach_module(self, module: Module) -> Callable[[], None]:
        """Called where a run begins; calling the result gives a run that this one interrupts its module back."""
        before, self._module = self._module, module

        def put_back() -> None:
            self._module = before
            if before is None:
                del self._module  # so that copies are as they were

        return put_back

    @property
    def state_key(self) -> str:
        """The name this callback's state goes by in a checkpoint; override it where one class is used several times."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""

    # -- the run -------------------------------------------------------------------------------------------------------
    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called first; stage is "fit", "validate", "test" or "predict"."""

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Called with the trainer's part of the checkpoint before any of it is restored."""

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Called when everything is restored, before sanity validation."""

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the validation batches that are tried before the first epoch."""

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the sanity check, whose metrics are dropped."""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the first epoch of this process, in a resumed run too."""

    # -- each epoch and batch ------------------------------------------------------------------------------------------
    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called at an epoch's start; not again when a run resumes inside the epoch."""

    def on_train_epoch_resume(self, trainer: Trainer, module: Module) -> None:
        """Called in its place where a run resumes inside an epoch, before its data are read.

        Set again here what `on_train_epoch_start` has set on the data. Everything that a checkpoint holds is restored,
        and what is drawn here changes nothing.
        """

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
        """Called with the batch on its device; return -1 to end the epoch here, with its validation."""

    def on_before_backward(self, trainer: Trainer, module: Module, loss: Any) -> None:
        """Called with the loss as `training_step` returned it, before it is divided by the window and scaled."""

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        """Called after each batch's backward, with the gradients as they are so far."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        """Called at the end of an accumulation window with unscaled gradients, before they are clipped."""

    def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        """Called after the optimizer's step, before its gradients are dropped."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after the step, with what `training_step` returned, detached from the graph."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after an epoch's batches, its validation and its schedules; its metrics are there."""

    def on_save_point(self, trainer: Trainer, module: Module, save_point: SavePoint) -> Pins | None:
        """Return pins to have a checkpoint written now, None for none; on rank 0. See docs/architecture.md, 6.3."""

    # -- validation, test, predict -------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Called before a validation, with gradients off and layers in eval mode."""

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called after `on_validation_start`, before the first loader is read."""

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with what `validation_step` returned for the batch."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the last batch of the last loader; what is logged here counts for this epoch."""

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Called after a validation; layers are in their former modes afterwards."""

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Called before a test, with gradients off and layers in eval mode."""

    def on_test_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called after `on_test_start`, before the first loader is read."""

    def on_test_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with what `test_step` returned for the batch."""

    def on_test_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the last batch of the last loader; what is logged here counts for this epoch."""

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Called after a test; layers are in their former modes afterwards."""

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Called before a prediction, with gradients off and layers in eval mode."""

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called after `on_predict_start`, before the first loader is read."""

    def on_predict_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called with what `predict_step` returned for the batch."""

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the last batch of the last loader."""

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Called after a prediction; layers are in their former modes afterwards."""

    # -- the end -------------------------------------------------------------------------------------------------------
    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the last epoch; not where a signal or an error ends the training."""

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """Called when the fit is over, after `on_train_end`; not where a signal or an error ends it."""

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        """Called instead of everything else when a finished or stopped run is started again; its state is restored.

        Callbacks that have an `on_fit_end` come after those that have none, as they do when a fit ends.
        """

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Called with the trainer's part of a checkpoint before it is written; add to it under a key of your own."""

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Called when anything raises, before the exception leaves `fit`."""

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called last, after an error too."""


HOOKS = frozenset(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


def overridden(instance: object, hook: str, base: type) -> Callable[..., Any] | None:
    """The instance's own version of a hook, or None where it inherits the empty one."""
    method: Callable[..., Any] | None = getattr(instance, hook, None)
    if method is None or getattr(method, "__func__", None) is getattr(base, hook, None):
        return None
    return method


def keyed(callbacks: Sequence[Callback]) -> list[tuple[str, Any]]:
    """Callbacks with their state keys; the second of one key is `key#2`, and so on."""
    seen: dict[str, int] = {}
    pairs = []
    for callback in callbacks:
        key = callback.state_key
        seen[key] = seen.get(key, 0) + 1
        pairs.append((key if seen[key] == 1 else f"{key}#{seen[key]}", callback))
    return pairs


_MODES = (
    "a layer stays in the mode that you have put it in, and an evaluation puts every mode back; "
    "set modes in on_train_epoch_start"
)
NOT_CALLED = {
    "optimizer_step": "return a scheduler of interval 'step' from configure_optimizers for warm-up, "
    "or set automatic_optimization = False and step by hand",
    "optimizer_zero_grad": "gradients are dropped after each step; set automatic_optimization = False to do it by hand",
    "configure_sharded_model": "write configure_model",
    "training_epoch_end": "write on_train_epoch_end, and keep outputs in a list of your own",
    "validation_epoch_end": "write on_validation_epoch_end, and keep outputs in a list of your own",
    "test_epoch_end": "write on_test_epoch_end, and keep outputs in a list of your own",
    "predict_epoch_end": "write on_predict_epoch_end",
    "training_step_end": "do it at the end of training_step",
    "validation_step_end": "do it at the end of validation_step",
    "test_step_end": "do it at the end of test_step",
    "on_epoch_start": "write on_train_epoch_start",
    "on_epoch_end": "write on_train_epoch_end",
    "on_batch_start": "write on_train_batch_start",
    "on_batch_end": "write on_train_batch_end",
    "on_pretrain_routine_start": "write on_fit_start",
    "on_pretrain_routine_end": "write on_fit_start",
    "on_init_start": "write setup",
    "on_init_end": "write setup",
    **{f"on_{stage}_model_{mode}": _MODES for stage in ("validation", "test", "predict") for mode in ("eval", "train")},
    "on_validation_model_zero_grad": "gradients stay as they are over a validation; drop them in on_validation_start",
    "on_configure_sharded_model": "write configure_model",
    "on_post_move_to_device": "do it in setup, when the module is on its device",
    "on_train_dataloader": "do it in train_dataloader",
    "on_val_dataloader": "do it in val_dataloader",
    "on_test_dataloader": "do it in test_dataloader",
    "on_predict_dataloader": "do it in predict_dataloader",
    "on_keyboard_interrupt": "write on_exception",
    "on_hpc_save": "write on_save_checkpoint",
    "on_hpc_load": "write on_load_checkpoint",
    "tbptt_split_batch": "split the batch in training_step, with automatic_optimization = False",
    "get_progress_bar_dict": "log with prog_bar=True",
}
"""What Lightning calls, or once called, and a Trainer here does not: the remedy by name."""


def refuse_what_is_never_called(instance: object, base: type) -> None:
    """Raise ConfigurationError where a class overrides a Lightning method that would silently have no effect here.

    In a callback or a datamodule only names of hooks are looked at: `backward` may be a method of its own.
    """
    is_module = hasattr(base, "training_step")
    for name, remedy in NOT_CALLED.items():
        method = getattr(type(instance), name, None)
        if not is_module and not name.startswith("on_"):
            continue
        if callable(method) and method is not getattr(base, name, None):  # Paddle's own Layer has a backward
            raise ConfigurationError(f"{type(instance).__name__}.{name} is never called here: {remedy}.")


def refuse_misspelt_hooks(instance: object, base: type, known: frozenset[str]) -> None:
    """Raise ConfigurationError for a public method that is almost a hook, which its class does not define."""
    refuse_what_is_never_called(instance, base)
    inherited = set(dir(base))
    for name in dir(type(instance)):
        if name.startswith("_") or name in inherited or not callable(getattr(type(instance), name, None)):
            continue
        # Its own class: one above may have the hook that was meant to be replaced.
        owner: Any = next((cls for cls in type(instance).__mro__ if name in vars(cls)), base)
        close = [hook for hook in known if hook not in vars(owner)]
        hint = did_you_mean(name, close) if name.startswith("on_") else _only_a_slip(name, close)
        if hint:
            raise ConfigurationError(
                f"{type(instance).__name__}.{name} would never be called: it is not a hook.{hint} "
                "A method of your own needs a name that is further from a hook's."
            )


def refuse_wrong_signature(instance: object, hook: str, method: Callable[..., Any], base: type, *more: str) -> None:
    """Raise ConfigurationError where a hook cannot be called with what it will be given.

    `more` are arguments that it is given beyond those of the base class's.
    """
    expected = [
        name for name in inspect.signature(getattr(base, hook)).parameters if name not in ("self", "dataloader_idx")
    ] + list(more)
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a callable without one is taken at its word
        return
    try:
        signature.bind(*expected)
    except TypeError:
        raise ConfigurationError(
            f"{type(instance).__name__}.{hook}{signature} cannot be called: it is given ({', '.join(expected)})"
        ) from None


def without_loader_where_not_taken(method: Callable[..., Any], hook: str, base: type) -> Callable[..., Any]:
    """The method, for several loaders too: where it takes no dataloader_idx it is called without."""
    names = [name for name in inspect.signature(getattr(base, hook)).parameters if name != "self"]
    if "dataloader_idx" not in names:
        return method
    try:
        inspect.signature(method).bind(*names)
    except TypeError:

        def without(*arguments: Any) -> Any:
            return method(*arguments[: len(names) - 1])

        vars(without).update(__self__=getattr(method, "__self__", method))  # whose it is
        return without
    except ValueError:  # a callable without a signature is taken at its word
        pass
    return method


def _only_a_slip(name: str, hooks: list[str]) -> str:
    # Only a wrong or missing letter or a plural: `train_step` is a plausible helper's name and stays allowed.
    from difflib import get_close_matches

    close = get_close_matches(name, hooks, n=1, cutoff=0.9)
    return f" Did you mean {close[0]!r}?" if close else ""
