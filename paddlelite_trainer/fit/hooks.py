"""Hooks: the hooks that somebody overrides, found once, in the order in which they are called."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..callback import HOOKS as CALLBACK_HOOKS
from ..callback import Callback, overridden, refuse_wrong_signature, without_loader_where_not_taken
from ..module import Module

if TYPE_CHECKING:
    from ..callback import Pins, SavePoint


class Hooks:
    """Callbacks in list order, but for those that come last at an epoch's start or end, then the module.

    What nobody overrides costs nothing. `module` None is for callbacks alone. `call_with` is what a callback's hook is
    given before its own arguments: the trainer and the module.
    """

    def __init__(self, callbacks: Sequence[Callback], module: Module | None, call_with: tuple[Any, Module]) -> None:
        self.calls: dict[str, list[Callable[..., Any]]] = {}
        self.last_at_epoch_end: list[Callable[..., Any]] = []
        """on_train_epoch_end of those that decide by what all others have logged there."""
        for name in CALLBACK_HOOKS - {"on_save_point"}:
            calls: list[Callable[..., Any]] = []
            late: list[Callable[..., Any]] = []
            for callback in callbacks:
                method = overridden(callback, name, Callback)
                if method is not None:
                    refuse_wrong_signature(callback, name, method, Callback)
                    call = functools.partial(without_loader_where_not_taken(method, name, Callback), *call_with)
                    if name == "on_train_epoch_end" and callback.comes_last_at_epoch_end:
                        self.last_at_epoch_end.append(call)
                    else:
                        (late if _comes_late(callback, name) else calls).append(call)
            own = overridden(module, name, Module) if module is not None else None
            if own is not None:
                refuse_wrong_signature(module, name, own, Module)
                calls.append(without_loader_where_not_taken(own, name, Module))
            calls += late
            if calls:
                self.calls[name] = calls
        self.savers: list[tuple[Callback, Callable[[SavePoint], Pins | None]]] = []
        for callback in callbacks:
            method = overridden(callback, "on_save_point", Callback)
            if method is not None:
                refuse_wrong_signature(callback, "on_save_point", method, Callback)
                self.savers.append((callback, functools.partial(method, *call_with)))
        self._callbacks = callbacks
        self.save_exceptions = any(getattr(callback, "save_on_exception", False) for callback in callbacks)
        self.keep_latest = any(
            getattr(callback, "save_last", False) and not getattr(callback, "save_weights_only", False)
            for callback in callbacks
        )
        self.watch_lr_drops = any(getattr(callback, "save_before_lr_drop", False) for callback in callbacks)

    @property
    def rates_are_set_by_a_callback(self) -> bool:
        """Whether what schedules do has no effect now."""
        return any(callback.sets_learning_rates for callback in self._callbacks)

    def of(self, name: str) -> Sequence[Callable[..., Any]]:
        return self.calls.get(name, ())

    def call(self, name: str, *arguments: Any) -> None:
        for call in self.calls.get(name, ()):
            call(*arguments)

    def end_epoch(self) -> None:
        """on_train_epoch_end of those that come last."""
        for call in self.last_at_epoch_end:
            call()

    def add(self, name: str, call: Callable[..., Any]) -> None:
        """Call this too, after all others."""
        self.calls[name] = [*self.of(name), call]

    def tell_of_exception(self, error: BaseException) -> None:
        for call in self.calls.get("on_exception", ()):
            with contextlib.suppress(Exception):  # the first error is the one to be seen
                call(error)

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let each hook be timed; `timed` is given the hook's name."""
        for name, calls in self.calls.items():
            self.calls[name] = [timed(name, call) for call in calls]
        self.last_at_epoch_end = [timed("on_train_epoch_end", call) for call in self.last_at_epoch_end]


def _comes_late(callback: Callback, name: str) -> bool:
    """Whether this hook of the callback comes after all others' and the module's."""
    if name == "on_already_over":  # what a fit's end does is done again after what training's end does
        return overridden(callback, "on_fit_end", Callback) is not None
    return name == "on_train_epoch_start" and callback.comes_last_at_epoch_start
