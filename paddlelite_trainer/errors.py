"""The exception tree: everything this package raises on purpose.

TrainerError
|- ConfigurationError (ValueError)        an argument, hook or setting is wrong; raised before training starts
|  `- NoTrainerError (AttributeError)     a module is asked for a trainer, and takes part in no run
|- ConfigurationTypeError (TypeError)     the same, when the type is what is wrong
|- DataError (RuntimeError)               a loader is empty, exhausted, shrunk, or one of its workers failed
|- TrainingError (RuntimeError)           training_step or the optimizer did something training cannot go on from
|  |- NonFiniteError                      NaN or infinity where a guard forbids it
|  |- RankFailedError                     another rank of the job has failed; the message says which, where and why
|  `- DeviceOutOfMemoryError              the accelerator's memory is full; names the batch
|- ExportError (RuntimeError)             a module cannot be exported, or what was exported computes something else
|- LogWriteError (OSError)                a log file could not be written; what was to be written waits
`- CheckpointError (RuntimeError)
   |- CheckpointNotFoundError (FileNotFoundError)   nothing is there to load
   |- CheckpointCorruptError              it is there, and its bytes are not what was written
   |- CheckpointMismatchError (ValueError)          it is sound, and does not fit this run; .problems lists why
   |- CheckpointSaveError (OSError)       writing failed; the previous checkpoint is intact
   |- RemoteError (OSError)               remote copies could not be reached, read or written
   |- UnserializableStateError (TypeError)          a part's state holds something a checkpoint does not store
   |- UnsafePickleError                   a foreign file asks for code; nothing of it was run
   `- RunLockedError                      another process writes this run directory
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., Any])


class TrainerError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigurationError(TrainerError, ValueError):
    """An argument, hook or setting is wrong; the message gives value, expectation and remedy."""


class NoTrainerError(ConfigurationError, AttributeError):
    """A module is asked for its trainer and has none; hasattr() and copies find no such attribute."""


class ConfigurationTypeError(TrainerError, TypeError):
    """An argument has the wrong type; the message gives the value and the types accepted."""


class DataError(TrainerError, RuntimeError):
    """A loader is empty, exhausted or shorter than it was, or one of its workers failed."""


class TrainingError(TrainerError, RuntimeError):
    """A step returned or did something that training cannot go on from."""


class NonFiniteError(TrainingError):
    """NaN or infinity where a guard forbids it."""


class RankFailedError(TrainingError):
    """Another rank of this job has failed, has left or does not come; the message says which, where and why."""


class DeviceOutOfMemoryError(TrainingError):
    """The accelerator's memory is full; the message names the batch and what helps."""


class ExportError(TrainerError, RuntimeError):
    """A module cannot be exported, or what was exported computes something else; nothing was written."""


class LogWriteError(TrainerError, OSError):
    """A logger's file could not be written; the message names it. What was to be written waits for the next time."""


class CheckpointError(TrainerError, RuntimeError):
    """Saving, finding or loading a checkpoint failed."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint is where one was asked for."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint's bytes are not the bytes that were written."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A sound checkpoint does not fit this run; `problems` lists field, saved value, present value and remedy.

    Args:
        message: what does not fit, and the remedy.
        problems: one line each: field, saved value, present value.
    """

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message + "".join(f"\n  - {problem}" for problem in self.problems))


class CheckpointSaveError(CheckpointError, OSError):
    """Writing a checkpoint failed; the one before it is intact."""


class RemoteError(CheckpointError, OSError):
    """Remote copies could not be reached, read or written; the message names the remote and what it answered."""


class UnserializableStateError(CheckpointError, TypeError):
    """A part's state holds something that a checkpoint does not store; names the part and the key."""


class UnsafePickleError(CheckpointError):
    """A foreign checkpoint file asks for code to be imported; nothing of it was run."""


class RunLockedError(CheckpointError):
    """Another process is writing this run directory; names its pid and host."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known word is close."""
    close = get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.75)
    return f" Did you mean {close[0]!r}?" if close else ""


