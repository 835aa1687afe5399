"""An acknowledged save survives a power loss, whatever of the unsynced operations had reached the disk.

The operations of real saves are recorded, and every state that a disk could be left in is built and opened: each write,
and each change of a directory, either reached the disk or did not, in any combination, unless an fsync in between
forced it.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from store_support import CHANGES, HookedFileSystem, leftovers, links_of, save

from paddlelite_trainer.checkpoint import CheckpointStore, open_checkpoint

# The smallest save: few enough operations that all combinations of those at risk can be tried.
SMALL = {"files": {"model.pdparams": {}}}


class Recorder(HookedFileSystem):
    """Writes down every change, with descriptors as the paths that they were opened for."""

    def __init__(self):
        self.log = []
        self.path_of = {}

    def after(self, name, args, result):
        if name not in CHANGES:
            return
        if name == "create":
            self.path_of[result] = args[0]
        elif name in ("write", "fsync", "close"):
            args = (self.path_of[args[0]], *(bytes(data) for data in args[1:]))
        self.log.append((name, *args))

    def acknowledge(self, what):
        self.log.append(("acknowledged", what))


@dataclass(eq=False)
class Node:
    """A file, link or directory on the disk."""

    kind: str
    target: str = ""


class Disk:
    """The operations so far, each of them forced to the disk by an fsync or still pending.

    A change of directories is a list of (directory node, name, node or None) that reaches the disk as one, as it does
    in a journal. Nodes, not paths: what is renamed keeps its content.
    """

    def __init__(self, root: Path):
        self.root_path = root
        self.root = Node("directory")
        self.changes = []  # [names changed, forced?], so far as they are not in `names`
        self.writes = []  # [node, data, forced?], so far as they are not in `content`
        self.names = {}  # id of directory -> {name: node}, and
        self.content = {}  # id of file -> bytes: what is on the disk for certain
        self.live = {}  # (id of directory, name) -> node: what the running system sees
        self.nodes = [self.root]  # all there ever were, so that no id is given twice

    def apply(self, operation):
        name, *args = operation
        getattr(self, name)(*args)

    def mkdir(self, path):
        self._change((*self._place(path), self._new("directory")))

    def create(self, path):
        self._change((*self._place(path), self._new("file")))

    def write(self, path, data):
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):  # a write may also be torn
            self.writes.append([self._find(path), half, False])

    def close(self, path): ...

    def acknowledged(self, what): ...

    def fsync(self, path):
        node = self._find(path)
        for write in self.writes:
            write[2] |= write[0] is node
        self._settle()

    def fsync_directory(self, path):
        directory = self._find(path)
        for change in self.changes:
            change[1] |= any(changed is directory for changed, _, _ in change[0])
        self._settle()

    def rename(self, source, target):
        node = self._find(source)
        self._change((*self._place(source), None), (*self._place(target), node))

    replace = rename

    def unlink(self, path):
        self._change((*self._place(path), None))

    rmdir = unlink

    def symlink(self, target, path):
        self._change((*self._place(path), self._new("link", target)))

    def link(self, source, path):
        self._change((*self._place(path), self._find(source)))

    def pending(self):
        """Indices of the operations that the next power loss may undo: ("change" or "write", index)."""
        changes = [("change", i) for i, change in enumerate(self.changes) if not change[1]]
        return changes + [("write", i) for i, write in enumerate(self.writes) if not write[2]]

    def left(self, reached):
        """The tree on the disk when of the pending operations just `reached` got there: {path: content}."""
        names = {directory: dict(entries) for directory, entries in self.names.items()}
        for i, (changed, forced) in enumerate(self.changes):
            if forced or ("change", i) in reached:
                for directory, name, node in changed:
                    names.setdefault(id(directory), {})[name] = node
        content = dict(self.content)
        for i, (node, data, forced) in enumerate(self.writes):
            # A write that did not get there leaves zeros where it would have stood.
            there = data if forced or ("write", i) in reached else bytes(len(data))
            content[id(node)] = content.get(id(node), b"") + there
        tree = {}
        self._walk(self.root, (), names, content, tree)
        return tree

    def _walk(self, directory, path, names, content, tree):
        for name, node in names.get(id(directory), {}).items():
            if node is None:
                continue
            place = (*path, name)
            if node.kind == "directory":
                tree[place] = None
                self._walk(node, place, names, content, tree)
            else:
                tree[place] = content.get(id(node), b"") if node.kind == "file" else node.target

    def _settle(self):
        """Move what is certain out of the lists, and forget what hangs on directories that are gone for certain."""
        waiting, open_names = [], set()
        for changed, forced in self.changes:
            names = {(id(directory), name) for directory, name, _ in changed}
            if forced and not names & open_names:
                for directory, name, node in changed:
                    self.names.setdefault(id(directory), {})[name] = node
            else:
                waiting.append([changed, forced])
                open_names |= names
        reachable = self._reachable(waiting)
        self.changes = [
            change for change in waiting if any(id(directory) in reachable for directory, _, _ in change[0])
        ]
        waiting, open_files = [], set()
        for node, data, forced in self.writes:
            if forced and id(node) not in open_files:
                self.content[id(node)] = self.content.get(id(node), b"") + data
            elif id(node) in reachable:
                waiting.append([node, data, forced])
                open_files.add(id(node))
        self.writes = waiting

    def _reachable(self, changes):
        """Ids of all nodes that some combination of these changes leaves in the tree."""
        children = {directory: list(entries.values()) for directory, entries in self.names.items()}
        for changed, _ in changes:
            for directory, _, node in changed:
                children.setdefault(id(directory), []).append(node)
        found, todo = set(), [self.root]
        while todo:
            node = todo.pop()
            if node is not None and id(node) not in found:
                found.add(id(node))
                todo += children.get(id(node), [])
        return found

    def _new(self, kind, target=""):
        self.nodes.append(Node(kind, target))
        return self.nodes[-1]

    def _change(self, *changed):
        for directory, name, node in changed:
            self.live[id(directory), name] = node
        self.changes.append([list(changed), False])

    def _place(self, path):
        return self._find(path.parent), path.name

    def _find(self, path):
        node = self.root
        for part in path.relative_to(self.root_path).parts:
            node = self.live[id(node), part]
        return node


def build(tree, directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path, content in sorted(tree.items()):
        place = directory.joinpath(*path)
        if content is None:
            place.mkdir()
        elif isinstance(content, str):
            os.symlink(content, place)
        else:
            place.write_bytes(content)


def record_a_run(root, steps=4, **saved):
    """A run whose retention, pins and tags all have something to do, and what was acknowledged when."""
    root.mkdir()
    recorder = Recorder()
    store = CheckpointStore(root / "run", file_system=recorder)
    for step in range(1, steps + 1):
        # The first makes no links, so that nothing but its own fsyncs brings the new directories to the disk.
        entry = save(store, step, {"best": ["new"]} if step not in (3, 4) else {}, links=step > 1, **saved)
        recorder.acknowledge(("save", step))
        if step == 2:
            store.tag(entry, "kept")
            recorder.acknowledge(("tag", step))
    recorder.acknowledge(("untagging", 0))
    store.untag("kept")
    recorder.acknowledge(("untag", 0))
    return recorder.log


def acknowledged_by(log, moment):
    done = [what for name, what, *_ in log[:moment] if name == "acknowledged"]
    saved = max((step for what, step in done if what == "save"), default=0)
    whats = {what for what, _ in done}
    kept = "no" if "untag" in whats else "yes" if "tag" in whats and "untagging" not in whats else "maybe"
    return saved, kept


def problem_of(tree, directory, acknowledged):
    """What a power loss broke in this state of the disk, or None."""
    saved, kept = acknowledged
    build(tree, directory)
    run = directory / "run"
    try:
        if run.exists():
            check_links(run, saved, kept)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = CheckpointStore(run)
            newest = store.newest()
        for entry in store.entries():
            assert store.verify(entry) == []
        step = newest.step if newest else 0
        assert saved <= step <= saved + 1, f"{saved} was acknowledged, {step} is the newest"
        assert newest is None or [entry.step for entry in store.by_pin("latest")] == [step]
        if kept == "yes":
            assert [entry.step for entry in store.by_pin("kept")] == [2], "a tag is lost"
        if kept == "no":
            assert store.by_pin("kept") == [], "a tag is back"
        assert leftovers(run) == []
        directories = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        assert directories == [entry.name for entry in store.entries()], "the remains of a checkpoint"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def check_links(run, saved, kept):
    """Links lead to whole checkpoints; but `latest.pdparams` may be there before `latest` is, which it goes through."""
    for name, target in links_of(run).items():
        if not name.startswith(".tmp-link-") and (run / target.split("/")[0]).exists():
            assert (run / name).exists(), f"{name} -> {target} leads nowhere"
    if saved > 1:
        assert saved <= open_checkpoint(run / "latest.pdparams").entry.step <= saved + 1
    if kept == "yes":
        assert open_checkpoint(run / "kept.pdparams").entry.step == 2
    if kept == "no":
        assert not (run / "kept").is_symlink(), "the link of a removed tag is back"


def subsets(pending, rng, limit):
    """Every subset of the pending operations where there are at most `limit`; else the telling ones and a sample."""
    if 2 ** len(pending) <= limit:
        for size in range(len(pending) + 1):
            yield from map(frozenset, itertools.combinations(pending, size))
        return
    everything = frozenset(pending)
    yield from (frozenset(), everything)
    for one in pending:
        yield everything - {one}
        yield frozenset({one})
    for _ in range(limit - 2 - 2 * len(pending)):
        share = rng.random()
        yield frozenset(one for one in pending if rng.random() < share)


def states(log, root, rng, limit, every=1):
    """(moment, tree) for power losses between all operations; each tree once for what was acknowledged."""
    disk = Disk(root)
    seen = set()
    for moment, operation in enumerate(log):
        disk.apply(operation)
        if moment % every:
            continue
        acknowledged = acknowledged_by(log, moment + 1)
        for reached in subsets(disk.pending(), rng, limit):
            tree = disk.left(reached)
            key = (acknowledged, frozenset(tree.items()))
            if key not in seen:
                seen.add(key)
                yield acknowledged, tree


def violations(log, root, work, rng, limit, at_most=None):
    count = 0
    found = []
    for acknowledged, tree in states(log, root, rng, limit):
        count += 1
        problem = problem_of(tree, work, acknowledged)
        if problem:
            found.append(problem)
            if at_most and len(found) >= at_most:
                break
    return count, found


@pytest.mark.usefixtures("record_of_pins")
def test_every_state_that_a_power_loss_can_leave_has_all_that_was_acknowledged(memory_dir):
    log = record_a_run(memory_dir / "recorded", **SMALL)
    count, found = violations(log, memory_dir / "recorded", memory_dir / "work", random.Random(0), limit=64)
    assert found == []
    assert count >= 1000


def fsyncs_of(log):
    return [i for i, (name, *_) in enumerate(log) if name in ("fsync", "fsync_directory")]


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.soak
def test_without_any_one_of_its_fsyncs_the_protocol_fails(memory_dir):
    """So each fsync is there for a reason, and this test would see it go."""
    log = record_a_run(memory_dir / "recorded", **SMALL)
    first_ack = next(i for i, (name, *_) in enumerate(log) if name == "acknowledged")
    second_ack = next(i for i, (name, *_) in enumerate(log) if i > first_ack and name == "acknowledged")
    needless = []
    for index in fsyncs_of(log):
        if not (first_ack < index < second_ack) and log[index][0] == "fsync":
            continue  # the same files are written by every save: one save's are enough
        without = log[:index] + log[index + 1 :]
        if not violations(without, memory_dir / "recorded", memory_dir / "work", random.Random(0), 24, at_most=1)[1]:
            needless.append((index, log[index][0], str(log[index][1])))
    assert needless == []


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_fifty_thousand_states_of_a_disk_after_a_power_loss(memory_dir):
    log = record_a_run(memory_dir / "small", **SMALL)
    exhaustive, found = violations(log, memory_dir / "small", memory_dir / "work", random.Random(1), limit=2**11)
    assert found == []
    log = record_a_run(memory_dir / "large", steps=8)
    sampled, found = violations(log, memory_dir / "large", memory_dir / "work", random.Random(2), limit=2**10)
    assert found == []
    print(f"{exhaustive} states of a small run and {sampled} of a larger one")
    assert exhaustive >= 1_500 and sampled >= 50_000
