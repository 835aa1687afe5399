"""The record of the pins on the disk: pins.json and, where it is long, a small file for each change since."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorruptError
from .filesystem import FileSystem, attempt, temporary_path
from .manifest import seal, unseal
from .pins import PINS_FILE, PinChange, Pins, changes_to_json, entry_of, parse_changes, parse_pins

# A record of so few checkpoints is replaced whole; a longer one after as many changes as are an eighth of them, so that
# what a change costs does not grow with what is there.
REPLACED_UP_TO = 64
CHECKPOINTS_A_CHANGE = 8
_CHANGE_FILE = re.compile(r"pins-(\d{9,18})\.json")
_ATTEMPTS = 100


@dataclass(frozen=True)
class Staged:
    """The record's next change, ready to be written: under which name, what, and the pins after it."""

    file: str
    data: bytes
    after: Pins

    @property
    def is_whole(self) -> bool:
        return self.file == PINS_FILE


class PinRecord:
    """The record of one run's pins. The store stages a change, writes it where and when it is due, and confirms it.

    A change's file names the pins.json that it follows by its checksum, and is numbered: after another pins.json, or
    after one that is missing, it says nothing.
    """

    def __init__(self, file_system: FileSystem, directory: Path) -> None:
        self._fs, self._directory = file_system, directory
        self._base = ""
        """Checksum of the pins.json that changes follow; empty where the next is to be a new one."""
        self._since: list[str] = []
        self._replaced: list[str] = []
        """What a new pins.json has made needless, once its name is durable."""
        self._needless: list[str] = []
        self._read: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    # ---- reading ----

    def read(self, names: Collection[str]) -> Pins | None:
        """What the record says, of all `names` in the directory; None where it is lost, with a warning if damaged."""
        for _ in range(_ATTEMPTS):
            identity = self._identity(PINS_FILE)
            try:
                data = self._fs.read(self._directory / PINS_FILE)
                pins = parse_pins(data)
            except FileNotFoundError:
                return None
            except CheckpointCorruptError as error:
                run = self._directory.parent
                warnings.warn(
                    f"The record of pins was rebuilt from the checkpoints and links in {run}: {error}", stacklevel=5
                )
                return None
            pins = self._with_changes(pins, _checksum(data), names)
            if self._identity(PINS_FILE) == identity:
                return pins
            names = self._fs.listdir(self._directory)  # it was replaced meanwhile, and its changes perhaps deleted
        return pins

    def _with_changes(self, pins: Pins, base: str, names: Collection[str]) -> Pins:
        found = {int(match[1]): match[0] for match in map(_CHANGE_FILE.fullmatch, names) if match}
        self._read = {file: self._read[file] for file in found.values() if file in self._read}
        held, known, first = dict(pins.held), set(pins.known), pins
        without_links, removed = pins.without_links, pins.removed
        while (file := found.get(pins.changes + 1)) is not None:
            try:
                record = self._change_in(file)
                if record["after"] != base or record["number"] != pins.changes + 1:
                    break
                changes = parse_changes(record["pins"])
                few = Pins({name: held[name] for name in changes if name in held}, without_links, removed=removed)
                few = few.with_pins(changes, links=bool(record["links"]))
                for name in changes:
                    held.pop(name, None) if name not in few.held else held.update({name: few.held[name]})
                without_links, removed = few.without_links, few.removed
                known.difference_update(map(entry_of, record["forgotten"]))
                known.update(map(entry_of, record["known"]))
                pins = replace(pins, sequence=int(record["sequence"]), changes=pins.changes + 1)
            except (CheckpointCorruptError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
                if not isinstance(error, FileNotFoundError):
                    warnings.warn(f"{self._directory / file} is no change of the pins: {error!r}", stacklevel=6)
                break
        if pins is first:
            return pins
        return replace(pins, held=held, known=frozenset(known), without_links=without_links, removed=removed)

    def _change_in(self, file: str) -> dict[str, Any]:
        identity = self._identity(file)
        if file not in self._read or self._read[file][0] != identity:
            record = unseal(self._fs.read(self._directory / file), file)
            self._read[file] = identity or (0, 0), record
        return self._read[file][1]

    def _identity(self, file: str) -> tuple[int, int] | None:
        try:
            status = self._fs.lstat(self._directory / file)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    # ---- writing ----

    def is_due_whole(self, count: int) -> bool:
        """Whether the next change replaces pins.json, as there are so many checkpoints."""
        return not self._base or count <= REPLACED_UP_TO or CHECKPOINTS_A_CHANGE * len(self._since) >= count

    def stage(
        self,
        before: Pins,
        after: Pins,
        changes: Mapping[str, PinChange],
        *,
        links: bool,
        known: Collection[str],
        new: Collection[str] = (),
        forgotten: Collection[str] = (),
        whole: bool = True,
    ) -> Staged:
        """A change of the record: pins.json anew, or what makes `after` of `before` in a file of its own.

        `known` are all checkpoints there are after it; `new` and `forgotten` those that the record has not, or has and
        there are no more.
        """
        if whole:
            after = replace(after, known=frozenset(known))
            return Staged(PINS_FILE, seal(after.to_json()), after)
        after = replace(after, changes=before.changes + 1)
        record = {
            "format": 1,
            "after": self._base,
            "number": after.changes,
            "sequence": after.sequence,
            "pins": changes_to_json(changes),
            "links": links,
            "known": list(new),
            "forgotten": list(forgotten),
        }
        return Staged(f"pins-{after.changes:09d}.json", seal(record), after)

    def put(self, temporary: Path, staged: Staged) -> None:
        """Give what was written at `temporary` its name; it is durable when the directory is."""
        self._fs.replace(temporary, self._directory / staged.file)

    def write(self, staged: Staged) -> None:
        """Write a change at once; its name is durable when the directory is."""
        temporary = temporary_path(self._directory, ".tmp", "pins")
        try:
            self._fs.write_file(temporary, staged.data)
            self.put(temporary, staged)
        except BaseException:
            attempt(partial(self._fs.remove_tree, temporary))
            raise

    def confirm(self, staged: Staged) -> None:
        """The change is made, and with it all that was made before is durable."""
        self._needless += self._replaced
        self._replaced = []
        if staged.is_whole:
            self._base, self._replaced, self._since = _checksum(staged.data), self._since, []
        else:
            self._since.append(staged.file)

    def undo(self, staged: Staged, before: Pins, known: Collection[str]) -> None:
        """Let the record be as it was before a change that perhaps was made."""
        self._base = ""  # what is there now is not known for certain
        if staged.is_whole:
            whole = self.stage(before, before, {}, links=True, known=known)
            attempt(partial(self.write, whole))
        else:
            attempt(partial(self._fs.remove_tree, self._directory / staged.file))

    def begin(self, names: Collection[str]) -> None:
        """All of these that are changes are needless once pins.json has been written anew, which is the next to be."""
        self._base = ""
        self._since = sorted(name for name in names if _CHANGE_FILE.fullmatch(name))

    def sweep(self) -> None:
        """Delete what is needless."""
        while self._needless:
            self._fs.remove_tree(self._directory / self._needless[-1])
            self._needless.pop()


def _checksum(data: bytes) -> str:
    return data[12:76].decode("ascii", "replace")