def explains_unknown_arguments(
    instead: Mapping[str, str], *, called: Mapping[str, str] | None = None, by_name_only: bool = False
) -> Callable[[Init], Init]:
    """Make an `__init__` answer an unknown argument with the one that was meant, or with what to do instead, and a
    value that is not of the type that is annotated with that type.

    `instead` holds arguments of Lightning's that are not here, with what to do; `called` words of others, with ours.
    """

    def explaining(init: Init) -> Init:
        known = [name for name in inspect.signature(init).parameters if name != "self"]

        @functools.wraps(init)
        def checked(self: Any, *positional: Any, **arguments: Any) -> Any:
            called_as = type(self).__name__ + ("" if init.__name__ == "__init__" else f".{init.__name__}")
            for name in arguments:
                if name not in known:
                    if name in instead:
                        remedy = f" It is one of Lightning's; here {instead[name]}."
                    elif name in (called or {}):
                        remedy = f" Here it is {called[name]}."  # type: ignore[index]
                    else:
                        remedy = did_you_mean(name, known)
                    raise ConfigurationTypeError(f"{called_as} has no argument {name!r}.{remedy}")
            if positional and by_name_only:
                raise ConfigurationTypeError(
                    f"{called_as} takes arguments by name only, got {positional[0]!r} without one"
                )
            try:
                result = init(self, *positional, **arguments)
            except ConfigurationTypeError:
                raise
            except TypeError as error:
                if wrong := _of_a_wrong_type(init, (self, *positional), arguments):
                    raise ConfigurationTypeError(f"{called_as}({wrong}") from error
                raise
            if wrong := _of_a_wrong_type(init, (self, *positional), arguments):
                raise ConfigurationTypeError(f"{called_as}({wrong}")
            return result

        vars(checked).update(instead=dict(instead))  # for those who tell people of all of them
        return checked  # type: ignore[return-value]

    return explaining


def _of_a_wrong_type(init: Callable[..., Any], positional: Sequence[Any], arguments: Mapping[str, Any]) -> str | None:
    """`name=...) must be an int, got '3'` of the first argument that is not as annotated; None where all are."""
    try:
        hints = typing.get_type_hints(init)
        given = inspect.signature(init).bind(*positional, **arguments).arguments
    except (NameError, TypeError):  # a name that is there for type checkers alone; an argument that is missing
        return None
    for name, value in given.items():
        kinds = _kinds(hints.get(name, Any))
        if kinds is not None and not any(is_one(value) for is_one, _ in kinds):
            words = list(dict.fromkeys(word for _, word in kinds))
            return f"{name}=...) must be {' or '.join(filter(None, (', '.join(words[:-1]), words[-1])))}, got {value!r}"
    return None


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    type(None): (lambda value: value is None, "None"),
    bool: (lambda value: type(value).__name__.startswith("bool"), "True or False"),
    int: (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "an int"),
    float: (lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str), "a str"),
    os.PathLike: (lambda value: isinstance(value, os.PathLike), "a path"),
    timedelta: (lambda value: isinstance(value, timedelta), "a timedelta"),
    Callable: (callable, "a function"),
    Mapping: (lambda value: isinstance(value, Mapping), "a dict"),
    Sequence: (lambda value: hasattr(value, "__getitem__") and not isinstance(value, (str, Mapping)), "a list"),
}


def _kinds(hint: Any) -> list[tuple[Callable[[Any], bool], str]] | None:
    """What an annotation lets in, with its words; None where it has more than can be told here."""
    found = []
    for one in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        kind = _KINDS.get(typing.get_origin(one) or one)
        if kind is None:
            return None
        found.append(kind)
    return found


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note(note)`, and where Python has none (3.10) the same text in the error's message."""
    if hasattr(error, "add_note"):
        error.add_note(note)
        return
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
    if error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
    else:
        error.args = (*error.args, note)
