"""What Trainer adds after yours when you pass nothing; no other file of the engine imports callbacks/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .callback import HOOKS, Callback, refuse_misspelt_hooks
from .errors import ConfigurationTypeError
from .reporting.loggers import CSVLogger, Logger, TensorBoardLogger
from .reporting.loggers.dry import DryLogger


def default_callbacks(
    given: list[Callback], *, checkpointing: bool, progress_bar: bool, model_summary: bool
) -> list[Callback]:
    """The user's callbacks, then ModelSummary, ProgressBar and ModelCheckpoint where wanted and none was given.

    Raises:
        ConfigurationError: one of the user's has a method that is almost a hook, or never called.
    """
    for callback in given:
        refuse_misspelt_hooks(callback, Callback, HOOKS)
    from .callbacks import ModelCheckpoint, ModelSummary, ProgressBar

    def lacks(kind: type[Callback]) -> bool:
        return not any(isinstance(callback, kind) for callback in given)

    added: list[Callback] = []
    if model_summary and lacks(ModelSummary):
        added.append(ModelSummary())
    if progress_bar and lacks(ProgressBar):
        added.append(ProgressBar())
    if checkpointing and lacks(ModelCheckpoint):
        added.append(ModelCheckpoint())
    return [*given, *added]


def without_replaced(
    given: Sequence[Callback], wanted: Sequence[Callback], module: object, print_: Callable[..., None]
) -> list[Callback]:
    """The Trainer's callbacks whose class the module does not bring itself; says which give way."""
    replaced = {type(callback) for callback in wanted}
    for name in sorted({type(callback).__name__ for callback in given if type(callback) in replaced}):
        owner = f"{type(module).__name__}.configure_callbacks"
        print_(f"note: the {name} of Trainer(callbacks=...) gives way to that of {owner}")
    return [callback for callback in given if type(callback) not in replaced]


def default_loggers(logger: bool | Logger | Sequence[Logger] | None, *, is_dry: bool = False) -> list[Logger]:
    """The loggers meant by Trainer(logger=...): None and True are TensorBoard and CSV files in the run directory.

    Where `is_dry`, each is one that writes nothing.
    """
    loggers = _loggers(logger)
    return [DryLogger() for _ in loggers] if is_dry else loggers


def _loggers(logger: bool | Logger | Sequence[Logger] | None) -> list[Logger]:
    if logger is None or logger is True:
        return [TensorBoardLogger(), CSVLogger()]
    if logger is False:
        return []
    loggers = list(logger) if isinstance(logger, Sequence) and not isinstance(logger, str) else [logger]
    for one in loggers:
        if not isinstance(one, Logger):
            raise ConfigurationTypeError(
                "Trainer(logger=...) takes True, False, a Logger or a list of them, "
                f"got {one!r} of type {type(one).__name__}. "
                "A logger of your own derives from paddlelite_trainer.Logger and defines log_metrics(metrics, step)."
            )
    return loggers
