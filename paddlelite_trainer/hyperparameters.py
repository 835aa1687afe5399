"""Hyper-parameters: the arguments an object was constructed with, as a checkpoint keeps them."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import os
import types
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import paddle

from .errors import ConfigurationError, ConfigurationTypeError

T = TypeVar("T")


class HyperParameters(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no hyper-parameter {name!r}; saved ones: {', '.join(self) or 'none'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Keeps(Protocol):
    """What keeps hyper-parameters: a Module, a DataModule."""

    @property
    def hparams(self) -> HyperParameters: ...
    @property
    def hparams_initial(self) -> HyperParameters: ...
    @property
    def hparams_name(self) -> str | None: ...


def keep(
    instance: Keeps, frame: types.FrameType | None, given: Sequence[Any], ignore: str | Collection[str]
) -> str | None:
    """Keep arguments of the `__init__` that is calling as `save_hyperparameters` is asked to.

    `frame` is that of the method called in `__init__`. `given` are names, or one dict, Namespace or dataclass whose
    entries are the hyper-parameters; the name of the argument that this one is, if it is one, is returned.

    Raises:
        ConfigurationError: not called in `__init__`; no such argument; an argument that a checkpoint cannot hold.
    """
    caller = frame.f_back if frame is not None else None
    ignored = {ignore} if isinstance(ignore, str) else set(ignore)
    kept = _arguments_of_init(instance, caller, given, ignored)
    for hparams in (instance.hparams, instance.hparams_initial):
        for name in ignored:
            hparams.pop(name, None)  # which a class above has kept
        hparams.update(kept)
    if len(given) != 1 or isinstance(given[0], str) or caller is None:
        return None
    return next((name for name, value in _arguments_of(caller).items() if value is given[0]), None)


def constructed(kind: type[T], kept: Mapping[str, Any], whole: str | None, arguments: Mapping[str, Any]) -> T:
    """An object made of the hyper-parameters that a checkpoint holds, `arguments` winning over them.

    `whole` names the argument that is all of them, where `save_hyperparameters` was given one configuration.

    Raises:
        ConfigurationTypeError: they do not fit `__init__`.
    """
    accepted = inspect.signature(kind.__init__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    if whole is not None and whole in accepted:
        entries = {name: value for name, value in arguments.items() if name not in accepted and not takes_any}
        named = {name: value for name, value in arguments.items() if name not in entries}
        hparams = {whole: with_attributes({**kept, **entries}), **named}
    else:
        hparams = {**with_attributes(dict(kept)), **arguments}
        if not takes_any:
            hparams = {name: value for name, value in hparams.items() if name in accepted or name in arguments}
    try:
        return kind(**hparams)
    except TypeError as error:
        raise ConfigurationTypeError(
            f"{kind.__name__}(**{sorted(hparams)}) failed: {error}. "
            "Arguments that the checkpoint does not hold are passed to load_from_checkpoint by name."
        ) from error


def _arguments_of_init(
    instance: object, caller: types.FrameType | None, given: Sequence[Any], ignored: set[str]
) -> dict[str, Any]:
    kind = type(instance).__name__
    if len(given) == 1 and not isinstance(given[0], str):
        kept = {str(name): value for name, value in _entries(given[0]).items() if name not in ignored}
        for name, value in kept.items():
            _refuse(name, value)
        return kept
    if caller is None or caller.f_code.co_name != "__init__" or _constructed(caller) is not instance:
        raise ConfigurationError(f"save_hyperparameters() must be called in {kind}.__init__")
    found = _arguments_of(caller)
    for name in given:
        if name not in found:
            raise ConfigurationError(
                f"save_hyperparameters({name!r}): {kind}.__init__ has no such argument; "
                f"it has {', '.join(found) or 'none'}"
            )
    kept = {name: found[name] for name in given or found if name not in ignored}
    own = set(inspect.getargvalues(caller).args)
    for name in list(kept):
        if why_not_stored(kept[name]) is None:
            continue
        if name in own or given:
            _refuse(name, kept[name])
        warnings.warn(  # of a class below the one that calls, which cannot know it
            f"{kind}'s argument {name!r} is not among the hyper-parameters, as a checkpoint cannot hold it. "
            f"save_hyperparameters(ignore=[{name!r}]) in {kind}.__init__ says that this is meant.",
            stacklevel=5,
        )
        del kept[name]
    return kept


def stored(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as a checkpoint holds them: configuration objects as dicts, paths as strings.

    Raises:
        ConfigurationError: one that was set later cannot be held.
    """
    for name, value in hparams.items():
        _refuse(name, value)
    return {name: _stored(value) for name, value in hparams.items()}


def stored_of(owner: Keeps | None) -> dict[str, Any] | None:
    """Those of an object as a checkpoint holds them, with the argument that they are, if they are one."""
    return None if owner is None else {"values": stored(owner.hparams), "name": owner.hparams_name}


def with_attributes(value: Any) -> Any:
    """What a checkpoint held, its dicts with their keys as attributes too, as configuration objects have them."""
    if isinstance(value, dict):
        return HyperParameters({key: with_attributes(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_attributes, value))
    return value


def why_not_stored(value: Any) -> str | None:
    """Why a checkpoint cannot hold a value: what in it is of which kind; None where it can."""
    try:
        _stored(value)
    except _NotStored as error:
        return str(error)
    return None


class _NotStored(Exception):
    """Says what it is."""


def _refuse(name: str, value: Any) -> None:
    reason = why_not_stored(value)
    if reason is not None:
        raise ConfigurationError(
            f"save_hyperparameters() cannot store {reason} given as {name!r}: call "
            f"save_hyperparameters(ignore=[{name!r}]) and pass it to load_from_checkpoint again"
        )


def _entries(config: Any) -> dict[Any, Any]:
    """What a configuration object holds. A mapping is never asked for attributes: one may raise KeyError for them."""
    if isinstance(config, Mapping):
        return dict(config.items())
    if isinstance(config, argparse.Namespace):
        return dict(vars(config))
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    raise ConfigurationError(
        "save_hyperparameters takes names of arguments, or one dict, Namespace or dataclass of hyper-parameters, got "
        f"a {type(config).__name__}"
    )


def _stored(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.ndarray, paddle.Tensor)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return _stored(value.value)
    if isinstance(value, paddle.nn.Layer):
        raise _NotStored("the layer")
    if isinstance(value, (Mapping, argparse.Namespace)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    ):
        return {_stored(key): _stored(item) for key, item in _entries(value).items()}
    if isinstance(value, tuple):
        return tuple(map(_stored, value))
    if isinstance(value, Sequence):
        return list(map(_stored, value))
    raise _NotStored(f"the {type(value).__name__}")


def _constructed(frame: types.FrameType) -> Any:
    """The object that a method's frame works on: its first argument, whatever its name."""
    first = frame.f_code.co_varnames[:1]
    return frame.f_locals.get(first[0]) if first else None


def _arguments_of(frame: types.FrameType) -> dict[str, Any]:
    """The arguments of the `__init__` calls from this frame outwards for the same object, the outermost winning."""
    constructed = _constructed(frame)
    found: dict[str, Any] = {}
    current: types.FrameType | None = frame
    while current is not None and current.f_code.co_name == "__init__" and _constructed(current) is constructed:
        names, _, keywords, values = inspect.getargvalues(current)
        found.update({name: values[name] for name in names[1:]})
        if keywords:
            found.update(values[keywords])
        current = current.f_back
    return found
