"""What a checkpoint keeps of the logs, and how loggers are opened with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..callback import overridden
from ..errors import LogWriteError
from ..reporting.loggers import Logger

if TYPE_CHECKING:
    from .fit import Fit
    from .mark import Mark
    from .saved import Saved


def open_logs(fit: Fit, saved: Saved | None, hyper_parameters: Mapping[str, Any]) -> None:
    """Once what the run goes on from is back in place: until then nothing is taken out of a log."""
    directory, loggers = fit.run.directory, fit.book.loggers
    fit.target.send_media_to(fit.book.media)
    if directory is None:  # on other ranks, and where nothing is written
        return
    states: Sequence[Any] = [{}] * len(loggers)
    if saved is not None and directory.path == saved.entry.path.parent.parent:  # else it logs to other files
        states = _states_of(loggers, saved.tree)
    fit.book.open_logs(loggers, directory, states)
    fit.book.log_hyperparams(hyper_parameters)


def _states_of(loggers: Sequence[Logger], tree: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """What a checkpoint holds of each logger, by class and order; None of one that it does not know."""
    names = tree.get("logger_classes") or [class_of(logger) for logger in loggers]  # an earlier version: by order
    left = list(zip(names, tree["loggers"]))
    states: list[dict[str, Any] | None] = []
    for logger in loggers:
        place = next((place for place, (name, _) in enumerate(left) if name == class_of(logger)), None)
        states.append(None if place is None else left.pop(place)[1])
    return states


def class_of(logger: Logger) -> str:
    return type(logger).__qualname__


def saved_logs(loggers: Sequence[Logger], as_of: Mark | None) -> list[dict[str, Any]]:
    """Positions in the logs, of which everything is on the disk.

    Raises:
        LogWriteError: of the first logger whose log could not be saved; the others' were.
    """
    failures: list[LogWriteError] = []
    for logger in loggers:
        if not overridden(logger, "state_dict", Logger):
            continue  # the checkpoint promises nothing of it
        try:
            logger.save()
        except LogWriteError as error:
            failures.append(error)
        except Exception as error:
            failures.append(LogWriteError(f"{type(logger).__name__}.save() failed: {error!r}"))
            failures[-1].__cause__ = error
    if failures:
        raise failures[0]
    marked = as_of.loggers if as_of is not None else None
    return [logger.state_dict() for logger in loggers] if marked is None else marked
