"""CSVLogger: one row per step, one column per name."""

from __future__ import annotations

import csv
import io
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .append_only import AppendOnlyFile, replace, replacing
from .base import FileLogger, as_json, number_of


class CSVLogger(FileLogger):
    """Metrics as `metrics.csv`, hyper-parameters as `hparams.json`; one row per step, one column per name.

    A name may appear at any time. Its column goes to the right end: the header is then replaced (the file is written
    anew under another name and renamed over the old one), the rows stay as they are, so early rows have fewer fields
    than the header. The csv module, pandas and spreadsheets read that as empty cells. Otherwise the file is only
    appended to, in whole rows.

    `directory` is a folder inside the run directory.
    """

    FILE_NAME = "metrics.csv"

    def _forget(self) -> None:
        super()._forget()
        self._columns: list[str] = []
        self._header_bytes = 0
        self._step = 0
        self._row: dict[str, str] = {}  # the newest step's, until another step comes: several calls share one row

    @property
    def path(self) -> Path:
        """Of the file with the metrics."""
        return self.folder / self.FILE_NAME

    @property
    def experiment(self) -> CSVLogger:
        """What Lightning's code logs by: this logger itself."""
        return self

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._begin()
        row = {name: _digits(number_of(name, value)) for name, value in metrics.items()}
        step = self._step if step is None else int(step)
        if step != self._step or any(self._row.get(name, value) != value for name, value in row.items()):
            self._write_row()
        self._step = step
        self._row = {"step": str(step), **self._row, **row}

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        path = self.folder / "hparams.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, (as_json(params) + "\n").encode())

    def save(self) -> None:
        self._write_row()
        super().save()

    def state_dict(self) -> dict[str, Any]:
        """The header and the number of bytes below it."""
        self._write_row()
        if self._file is not None:
            self._file.flush()
        columns, header_bytes = _read_header(self.path)
        return {"columns": columns, "data_bytes": self.path.stat().st_size - header_bytes} if columns else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        columns, data_bytes = list(state_dict.get("columns", [])), int(state_dict.get("data_bytes", 0))
        if not columns:
            self.path.unlink(missing_ok=True)
            return
        found, header_bytes = _read_header(self.path)
        size = self.path.stat().st_size if found else 0
        if found[: len(columns)] != columns or size - header_bytes < data_bytes:
            warnings.warn(
                f"{self.path} does not hold what the checkpoint says was logged ({data_bytes} bytes below the columns "
                f"{', '.join(columns)}); somebody else changed it. It is kept as it is and appended to.",
                stacklevel=2,
            )
            return
        os.truncate(self.path, header_bytes + data_bytes)
        if found != columns:  # columns that came later go too, so that the file is the one the checkpoint saw
            _replace_header(self.path, header_bytes, _csv_line(columns))

    def _begin(self) -> None:
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._columns, self._header_bytes = _read_header(self.path)
        self._file = AppendOnlyFile(self.path)

    def _write_row(self) -> None:
        if not self._row:
            return
        self._begin()
        assert self._file is not None
        row, known = self._row, set(self._columns)
        if not row.keys() <= known:
            self._file.flush()  # what cannot be written stays there
            self._file.close()
            self._file = None
            columns = [*self._columns, *(name for name in row if name not in known)]
            header = _csv_line(columns)
            _replace_header(self.path, self._header_bytes, header)
            self._columns, self._header_bytes = columns, len(header)
            self._file = AppendOnlyFile(self.path)
        # Only names need csv's quotes, numbers never do.
        self._file.append((",".join([row.get(name, "") for name in self._columns]) + "\n").encode())
        self._row = {}


def _digits(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _csv_line(fields: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()


def _read_header(path: Path) -> tuple[list[str], int]:
    """The column names and the bytes of the header line; ([], 0) where there is no file or nothing in it."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return [], 0
    return next(csv.reader([line.decode()]), []), len(line)


def _replace_header(path: Path, old_header_bytes: int, header: bytes) -> None:
    with replacing(path) as new, path.open("rb") as old:
        new.write(header)
        old.seek(old_header_bytes)
        shutil.copyfileobj(old, new)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end, as a power loss may leave."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 4096)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)
