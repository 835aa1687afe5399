"""A YAML file as dicts and lists, with the line that each key stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigurationError

Keys = tuple[Any, ...]
"""Where a value stands: keys of dicts and indices of lists, from the top."""


def dotted(keys: Keys) -> str:
    """`trainer.callbacks[1].init_args.monitor`"""
    words = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return words.removeprefix(".")


@dataclass
class ConfigurationFile:
    """What stands in a file, and on which line each of its keys does, counted from 1."""

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    lines: dict[Keys, int] = field(default_factory=dict)


def read(path: str | Path) -> ConfigurationFile:
    """Read a file.

    Raises:
        ConfigurationError: there is no such file, it is no YAML, a key stands in it twice, or it is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"--config {path}: there is no such file{_near(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path}{line}: this is no YAML: {error.problem}{_hint(text, mark)}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: this is no YAML: {error}") from None
    lines: dict[Keys, int] = {}
    tree = _value(node, (), str(path), lines) if node is not None else {}
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{path} holds {'a list' if isinstance(tree, list) else repr(tree)}; a configuration has keys at its top: "
            "module, data, trainer, ..."
        )
    return ConfigurationFile(str(path), tree, lines)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as people mean it; PyYAML's is that of 2005, in which it is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def value_of(text: str) -> Any:
    """What a YAML value means, as on the command line."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _value(node: yaml.Node, keys: Keys, name: str, lines: dict[Keys, int]) -> Any:
    lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, keys, name, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(one, (*keys, index), name, lines) for index, one in enumerate(node.value)]
    try:
        return _Loader("").construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(f"{name}, line {lines[keys]}: {dotted(keys)}: {error.problem}") from None


def _mapping(node: yaml.MappingNode, keys: Keys, name: str, lines: dict[Keys, int]) -> dict[Any, Any]:
    loader = _Loader("")
    written = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # what `<<: *anchor` brings along comes first, and is overridden
    result: dict[Any, Any] = {}
    seen: dict[Any, int] = {}
    for key_node, value_node in node.value:
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        at = (*keys, key)
        if key in seen and id(key_node) in written:
            raise ConfigurationError(
                f"{name}, line {line}: {dotted(at)} stands here again; it was given on line {seen[key]}. "
                "Keep one of the two."
            )
        if id(key_node) in written:
            seen[key] = line
        lines[at] = line
        result[key] = _value(value_node, at, name, lines)
    return result


def _hint(text: str, mark: yaml.Mark | None) -> str:
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return " (a tab: indent with spaces)"
    if "${" in line:
        return f": {line.strip()} (within braces write ${{...}} in quotes)"
    return f": {line.strip()}" if line.strip() else ""


def _near(path: Path) -> str:
    try:
        others = sorted(one.name for one in path.parent.iterdir() if one.suffix in (".yaml", ".yml"))
    except OSError:
        return f", and no directory {path.parent}"
    return f"; {path.parent.resolve()} has {', '.join(others[:5])}" if others else f" in {path.parent.resolve()}"
