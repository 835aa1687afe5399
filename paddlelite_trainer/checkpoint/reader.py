"""Looks at the checkpoints of one run: lists them, verifies them, finds the one to go on from; changes nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from ..errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, did_you_mean
from .entry import Entry, entry_from_manifest, parse_entry_name
from .filesystem import REAL, FileSystem
from .inventory import Inventory
from .links import CHECKPOINTS, Links
from .manifest import MANIFEST
from .pins import RECOVERED, Pins, parse_changes
from .record import PinRecord
from .saved import FOLLOW_ATTEMPTS, SavedCheckpoint, inspect, open_checkpoint, read_manifest

QUARANTINE = ".quarantine"
SUPERSEDED = ".superseded"


class CheckpointReader:
    """Looks at the checkpoints of one run directory, also while another process writes there; any number at a time.

        reader = CheckpointReader("runs/version_0")
        saved = reader.read(reader.newest())
        saved.tensors("model.pdparams"), saved.state("trainer.json")

    It changes nothing, and sees at every call what the run's writer, a `CheckpointStore`, has changed meanwhile.
    """

    def __init__(self, run_dir: str | Path, *, file_system: FileSystem = REAL) -> None:
        self.findings: list[str] = []
        """Why the last `newest` did not return the very newest: a sentence for each checkpoint passed over."""
        self.damaged: list[str] = []
        """Names of those that the last `newest` passed over because they are damaged."""
        self.run_dir = Path(os.path.abspath(run_dir))
        self.directory = self.run_dir / CHECKPOINTS
        self._fs = file_system
        self._links = Links(self.run_dir, file_system)
        self._opened: SavedCheckpoint | None = None  # what newest() has just verified, for read()
        # What manifests say, by name, inode and time; not they themselves, each of which may name all checkpoints.
        self._committed: dict[tuple[str, int, int], tuple[Entry, int]] = {}
        self._there = Inventory()
        self._record = PinRecord(file_system, self.directory)
        self._recorded = Pins()  # with the checkpoints that are gone
        self._open()

    def entries(self) -> list[Entry]:
        """The committed checkpoints, oldest first; one that is being saved in the background is not yet among them."""
        self._look()
        return self._there.entries()

    def by_pin(self, name: str) -> list[Entry]:
        """The checkpoints that a pin holds, in its order (best first); none for a name that is no pin."""
        self._look()
        return [self._there[held] for held in self._pins.held.get(name, ()) if held in self._there]

    def first_of_pin(self, name: str) -> Entry:
        """The checkpoint that a pin holds first, its best; never another in its place.

        Raises:
            CheckpointNotFoundError: there is no such pin.
            CheckpointCorruptError: its first checkpoint is damaged or gone; the message names it and the sound rest.
            OSError: whether it is there cannot be read.
        """
        before: tuple[str, ...] = ()
        for _ in range(FOLLOW_ATTEMPTS):
            self._look()
            held = self._held_by(name)
            if held and held[0] in self._there:
                return self._there[held[0]]
            if held == before:  # else it was looked at while its writer moved it on
                break
            before = held
        if not held:
            raise CheckpointNotFoundError(
                f"There is no pin {name!r} in {self.run_dir}.{did_you_mean(name, self._pins.held)}"
            )
        path, problem = self.directory / held[0], "it is gone"
        if self._fs.exists(path):
            try:
                entry_from_manifest(path, read_manifest(path, self._fs))
                problem = f"its manifest is that of another: {path / MANIFEST}"
            except CheckpointCorruptError as error:
                problem = f"it is damaged: {error}"
        rest = ", ".join(other for other in held[1:] if not self.verify(other))
        raise CheckpointCorruptError(
            f"{self.run_dir / name} means {held[0]}, and {problem}. "
            + (f"Sound among the others that {name!r} holds: {rest}." if rest else f"{name!r} holds no other.")
        )

    def pins(self) -> dict[str, tuple[str, ...]]:
        """Pin -> names of the checkpoints it holds."""
        self._look()
        return dict(self._pins.held)

    @property
    def _pins(self) -> Pins:
        return self._there.pins

    def pins_by_checkpoint(self) -> dict[str, tuple[str, ...]]:
        """Checkpoint's name -> the pins that hold it."""
        self._look()
        return self._pins.by_entry()

    def newest(self, *, prefer_healthy: bool = True, complete: bool = False) -> Entry | None:
        """The newest checkpoint every byte of which verifies; None when there are none at all.

        Damaged ones are passed over, with a warning that names them and the one used instead.
        With `prefer_healthy` an older healthy one goes before an unhealthy newest, with a warning too. With `complete`
        those that hold weights only are passed over: one cannot go on from them.

        Raises:
            CheckpointCorruptError: there are checkpoints and none of them verifies.
            CheckpointError: none of them can be read (no permission, a failing disk).
        """
        self.findings = []
        for _ in range(FOLLOW_ATTEMPTS):
            self._look()
            chosen, damaged, unhealthy = self._search(prefer_healthy, complete)
            # A reader beside a writer may have looked at one that was being deleted; then there is a newer one.
            if all(self._fs.exists(self.directory / name) for name in damaged):
                break
        if chosen is None and unhealthy:
            chosen = unhealthy[0]
            unhealthy = []
        if chosen is None:
            if damaged:
                report = "".join(f"\n  - {name}: {'; '.join(problems)}" for name, (problems, _) in damaged.items())
                if not any(content_is_wrong for _, content_is_wrong in damaged.values()):
                    raise CheckpointError(
                        f"There are checkpoints in {self.directory} and none of them can be read.{report}"
                    )
                raise CheckpointCorruptError(
                    f"There are checkpoints in {self.directory} and none of them can be used; "
                    f"move them away to start afresh.{report}"
                )
            return None
        self.damaged = list(damaged)
        for name, (problems, content_is_wrong) in damaged.items():
            moved = content_is_wrong and self._quarantined(name)
            where = f" It was moved to {CHECKPOINTS}/{QUARANTINE}/." if moved else ""
            self.findings.append(f"Checkpoint {name} is damaged; using {chosen.name}. {'; '.join(problems)}.{where}")
        if unhealthy:
            names = ", ".join(entry.name for entry in unhealthy)
            self.findings.append(
                f"Checkpoint {names} holds NaN or infinite values; using {chosen.name}, the newest healthy one."
            )
        for finding in self.findings:
            warnings.warn(finding, stacklevel=2)
        return self._refreshed(chosen)

    def _search(
        self, prefer_healthy: bool, complete: bool
    ) -> tuple[Entry | None, dict[str, tuple[list[str], bool]], list[Entry]]:
        """The newest that will do, and what was passed over: the damaged with their problems, and the unhealthy."""
        damaged: dict[str, tuple[list[str], bool]] = {}
        unhealthy: list[Entry] = []
        for name in self._names_newest_first():
            saved, problems, content_is_wrong = inspect(self.directory / name, self._fs, self._pins.of(name))
            if saved is None:
                damaged[name] = (problems, content_is_wrong)
            elif complete and saved.entry.info.get("weights_only"):
                continue
            elif prefer_healthy and not saved.entry.healthy:
                unhealthy.append(saved.entry)
            else:
                self._opened = saved
                return saved.entry, damaged, unhealthy
        return None, damaged, unhealthy

    def verify(self, entry: Entry | str) -> list[str]:
        """Every problem of a checkpoint, each byte checked against the manifest; empty when it is sound."""
        return inspect(self._directory_of(entry), self._fs)[1]

    def read(self, entry_or_path: Entry | str | Path) -> SavedCheckpoint:
        """Open a checkpoint for reading, verified in the same pass.

        Raises:
            CheckpointNotFoundError: it is not there.
            CheckpointCorruptError: its bytes are not what was written.
        """
        if isinstance(entry_or_path, Entry):
            opened, self._opened = self._opened, None
            if (
                opened is not None
                and opened.entry.path == entry_or_path.path
                and opened.entry.sha256 == entry_or_path.sha256
            ):
                return opened
        path = entry_or_path.path if isinstance(entry_or_path, Entry) else entry_or_path
        saved = open_checkpoint(path, file_system=self._fs)
        saved.entry = replace(saved.entry, pins=self._pins.of(saved.entry.name))
        return saved

    def unheld(self, *, superseded: bool = False) -> list[Entry]:
        """What `CheckpointStore.prune` would delete; with `superseded` also what `set_aside_after` has moved away."""
        self._look()
        return [*(self._set_aside_entries() if superseded else []), *self._unheld()]

    def quarantined(self) -> list[Path]:
        """The checkpoints that were set aside as damaged."""
        folder = self.directory / QUARANTINE
        names = self._fs.listdir(folder) if self._fs.exists(folder) else []
        # The second of one name that was set aside is called step-000000001.1.
        return [folder / name for name in sorted(names) if parse_entry_name(name.split(".")[0])]

    # ---- what a writer does otherwise ----

    def _open(self) -> None:
        self._load()

    def _look(self) -> None:
        """Take over what another process may have changed."""
        self._load()

    def _held_by(self, pin: str) -> tuple[str, ...]:
        """What a pin is recorded to hold, be it there or gone."""
        return self._recorded.held.get(pin, ())

    def _quarantined(self, name: str) -> bool:
        """Whether a damaged checkpoint was moved away."""
        return False

    def _committed_as(self, name: str) -> tuple[Entry, int]:
        """A checkpoint's entry, and the number of its commit."""
        path = self.directory / name
        status = self._fs.lstat(path / MANIFEST)
        key = (name, status.st_ino, status.st_mtime_ns)
        if key not in self._committed:
            manifest = read_manifest(path, self._fs)
            self._committed[key] = entry_from_manifest(path, manifest), int(manifest.get("sequence", 0))
        return self._committed[key]

    def _unheld(self) -> list[Entry]:
        """The committed checkpoints that no pin holds, but for the newest healthy one."""
        return self._there.unheld()

    # ---- what is there ----

    def _load(self) -> None:
        """Read manifests and pins; where they disagree, take what the process that died was about to do."""
        committed: dict[str, tuple[Entry, int]] = {}
        for name in self._names():
            try:
                found = self._committed_as(name)
            except (CheckpointCorruptError, OSError):
                continue  # not committed, or damaged: newest() reports and quarantines it
            if found[0].name == name:
                committed[name] = found
        self._committed = {key: found for key, found in self._committed.items() if key[0] in committed}
        pins = self._reconciled({name: sequence for name, (_, sequence) in committed.items()})
        self._there = Inventory((entry for entry, _ in committed.values()), pins)

    def _reconciled(self, committed: Mapping[str, int]) -> Pins:
        """`committed`: each checkpoint, and the number of its commit."""
        listed = self._listed()
        existing = {name for name in listed if parse_entry_name(name)}
        recorded = self._record.read(listed)
        pins = self._with_later_commits(recorded, committed)
        if recorded is None:
            pins = pins.without_entries(pins.all_held() - existing, None)
            pins = pins.with_pins(
                {
                    pin: [entry]
                    for pin, entry in (self._links.found().items() if committed else ())
                    if entry in existing and pin not in pins.held
                }
            )
        held = pins.all_held()
        lost = [name for name in committed if name not in held and (recorded is None or name not in pins.known)]
        if lost:
            pins = pins.with_pins({RECOVERED: [*pins.held.get(RECOVERED, ()), *lost]})
        self._recorded = pins
        gone = pins.all_held() - existing
        newest_left = max(committed, key=lambda name: parse_entry_name(name) or (0, 0), default=None)
        return pins.without_entries(gone, newest_left).at(existing, pins.sequence)

    def _with_later_commits(self, recorded: Pins | None, committed: Mapping[str, int]) -> Pins:
        """The record with what the checkpoints' own manifests say of commits after it; of all of them without one."""
        pins = recorded or Pins()
        known = set(pins.known)
        for name, sequence in sorted(committed.items(), key=itemgetter(1)):
            if name not in known and (recorded is None or sequence == pins.sequence + 1):
                try:
                    manifest = read_manifest(self.directory / name, self._fs)
                    changes = parse_changes(manifest["pins"])
                except (CheckpointCorruptError, OSError, KeyError, TypeError, ValueError, AttributeError):
                    continue  # gone since it was looked at
                known.add(name)
                pins = replace(pins.with_pins(changes, links=bool(manifest["links"])), sequence=sequence)
        return pins.at(known, pins.sequence)

    def _listed(self) -> list[str]:
        try:
            return self._fs.listdir(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _names(self) -> list[str]:
        return [name for name in self._listed() if parse_entry_name(name)]

    def _names_newest_first(self) -> list[str]:
        return sorted(self._names(), key=lambda name: parse_entry_name(name) or (0, 0), reverse=True)

    def _refreshed(self, entry: Entry) -> Entry:
        return replace(entry, pins=self._pins.of(entry.name))

    def _directory_of(self, entry: Entry | str) -> Path:
        return entry.path if isinstance(entry, Entry) else self.directory / entry

    def _set_aside_entries(self) -> list[Entry]:
        found = []
        folder = self.directory / SUPERSEDED
        for name in sorted(self._fs.listdir(folder)) if self._fs.exists(folder) else []:
            try:
                found.append(entry_from_manifest(folder / name, read_manifest(folder / name, self._fs)))
            except CheckpointCorruptError:
                continue
        return found
