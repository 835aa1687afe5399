"""What Trainer adds after yours when you pass nothing; no other file of the engine imports callbacks/."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .callback import HOOKS, Callback, refuse_misspelt_hooks
from .errors import ConfigurationError, ConfigurationTypeError, did_you_mean
from .reporting.loggers import BY_NAME, CSVLogger, FileLogger, Logger, TensorBoardLogger
from .reporting.loggers.dry import DryLogger

LoggersGiven = Logger | str | Sequence[Logger | str] | bool | None
"""What Trainer(logger=...) takes."""


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


def default_loggers(given: LoggersGiven, *, is_dry: bool = False, is_zero: bool = True) -> list[Logger]:
    """The loggers meant by Trainer(logger=...): None and True are TensorBoard and CSV files in the run directory.

    Where `is_dry`, and on other ranks than 0, each is one that writes nothing.

    Raises:
        ConfigurationError: no logger has that name, one's library is not installed, or one has the `open` of an earlier
            version.
    """
    loggers = _loggers(given)
    if is_zero and not is_dry:
        return loggers
    for logger in loggers:
        logger.stand_aside()
    return [DryLogger("fast_dev_run" if is_dry else "") for _ in loggers]


def _loggers(given: LoggersGiven) -> list[Logger]:
    if given is None or given is True:
        return [TensorBoardLogger(), CSVLogger()]
    if given is False:
        return []
    several = isinstance(given, Sequence) and not isinstance(given, str)
    ones: list[Any] = list(given) if several else [given]  # type: ignore[arg-type]
    for index, one in enumerate(ones):
        if any(one is other or (isinstance(one, str) and one == other) for other in ones[:index]):
            raise ConfigurationError(f"Trainer(logger=...) has {one!r} twice, which would tear its file: pass it once")
    made = [_logger(one) for one in ones]
    _refuse_two_in_one_file(made)
    return made


def _refuse_two_in_one_file(loggers: list[Logger]) -> None:
    places = [(type(one), one.directory) for one in loggers if isinstance(one, FileLogger)]
    for kind, directory in places:
        if places.count((kind, directory)) > 1:
            raise ConfigurationError(
                f"Trainer(logger=...) has two {kind.__name__} in one directory, which would tear its file: give one of "
                f"them a directory of its own, {kind.__name__}(directory='second')"
            )


def _logger(one: Any) -> Logger:
    if isinstance(one, str):
        if one not in BY_NAME:
            raise ConfigurationError(
                f"Trainer(logger={one!r}): no logger has that name.{did_you_mean(one, BY_NAME)} "
                f"There are {', '.join(map(repr, BY_NAME))}; a logger with settings is passed as an object."
            )
        return BY_NAME[one]()
    if not isinstance(one, Logger):
        raise ConfigurationTypeError(
            "Trainer(logger=...) takes True, False, a Logger, a name such as 'tensorboard', or a list of these, "
            f"got {one!r} of type {type(one).__name__}. "
            "A logger of your own derives from paddlelite_trainer.Logger and defines log_metrics(metrics, step)."
        )
    try:
        inspect.signature(one.open).bind("run_dir", "run_id", False, None)
    except TypeError as error:
        raise ConfigurationError(
            f"{type(one).__name__}.open is of an earlier version, which called open(run_dir, resume_state). "
            "Now it is open(run_dir, run_id, resumed, state): `state` is what resume_state was, `run_id` names the run "
            "at a service, `resumed` says whether it has been logged before; see paddlelite_trainer.Logger.open."
        ) from error
    return one


def known_callbacks() -> dict[str, type[Callback]]:
    """Ours by name, for who is given a name."""
    from . import callbacks

    named = {name: getattr(callbacks, name) for name in dir(callbacks)}
    return {name: one for name, one in named.items() if isinstance(one, type) and issubclass(one, Callback)}


def adapted(given: Any) -> Any:
    """Callbacks as they were given, those of paddle.Model's among them in a PaddleCallback each.

    Raises:
        ConfigurationError: one of Paddle's own for which there is another here.
    """
    if isinstance(given, (list, tuple)):
        return [adapted(one) for one in given]
    if not any(f"{kind.__module__}.{kind.__name__}" == _OF_PADDLE for kind in type(given).__mro__):
        return given
    from .callbacks import PaddleCallback

    return PaddleCallback(given)


_OF_PADDLE = "paddle.hapi.callbacks.Callback"
