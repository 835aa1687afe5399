"""Several files and the command line as one configuration that knows where each of its values was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import ConfigurationError
from .files import ConfigurationFile, Keys, dotted, value_of

CLASSES = ("module", "data", "optimizer", "lr_scheduler")


class Merged:
    """What was given, the later over the earlier; only `add_file` and `add_argument` write it."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self._sources: dict[Keys, str] = {}

    def add_file(self, file: ConfigurationFile) -> None:
        """What stands in a file, over what was there; a list takes the place of a list."""
        for keys, line in file.lines.items():
            self._sources[keys] = f"{file.name}, line {line}"
        self.tree = _over(self.tree, file.tree)

    def add_argument(self, name: str, text: str) -> None:
        """`--name=text` of the command line: `trainer.max_epochs`, `module`, `module.lr`, `trainer.callbacks+`.

        Raises:
            ConfigurationError: there is nothing that it could belong to.
        """
        adds, name = name.endswith("+"), name.removesuffix("+")
        try:
            value = value_of(text)
        except yaml.YAMLError:
            value = text
        keys: Keys = tuple(name.split("."))
        if adds:
            present = self._at(keys)
            items = [] if present is None else list(present) if isinstance(present, list) else [present]
            self._set((*keys, len(items)), value, [*items, value], f"--{name}+")
            return
        keys = self._full(keys)
        if keys[-1] == "class_path" or keys in ((one,) for one in CLASSES):
            keys = keys[:-1] if keys[-1] == "class_path" else keys
            if isinstance(value, str):
                value = {"class_path": value}
        self._set(keys, value, value, f"--{name}")

    def place(self, keys: Keys) -> str:
        """Where it was given: `run.yaml, line 12: trainer.max_epochs`, `--trainer.max_epochs`."""
        known = keys
        while known and known not in self._sources:
            known = known[:-1]
        source = self._sources.get(known, "")
        if source.startswith("--"):
            return source
        return ": ".join(filter(None, (source, dotted(keys)))) or "the configuration"

    def _full(self, keys: Keys) -> Keys:
        """`module.lr` is `module.init_args.lr`; of callbacks and loggers in a list it is the last one's."""
        head = 1 if keys[0] in CLASSES else 2 if keys[:2] in (("trainer", "callbacks"), ("trainer", "logger")) else 0
        if not head or len(keys) <= head:
            return keys
        start, rest = keys[:head], keys[head:]
        present = self._at(start)
        if head == 2 and isinstance(present, list) and present:
            start = (*start, int(rest[0]) if rest[0].isdigit() else len(present) - 1)
            rest = rest[1:] if rest[0].isdigit() else rest
        if rest and rest[0] not in ("class_path", "init_args"):
            rest = ("init_args", *rest)
        return (*start, *rest)

    def _at(self, keys: Keys) -> Any:
        found: Any = self.tree
        for key in keys:
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, list) and isinstance(key, int) and key < len(found):
                found = found[key]
            else:
                return None
        return found

    def _set(self, keys: Keys, source_value: Any, value: Any, source: str) -> None:
        for known in [known for known in self._sources if known[: len(keys)] == keys]:
            if not isinstance(source_value, Mapping) or "class_path" not in source_value:
                del self._sources[known]
        self._sources[keys] = source
        if isinstance(source_value, Mapping) and "class_path" in source_value:
            of_class = (*keys, "class_path")
            self._sources[of_class] = source
        target = keys[:-1] if isinstance(keys[-1], int) and isinstance(value, list) else keys
        self.tree = _put(self.tree, target, value, source)


def _put(tree: Any, keys: Keys, value: Any, source: str) -> Any:
    """A copy of a tree in which `value` stands at `keys`."""
    if not keys:
        return _over(tree, value) if isinstance(value, Mapping) and "class_path" in value else value
    key, rest = keys[0], keys[1:]
    if isinstance(tree, list):
        if not isinstance(key, int) or key >= len(tree):
            raise ConfigurationError(f"{source}: there is no {key!r} in a list of {len(tree)}")
        return [_put(one, rest, value, source) if index == key else one for index, one in enumerate(tree)]
    if isinstance(tree, str) and key == "init_args":  # a class that was named by a string
        tree = {"class_path": tree}
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise ConfigurationError(f"{source}: what stands there is {tree!r}, which has no {key!r}")
    return {**tree, key: _put(tree.get(key), rest, value, source)}


def _over(before: Any, after: Any) -> Any:
    """`after` over `before`; where the class is another one, nothing of the arguments before stays."""
    if isinstance(before, str) and isinstance(after, Mapping) and "class_path" not in after:
        before = {"class_path": before}
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return after
    if after.get("class_path", before.get("class_path")) != before.get("class_path"):
        return dict(after)
    return {**before, **{key: _over(before.get(key), value) for key, value in after.items()}}


def split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The command line as flags for jsonargparse (help, print_config) and (name, text) of all else, in their order.

    Raises:
        ConfigurationError: a word that belongs to no option, an option without a value.
    """
    flags: list[str] = []
    options: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        if word in ("-h", "--help") or name == "--print_config":
            flags.append(word)
        elif name.startswith("--") and name.endswith(".help"):
            flags += [word] if equals else [word, *([rest.pop(0)] if rest and not rest[0].startswith("-") else [])]
        elif not name.startswith("--"):
            raise ConfigurationError(
                f"{word!r} belongs to no option: write --KEY VALUE, as in --config run.yaml --trainer.max_epochs 5"
            )
        elif equals:
            options.append((name[2:], text))
        elif rest and not rest[0].startswith("--"):
            options.append((name[2:], rest.pop(0)))
        else:
            raise ConfigurationError(f"{word} needs a value: {word} VALUE")
    return flags, options
