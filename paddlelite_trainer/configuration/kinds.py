"""Which kinds of classes a configuration names, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import paddle

from ..callback import Callback
from ..data.module import DataModule
from ..defaults import known_callbacks
from ..module import Module
from ..names_elsewhere import callback_here
from ..reporting import loggers
from .files import Keys


@dataclass(frozen=True)
class Kind:
    """A class whose subclasses stand somewhere in a configuration; `what` names one in sentences."""

    base: type
    what: str
    namespace: Callable[[], Mapping[str, Any]] = field(default=dict)
    """Where a bare name is looked for, beside the subclasses that are loaded."""
    given_by_us: tuple[str, ...] = ()
    """Arguments that are not the configuration's to give."""
    why: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    """Strings that may stand in the place of a class."""

    def by_name(self) -> dict[str, type]:
        """{bare name: class}; a name of two classes is none's."""
        found: dict[str, Any] = {}
        for one in _subclasses(self.base):
            found[one.__name__] = None if one.__name__ in found else one
        found.update(
            (name, value)
            for name, value in self.namespace().items()
            if isinstance(value, type) and issubclass(value, self.base)
        )
        return {name: value for name, value in found.items() if value is not None and self.base is not object}

    def elsewhere_class(self, name: str) -> str:
        """What does here what a class of that name does elsewhere."""
        return callback_here(name) if self.base is Callback else ""

    def elsewhere(self, found: type) -> dict[str, str]:
        """Arguments that a class does not take, with what to do instead."""
        return {**getattr(vars(found).get("__init__"), "instead", {}), **self.why}

    def arguments_of(self, found: type) -> list[str] | None:
        """The arguments that a class takes, those of the classes that it passes `**kwargs` on to too; None: any."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        try:
            names = parser.add_class_arguments(found, "it", skip=set(self.given_by_us), fail_untyped=False)
        except ValueError:  # one of those skipped is not there
            names = parser.add_class_arguments(found, "it", fail_untyped=False)
        known = [name.removeprefix("it.") for name in names]
        open_ended = _takes_any(found) and set(known) <= set(_own_arguments(found))
        return None if open_ended else known

    def required(self, found: type) -> list[str]:
        """Those without a default, but for what is given by us."""
        return [
            name
            for name, parameter in signature(found).parameters.items()
            if name not in ("self", *self.given_by_us)
            and parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]


def signature(found: type) -> inspect.Signature:
    """That of a class's own `__init__`, with self."""
    init: Any = found.__init__  # type: ignore[misc]
    return inspect.signature(init)


def _own_arguments(found: type) -> list[str]:
    return list(signature(found).parameters)


def _takes_any(found: type) -> bool:
    kinds = [parameter.kind for parameter in signature(found).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _subclasses(base: type) -> list[type]:
    found: list[type] = []
    direct: list[type] = type.__subclasses__(base)
    for one in direct:
        found += [one, *_subclasses(one)]
    return found


_RATE = "the rate is optimizer.init_args.learning_rate"
MODULE = Kind(Module, "a Module")
DATA = Kind(DataModule, "a DataModule")
OPTIMIZER = Kind(
    paddle.optimizer.Optimizer,
    "an optimizer of Paddle's",
    lambda: vars(paddle.optimizer),
    ("parameters",),
    {"parameters": "the module's parameters are given it", "lr": "it is learning_rate"},
)
SCHEDULE = Kind(
    paddle.optimizer.lr.LRScheduler,
    "a schedule of paddle.optimizer.lr",
    lambda: vars(paddle.optimizer.lr),
    ("learning_rate",),
    {"learning_rate": _RATE, "lr": _RATE, "optimizer": "the schedule is given to the optimizer"},
)
CALLBACK = Kind(Callback, "a Callback", known_callbacks)
LOGGER = Kind(
    loggers.Logger,
    "a Logger",
    lambda: {name: getattr(loggers, name) for name in loggers.__all__},
    words=tuple(loggers.BY_NAME),
)

_AT = {
    ("module",): MODULE,
    ("data",): DATA,
    ("optimizer",): OPTIMIZER,
    ("lr_scheduler",): SCHEDULE,
    ("trainer", "callbacks"): CALLBACK,
    ("trainer", "logger"): LOGGER,
}


def kind_at(keys: Keys) -> Kind | None:
    """The kind of class that belongs there; None where no class does."""
    return _AT.get(keys)
