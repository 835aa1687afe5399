"""Room: where one fixed run takes place, and what is to be compared of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import rich.console  # noqa: F401  it draws random numbers when it is imported, which is not to come within a fit
from fingerprint import digest, of_directory

from paddlelite_trainer import Callback, CSVLogger, Module, TensorBoardLogger, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint

HOOKS = sorted(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class Boom(Exception):
    """What fails on purpose."""


class Room:
    """Makes trainers whose runs lie below `root`, fits with them, and keeps what each fit ended with."""

    def __init__(self, root: Path, accelerator: str = "cpu") -> None:
        self.root = root
        self._accelerator = accelerator
        self._returned: list[Any] = []
        self._weights: list[str] = []
        self._optimizers: list[str] = []
        self._hooks: list[str] = []
        self._written: list[dict[str, str]] = []

    def trainer(self, *callbacks: Callback, traced: bool = False, **settings: Any) -> Trainer:
        """A Trainer that logs each step and, unless it is given a ModelCheckpoint, keeps a checkpoint of each epoch.

        With `traced` the calls of all hooks of a callback are recorded.
        """
        given: dict[str, Any] = {
            "accelerator": self._accelerator,
            "default_root_dir": self.root / "runs",
            "logger": [CSVLogger(), TensorBoardLogger()],
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "async_checkpoint": False,
            "prefetch_to_device": False,  # "auto" times the first batches
            "seed": 11,
            **settings,
        }
        if not {"max_epochs", "max_steps", "fast_dev_run"} & settings.keys():
            given["max_epochs"] = 2
        keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        if not keeps and given.get("enable_checkpointing", True) and "fast_dev_run" not in settings:
            callbacks = (*callbacks, ModelCheckpoint(save_top_k=-1))
        states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
        made = Trainer(callbacks=[*callbacks, *([_tracer(self._hooks)] if traced else [])], **given)
        # A version that seeds where a Trainer is made, and one that does not, are to begin with the same weights.
        random.setstate(states[0])
        np.random.set_state(states[1])
        paddle.set_rng_state(states[2])
        return made

    def traced(self, kind: type[Module]) -> type[Module]:
        """The class with the calls of all its hooks recorded."""
        hooks = {name: _recording(name, self._hooks, kind) for name in HOOKS if hasattr(Module, name)}
        return type(kind.__name__, (kind,), hooks)

    def fit(self, trainer: Trainer, module: Module, *data: Any, **options: Any) -> str:
        """Fit, to the end or to an exception that is meant, and keep what it ended with; returns how it ended."""
        ended = "finished"
        try:
            trainer.fit(module, *data, **options)
        except (Boom, SystemExit, KeyboardInterrupt) as error:
            ended = repr(error)
        self.keep(ended, trainer.current_epoch, trainer.global_step, trainer.interrupted)
        self.keep(trainer.history, dict(trainer.callback_metrics), dict(trainer.logged_metrics))
        self._weights.append(digest(module.state_dict()))
        names = {parameter.name: name for name, parameter in module.named_parameters()}
        self._optimizers.append(digest([_by_structure(one.state_dict(), names) for one in trainer.optimizers]))
        self._optimizers.append(digest([float(one.get_lr()) for one in trainer.optimizers]))
        if trainer.is_global_zero:  # the others write nothing, and may be earlier or later than it
            self._written.append(of_directory(self.root / "runs"))  # the next fit may delete some of it
        return ended

    def keep(self, *values: Any) -> None:
        """Compare these too."""
        self._returned.append([digest(value) for value in values])

    def parts(self) -> dict[str, str]:
        """{part: hash} of everything; of files, as they were after each fit and are now."""
        kept: dict[str, list[Any]] = {
            "final weights": self._weights,
            "final optimizers": self._optimizers,
            "returned": self._returned,
            "hooks": self._hooks,
        }
        if self._written:
            self._written.append(of_directory(self.root / "runs"))
        for part in sorted({part for written in self._written for part in written}):
            kept[part] = [written.get(part) for written in self._written]
        return {name: digest(part) for name, part in kept.items() if part}


def _tracer(calls: list[str]) -> Callback:
    hooks = {name: _recording(name, calls) for name in HOOKS}
    hooks["state_dict"] = lambda self: {"calls": len(calls)}
    return type("Tracer", (Callback,), hooks)()


def _recording(name: str, calls: list[str], kind: type[Module] | None = None) -> Callable[..., Any]:
    def on_callback(self: Any, trainer: Any, module: Any, *arguments: Any) -> None:
        reason = arguments[0].reason if name == "on_save_point" else ""
        calls.append(f"callback.{name} {reason} {_moment(trainer, module, arguments)}")

    def on_module(self: Any, *arguments: Any) -> Any:
        calls.append(f"module.{name} {_moment(self.trainer, self, arguments)}")
        return getattr(kind, name)(self, *arguments)

    return on_callback if kind is None else on_module


def _moment(trainer: Trainer, module: Any, arguments: tuple[Any, ...]) -> str:
    """Where the run is when a hook is called, and what has been done by then."""
    given = [argument for argument in arguments if isinstance(argument, (int, str))]
    flags = [name for name in ("training", "validating", "sanity_checking", "testing") if getattr(trainer, name)]
    bias = module.head.bias
    done = digest([bias, None if bias.grad is None else bias.grad, dict(trainer.callback_metrics), module.training])
    return f"{trainer.current_epoch} {trainer.global_step} {given} {flags} {done}"


def _by_structure(state: Any, names: dict[str, str]) -> dict[str, Any]:
    """An optimizer's state under names that do not depend on how Paddle counts its parameters."""
    longest_first = sorted(names, key=len, reverse=True)
    renamed = {}
    for key, value in state.items():
        own = next((name for name in longest_first if str(key).startswith(name)), None)
        new = key if own is None else names[own] + str(key)[len(own) :]
        renamed[new] = _by_structure(value, names) if isinstance(value, dict) else value
    return renamed
