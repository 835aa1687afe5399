"""Nothing: takes every call and does nothing, in the place of a library's own object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Nothing:
    """Takes every call and every attribute, and does nothing: a writer of whatever kind."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Nothing:
        return self

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: Any) -> Nothing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return None
