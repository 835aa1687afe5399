"""What a run says of itself: the block at its start, the table of results at an evaluation's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle


def announce(lines: Sequence[tuple[str, str]]) -> str:
    """One block of names and what they are."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def print_results(stage: str, results: Sequence[Mapping[str, float]]) -> None:
    """A table of metrics, one column per loader."""
    from rich.console import Console
    from rich.table import Table

    if not any(results):
        return
    table = Table()
    table.add_column(f"{stage} metric")
    for index in range(len(results)):
        table.add_column("value" if len(results) == 1 else f"loader {index}", justify="right")
    names = list(dict.fromkeys(name for result in results for name in result))
    for name in names:
        table.add_row(name, *(f"{result[name]:.6g}" if name in result else "" for result in results))
    Console().print(table)


def describe_batch(batch: Any) -> str:
    """Shapes and types of a batch's tensors, for errors."""
    if isinstance(batch, paddle.Tensor):
        return f"{list(batch.shape)} {str(batch.dtype).rpartition('.')[2]}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        return "[" + ", ".join(describe_batch(value) for value in batch) + "]"
    return type(batch).__name__
