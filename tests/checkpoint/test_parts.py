"""A checkpoint in parts, one of each process: whole or not there, verified part by part, and read as one."""

from __future__ import annotations

import errno
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from store_support import NthCallFails, copy_run, files_of, in_child, leftovers, links_of, save, save_last, step_in
from test_failing_calls import description
from test_kill_at_any_instruction import KILLED, STEP, DiesAtCall, check_after_death
from test_power_loss import Recorder, violations

from paddlelite_trainer.checkpoint import REAL, CheckpointReader, CheckpointStore, FileSystem, open_checkpoint
from paddlelite_trainer.checkpoint.manifest import StoredFile
from paddlelite_trainer.checkpoint.parts import Whole, joined, parse_parts, part_name, write_parts
from paddlelite_trainer.cli import main
from paddlelite_trainer.errors import CheckpointCorruptError, CheckpointSaveError

OPTIMIZER = "optimizer.pdopt"
NAMES = tuple(part_name(OPTIMIZER, number) for number in range(2))

SHAPES = {"linear.weight/moment1": (3, 2), "linear.bias/moment1": (2,), "cut": (5, 1)}


class AnotherProcess:
    """Writes the second part, here in the same process; its failure comes with `written`, as another's does."""

    def __init__(self, step: int, file_system: FileSystem = REAL, fails: str = "") -> None:
        self.tensors = {"linear.bias/moment1": np.full(2, step), "cut": np.full(3, step, np.float32)}
        self.wholes = {OPTIMIZER: Whole(NAMES, {"cut": (5, 1)})}
        self.file_system, self.fails = file_system, fails
        self.found: dict[str, StoredFile] = {}
        self.error: CheckpointSaveError | None = None

    def begin(self, directory: Path | None) -> None:
        if directory is None:
            return
        try:
            self.found = write_parts(directory, {NAMES[1]: self.tensors}, self.file_system)
        except CheckpointSaveError as error:
            self.error = error
        if self.fails:
            self.error = CheckpointSaveError(self.fails)

    def written(self) -> dict[str, StoredFile]:
        if self.error is not None:
            raise self.error
        return self.found

    def give_up(self) -> None:
        pass


def in_parts(step: int, file_system: FileSystem = REAL, fails: str = "") -> dict[str, Any]:
    """What `save` is given: the optimizer in two parts, one tensor of it cut: 5 numbers, 3 in each, one padding."""
    files = files_of(step)
    files[NAMES[0]] = {**files.pop(OPTIMIZER), "cut": np.full(3, step, np.float32)}
    return {"files": files, "others": AnotherProcess(step, file_system, fails)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "run")
    for step in (1, 2):
        save_last(store, step, keep=2, **in_parts(step))
    store.close()
    return tmp_path / "run"


def test_parts_are_read_as_one_file(run: Path) -> None:
    saved = open_checkpoint(run / "latest")
    assert step_in(saved) == 2
    assert saved.files[-1] == OPTIMIZER and not {*NAMES} & {*saved.files}
    shapes = {name: array.shape for name, array in saved.tensors(OPTIMIZER).items()}
    assert shapes == SHAPES
    assert saved.dtype_of(OPTIMIZER, "linear.bias/moment1") == "int64"
    assert set(paddle.load(str(run / "latest.pdparams"))) == {"linear.weight", "linear.bias"}
    assert sorted(links_of(run)) == ["last", "last.pdparams", "latest", "latest.pdparams"]  # and no .pdopt
    assert CheckpointReader(run).newest().nbytes == sum(
        path.stat().st_size for path in (run / "latest/").iterdir() if path.name != "manifest.json"
    )


