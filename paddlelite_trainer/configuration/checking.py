"""What is wrong with a configuration: one sentence, with the line, the key and the nearest name."""

from __future__ import annotations

import argparse
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, TrainerError, did_you_mean
from ..importing import module_named
from ..reporting.terminal import from_here
from ..settings import CALLED_HERE, NOT_HERE, check_setting, has_rule
from .files import Keys, dotted
from .kinds import Kind, kind_at, signature

Place = Callable[[Keys], str]
"""Says where keys stand: `run.yaml, line 12: trainer.max_epochs`."""

SECTIONS = ("module", "data", "trainer", "optimizer", "lr_scheduler", "lr_scheduler_config", "ckpt_path", "override")
SCHEDULE = ("interval", "frequency", "monitor", "strict", "name")
_NODE = ("class_path", "init_args")
_MEANT = {
    "model": "module",
    "datamodule": "data",
    "loggers": "trainer.logger",
    "callbacks": "trainer.callbacks",
    "logger": "trainer.logger",
    "seed": "trainer.seed",
    "seed_everything": "trainer.seed",
    "scheduler": "lr_scheduler",
}


def checked(tree: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The configuration with every class by its full path.

    Raises:
        ConfigurationError: an unknown key, a class that is not there or is of another kind, a value of a wrong type.
    """
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in SECTIONS:
            meant = f" Here it is {_MEANT[key]}." if key in _MEANT else did_you_mean(str(key), SECTIONS)
            raise ConfigurationError(f"{place((key,))}: there is no such key; it has {', '.join(SECTIONS)}.{meant}")
        if key == "trainer":
            result[key] = _trainer(value, place)
        elif key == "lr_scheduler_config":
            _refuse_other_keys(value, SCHEDULE, (key,), place)
            if value.get("interval", "epoch") not in ("epoch", "step"):
                raise ConfigurationError(
                    f"{place((key, 'interval'))} must be 'epoch' or 'step', got {value['interval']!r}"
                    + did_you_mean(str(value["interval"]), ("epoch", "step"))
                )
            result[key] = value
        elif key == "override":
            result[key] = value.split(",") if isinstance(value, str) else value
        else:
            kind = kind_at((key,))
            result[key] = value if kind is None or value is None else _node(value, kind, (key,), place)
    return result


def _trainer(given: Any, place: Place) -> dict[str, Any]:
    from ..trainer import Trainer

    known = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    if given is None:
        return {}
    if isinstance(given, Mapping) and set(given) & set(_NODE):
        raise ConfigurationError(f"{place(('trainer',))} is no class: its arguments stand right below it")
    _refuse_other_keys(given, known, ("trainer",), place, NOT_HERE, CALLED_HERE)
    result = {}
    for name, value in given.items():
        keys = ("trainer", name)
        kind = kind_at(keys)
        if kind is not None:
            result[name] = _nodes(value, kind, keys, place)
            continue
        result[name] = value
        if has_rule(name) and not _is_reference(value):
            _tell(keys, place, check_setting, name, value)
    return result


def _tell(keys: Keys, place: Place, check: Callable[[str, Any, str], None], name: str, value: Any) -> None:
    try:
        check(name, value, place(keys))
    except TrainerError as error:
        raise ConfigurationError(str(error)) from None


def _nodes(value: Any, kind: Kind, keys: Keys, place: Place) -> Any:
    if isinstance(value, list):
        return [_nodes(one, kind, (*keys, index), place) for index, one in enumerate(value)]
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value in kind.words):
        return value
    return _node(value, kind, keys, place)


def _node(value: Any, kind: Kind, keys: Keys, place: Place) -> Any:
    """A class and its arguments, in the form `class_path` and `init_args`."""
    if _is_reference(value):
        return value
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{place(keys)} must be a class, with class_path and init_args, got {value!r}")
    if "class_path" not in value:
        raise ConfigurationError(f"{place(keys)} needs class_path, which names {kind.what}; got {', '.join(value)}")
    for key in value:
        if key not in _NODE:
            raise ConfigurationError(
                f"{place((*keys, key))}: beside class_path stands init_args alone; put {key} below init_args"
            )
    found = imported(value["class_path"], kind, (*keys, "class_path"), place)
    arguments = value.get("init_args") or {}
    accepted = kind.arguments_of(found)
    if accepted is not None:
        _refuse_other_keys(arguments, accepted, (*keys, "init_args"), place, kind.elsewhere(found), of=found.__name__)
    result = {}
    for name, argument in arguments.items():
        at = (*keys, "init_args", name)
        result[name] = _inner(argument, at, place)
        _check_type(found, kind, name, result[name], at, place)
    missing = [name for name in kind.required(found) if name not in arguments]
    if missing:
        raise ConfigurationError(f"{place((*keys, 'init_args'))}: {found.__name__} needs {', '.join(missing)}")
    path = f"{found.__module__}.{found.__qualname__}"
    return {"class_path": path, **({"init_args": result} if result else {})}


def _inner(value: Any, keys: Keys, place: Place) -> Any:
    """Classes within an argument."""
    if isinstance(value, list):
        return [_inner(one, (*keys, index), place) for index, one in enumerate(value)]
    if isinstance(value, Mapping) and "class_path" in value:
        return _node(value, Kind(object, "a class"), keys, place)
    return value


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _refuse_other_keys(
    given: Any,
    known: Any,
    keys: Keys,
    place: Place,
    elsewhere: Mapping[str, str] | None = None,
    called: Mapping[str, str] | None = None,
    of: str | None = None,
) -> None:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{place(keys)} must have keys below it, got {given!r}")
    for key in given:
        if key in known:
            continue
        if key in (elsewhere or {}):
            hint = f" Here {elsewhere[key]}."  # type: ignore[index]
        elif key in (called or {}):
            hint = f" Here it is {called[key]}."  # type: ignore[index]
        else:
            hint = did_you_mean(str(key), known) or f" It has {', '.join(known) or 'none'}."
        raise ConfigurationError(f"{place((*keys, key))}: {of or dotted(keys)} has no argument {key!r}.{hint}")


# -- classes -----------------------------------------------------------------------------------------------------------


def imported(path: Any, kind: Kind, keys: Keys, place: Place) -> type:
    """The class that a path means: `package.module.Class`, or a bare name of one of ours or Paddle's.

    Raises:
        ConfigurationError: there is none, or it is of another kind.
    """
    if not isinstance(path, str) or not path:
        raise ConfigurationError(f"{place(keys)} must be the path of a class, as in package.module.Class, got {path!r}")
    if "." not in path:
        return _by_name(path, kind, keys, place)
    module, _, name = path.rpartition(".")
    found = getattr(_module(module, keys, place), name, None)
    if found is None:
        classes = [one for one, value in vars(sys.modules[module]).items() if _is_of(value, kind)]
        hint = did_you_mean(name, classes) or (f" It has {', '.join(sorted(classes)[:8])}." if classes else "")
        raise ConfigurationError(f"{place(keys)}: there is no {name} in {_where(module)}.{hint}")
    if not isinstance(found, type) or not issubclass(found, kind.base):
        raise ConfigurationError(f"{place(keys)}: {path} is {_what(found)}, where {kind.what} belongs")
    return found


def _by_name(name: str, kind: Kind, keys: Keys, place: Place) -> type:
    known = kind.by_name()
    if name in known:
        return known[name]
    hint = did_you_mean(name, known)
    if not hint and kind.elsewhere_class(name):
        elsewhere = kind.elsewhere_class(name)
        hint = f" {elsewhere[0].upper()}{elsewhere[1:]}."
    if not hint:
        hint = f" Name it with its module, as in my_module.{name}."
    raise ConfigurationError(f"{place(keys)}: {name} is no name of {kind.what} that is known here.{hint}")


def _module(name: str, keys: Keys, place: Place) -> Any:
    try:
        return module_named(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"{place(keys)}: importing {name} failed: {error}{_line(error)}") from error
        files = [path.stem for path in Path.cwd().glob("*.py")]
        hint = did_you_mean(error.name.split(".")[0], files)
        raise ConfigurationError(
            f"{place(keys)}: there is no module {error.name}, neither in {Path.cwd()} nor installed.{hint}"
        ) from None
    except Exception as error:
        raise ConfigurationError(
            f"{place(keys)}: importing {name} failed: {type(error).__name__}: {error}{_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return ""  # which says it itself
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}, line {last.lineno})"


def _where(module: str) -> str:
    file = getattr(sys.modules[module], "__file__", None)
    return from_here(file) if file else module


def _is_of(value: Any, kind: Kind) -> bool:
    return isinstance(value, type) and issubclass(value, kind.base)


def _what(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


# -- types -------------------------------------------------------------------------------------------------------------


def _check_type(found: type, kind: Kind, name: str, value: Any, keys: Keys, place: Place) -> None:
    from jsonargparse import ArgumentParser

    if _is_reference(value):
        return
    parser = ArgumentParser(exit_on_error=False)
    others = set(kind.arguments_of(found) or ()) - {name}
    try:
        parser.add_class_arguments(found, "it", skip={*others, *kind.given_by_us}, fail_untyped=False)
        parser.parse_object({"it": {name: value}})
    except argparse.ArgumentError:
        written = annotation_of(found, name)
        must = f"must be {written}" if written else "is of a wrong type"
        raise ConfigurationError(f"{place(keys)} {must}, got {value!r} ({type(value).__name__})") from None


def annotation_of(found: type, name: str) -> str | None:
    """The annotation of an argument as it was written, of the class that has it."""
    for one in found.__mro__:
        if "__init__" not in vars(one):
            continue
        parameter = signature(one).parameters.get(name)
        if parameter is not None and parameter.annotation is not parameter.empty:
            annotation = parameter.annotation
            return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return None


def references(tree: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Where something else's value is taken, as `${data.init_args.batch_size}`."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from references(value, (*keys, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from references(value, (*keys, index))
    elif _is_reference(tree):
        yield keys, tree
