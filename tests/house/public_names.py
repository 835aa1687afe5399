"""What the reference shows: every public name of docs/reference, its methods and properties, and their docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from house.documents import DOCS

from paddlelite_trainer import Logger
from paddlelite_trainer.logs import Logs


@dataclass(frozen=True)
class PublicName:
    """A class, a function, or a method or property of a public class that it is the first to have."""

    path: str
    thing: Any
    owner: type | None = None

    @property
    def callable_of_it(self) -> Any:
        """The function with its arguments and its body: the constructor of a class."""
        return vars(self.thing).get("__init__") if inspect.isclass(self.thing) else self.thing

    @property
    def docstring(self) -> str:
        """Its docstring, and that of the constructor below the class's."""
        own = inspect.cleandoc(self.thing.__doc__ or "")
        constructor = vars(self.thing).get("__init__") if inspect.isclass(self.thing) else None
        return f"{own}\n\n{inspect.cleandoc(getattr(constructor, '__doc__', None) or '')}".strip()

    def section(self, title: str) -> str:
        """What stands below `Args:` or `Raises:`, "" where there is none."""
        found = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", self.docstring, re.MULTILINE | re.DOTALL)
        return found[1] if found else ""

    @property
    def documented_arguments(self) -> set[str]:
        """The names before the colons of `Args:`, one a line, as the site reads them."""
        return {head.strip("*") for head in re.findall(r"^    (?! )([\w*, ]+?):", self.section("Args"), re.MULTILINE)}


def public_names() -> list[PublicName]:
    """All of them, by the pages."""
    found: dict[str, PublicName] = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            for one in _with_methods(path):
                found.setdefault(one.path, one)
    return list(found.values())


def _with_methods(path: str) -> Iterator[PublicName]:
    thing, owner = _imported(path)
    yield PublicName(path, thing, owner)
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            function = _function_of(member)
            is_override = any(name in vars(base) for base in thing.__mro__[1:])
            # What a logger has of Logs it has by the same arguments: docs/logging.md tells of them.
            is_override |= issubclass(thing, Logger) and hasattr(Logs, name)
            if not name.startswith("_") and function is not None and not is_override:
                yield PublicName(f"{path}.{name}", function, thing)


def _imported(path: str) -> tuple[Any, type | None]:
    module, _, name = re.sub(r"^callbacks\.", "paddlelite_trainer.callbacks.", path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name), None
    except ModuleNotFoundError:  # a method
        owner, _ = _imported(module)
        return getattr(owner, name), owner


def _function_of(member: Any) -> Any:
    for attribute in ("fget", "func", "__func__"):
        member = getattr(member, attribute, member)
    return member if inspect.isfunction(member) else None
