"""What a run says of itself: the block at its start, the table of results at an evaluation's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from .terminal import table


def results_table(stage: str, results: Sequence[Mapping[str, float]]) -> str:
    """Metrics in a table, one column per loader."""
    columns = [
        f"{stage} metric",
        *(f"loader {index}" if len(results) > 1 else "value" for index in range(len(results))),
    ]
    names = dict.fromkeys(name for result in results for name in result)
    rows = [[name, *(f"{result[name]:.6g}" if name in result else "" for result in results)] for name in names]
    lines: list[str] = []
    table(columns, rows, right=range(1, len(columns)), write=lines.append)
    return "".join(lines).rstrip("\n")


def describe_batch(batch: Any) -> str:
    """Shapes and types of a batch's tensors, for errors."""
    if isinstance(batch, paddle.Tensor):
        return f"{list(batch.shape)} {str(batch.dtype).rpartition('.')[2]}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        return "[" + ", ".join(describe_batch(value) for value in batch) + "]"
    return type(batch).__name__