def test_export_joins_what_is_in_parts(run: Path, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pdopt"):
        where = tmp_path / f"joined{suffix}"
        assert main(["ckpt", "export", str(run / "latest"), str(where), "--what", "optimizer"]) == 0
    loaded = {name: np.asarray(value) for name, value in paddle.load(str(tmp_path / "joined.pdopt")).items()}
    assert {name: array.shape for name, array in loaded.items()} == SHAPES
    assert main(["ckpt", "verify", str(run)]) == 0
    assert main(["ckpt", "show", str(run / "latest")]) == 0


@pytest.mark.parametrize("damage", ["altered", "missing", "shorter", "exchanged"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(run: Path, damage: str) -> None:
    part = run / "latest" / NAMES[1]
    data = bytearray(part.read_bytes())
    if damage == "altered":
        data[-1] ^= 1
        part.write_bytes(data)
    elif damage == "shorter":
        part.write_bytes(data[:-1])
    elif damage == "exchanged":  # for the same part of the checkpoint before
        part.write_bytes((run / "checkpoints/step-000000001" / NAMES[1]).read_bytes())
    else:
        part.unlink()
    with pytest.raises(CheckpointCorruptError, match=NAMES[1]):
        open_checkpoint(run / "latest")
    assert main(["ckpt", "verify", str(run)]) != 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = CheckpointStore(run)
        assert step_in(store.read(store.newest())) == 1


def test_a_process_that_fails_leaves_nothing(run: Path) -> None:
    store, before = CheckpointStore(run), description(run)
    with pytest.raises(CheckpointSaveError, match="rank 1 has no room"):
        save(store, 3, **in_parts(3, fails="rank 1 has no room"))
    assert (description(run), leftovers(run)) == (before, [])
    assert not (run / "checkpoints/step-000000003").exists()
    save(store, 3, **in_parts(3))
    assert step_in(store.read(store.newest())) == 3


def test_a_part_for_a_directory_that_is_not_here_names_the_disk(tmp_path: Path) -> None:
    with pytest.raises(CheckpointSaveError, match="on a disk that all machines share"):
        write_parts(tmp_path / "nowhere", {NAMES[1]: {}})


def test_whichever_call_fails_the_checkpoints_before_stay(memory_dir: Path) -> None:
    store = CheckpointStore(memory_dir / "template")
    for step in (1, 2, 3):
        save_last(store, step, keep=2, **in_parts(step))
    store.close()
    failed = number = 0
    while True:
        number += 1
        run = memory_dir / "run"
        copy_run(memory_dir / "template", run)
        file_system = NthCallFails(number, errno.EIO)
        store, before = CheckpointStore(run, file_system=file_system), description(run)
        file_system.arm()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                save_last(store, 4, keep=2, **in_parts(4, file_system))
                expected = 4
            except CheckpointSaveError:
                failed, expected = failed + 1, 3
                assert (description(run), leftovers(run)) == (before, []), file_system.calls[-1]
        if len(file_system.calls) < number:
            break
        file_system.armed = False
        assert step_in(store.read(store.newest())) == expected
    assert 30 < failed < number


def killed_at_each_call(memory_dir: Path, every: int) -> set[bool]:
    store = CheckpointStore(memory_dir / "template")
    for step in (1, 2):
        save_last(store, step, keep=2, **in_parts(step))
    store.close()
    outcomes = set()
    for moment in ("before", "within", "after"):
        number = 0
        while True:
            number += every
            copy_run(memory_dir / "template", memory_dir / "run")
            file_system = DiesAtCall(number, moment)

            def in_the_child(file_system: FileSystem = file_system) -> None:
                store = CheckpointStore(memory_dir / "run", file_system=file_system)
                save_last(store, STEP, keep=2, **in_parts(STEP, file_system))

            code = in_child(in_the_child)
            outcomes.add(check_after_death(memory_dir / "run", 2, 2))
            if code == 0:
                break
            assert code == KILLED
    return outcomes


def test_killed_at_some_calls_nothing_is_lost_or_mixed(memory_dir: Path) -> None:
    assert killed_at_each_call(memory_dir, every=7) == {False, True}


@pytest.mark.soak
def test_killed_at_each_call_nothing_is_lost_or_mixed(memory_dir: Path) -> None:
    assert killed_at_each_call(memory_dir, every=1) == {False, True}


def recorded(root: Path) -> list[Any]:
    root.mkdir()
    recorder = Recorder()
    store = CheckpointStore(root / "run", file_system=recorder)
    for step in (1, 2):
        save(store, step, links=step > 1, **in_parts(step, recorder))
        recorder.acknowledge(("save", step))
    return recorder.log


def test_a_power_loss_leaves_what_was_acknowledged(tmp_path: Path) -> None:
    log = recorded(tmp_path / "root")
    assert violations(log, tmp_path / "root", tmp_path / "work", random.Random(0), limit=4)[1] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts[OPTIMIZER]["files"].append("absent.pdopt"), "no such parts of optimizer.pdopt: absent"),
        (lambda parts: parts[OPTIMIZER]["files"].append("trainer.json"), "no such parts of optimizer.pdopt: trainer"),
        (lambda parts: parts[OPTIMIZER]["files"].append(NAMES[0]), "in two parts"),
        (lambda parts: parts[OPTIMIZER]["cut"].update(cut=[7, 1]), "has too little of 'cut'"),
        (lambda parts: parts.update({"model.pdparams": parts[OPTIMIZER]}), "no such parts of model.pdparams"),
        (lambda parts: parts.update({"other": 3}), "does not describe its parts"),
    ],
)
def test_a_manifest_that_claims_what_its_parts_are_not_is_refused(run: Path, change: Any, words: str) -> None:
    saved = open_checkpoint(run / "latest")
    manifest = saved.manifest
    change(manifest["parts"])
    from paddlelite_trainer.checkpoint.manifest import parse_files

    with pytest.raises(CheckpointCorruptError, match=words):
        parse_parts(manifest, parse_files(manifest))


def test_nothing_but_what_is_cut_is_copied() -> None:
    whole, parts = Whole(("a", "b"), {"cut": (3,)}), [{"one": np.ones(2), "cut": np.ones(2)}, {"cut": np.zeros(2)}]
    tensors = joined(whole, parts)
    assert tensors["one"] is parts[0]["one"]
    assert tensors["cut"].tolist() == [1, 1, 0]
