"""Pins, top-k, last-n and tags are exact across saves, crashes and resumes, and nothing foreign is ever touched."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_support import HookedFileSystem, assert_links_lead_somewhere, in_child, leftovers, links_of, save, step_in

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, FileSystem
from paddlelite_trainer.errors import ConfigurationError


class Dies(HookedFileSystem):
    """Ends its process at the n-th call after `arm()`."""

    def __init__(self):
        self.left = None

    def before(self, name, args):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os._exit(9)


class RunOfSaves(RuleBasedStateMachine):
    """A store beside an oracle that holds: pins, and which checkpoints (name -> (step, metric, healthy)) there are."""

    @initialize(top_k=st.integers(0, 3), last_n=st.integers(1, 3))
    def start(self, top_k, last_n):
        parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.run = Path(tempfile.mkdtemp(prefix="checkpoint-test-", dir=parent))
        self.top_k, self.last_n, self.step = top_k, last_n, 0
        self.store = CheckpointStore(self.run)
        self.there, self.pins = {}, {}

    def teardown(self):
        if hasattr(self, "run"):
            self.store.close()
            shutil.rmtree(self.run)

    def wanted(self, name, metric, healthy):
        """The pins that a save of this makes; computed from what the store says, as callbacks do."""
        best = {entry.name: entry.metrics["m"] for entry in self.store.by_pin("best")}
        if healthy and self.top_k:
            best[name] = metric
        last = [name, *(entry.name for entry in self.store.by_pin("last"))][: self.last_n]
        return {"latest": [name], "last": last, "best": sorted(best, key=best.get)[: self.top_k]}

    def oracle_save(self, name, step, metric, healthy, pins):
        self.there[name] = (step, metric, healthy)
        self.oracle_pins(pins)

    def oracle_pins(self, pins):
        self.pins = {pin: names for pin, names in {**self.pins, **pins}.items() if names}
        held = {name for names in self.pins.values() for name in names}
        healthy = [name for name in self.there if self.there[name][2]]
        held |= {max(healthy, key=self.order)} if healthy else set()
        self.there = {name: what for name, what in self.there.items() if name in held}

    def order(self, name):
        _, _, revision = name.partition("-r")
        return self.there[name][0], int(revision or 0)

    @rule(
        metric=st.sampled_from([0.1, 0.2, 0.3, 0.4]),
        forward=st.integers(0, 2),
        healthy=st.booleans(),
        background=st.booleans(),
    )
    def save(self, metric, forward, healthy, background):
        self.step += forward  # 0: the same step again
        self.store.wait()
        entry = self.store.candidate(self.step, 0)
        pins = self.wanted(entry.name, metric, healthy)
        save(self.store, self.step, pins, metrics={"m": metric}, healthy=healthy, background=background)
        self.store.wait()
        self.oracle_save(entry.name, self.step, metric, healthy, pins)

    @rule(metric=st.sampled_from([0.1, 0.2, 0.3, 0.4]), calls=st.integers(0, 75))
    def die_while_saving(self, metric, calls):
        self.step += 1
        entry = self.store.candidate(self.step, 0)
        pins = self.wanted(entry.name, metric, True)

        def child():
            file_system = Dies()
            store = CheckpointStore(self.run, file_system=file_system)
            file_system.left = calls
            save(store, self.step, pins, metrics={"m": metric})

        in_child(child)
        committed = (self.run / "checkpoints" / entry.name).is_dir()
        self.store = CheckpointStore(self.run)
        if committed:
            self.oracle_save(entry.name, self.step, metric, True, pins)

    @rule()
    def start_again(self):
        self.store.close()
        self.store = CheckpointStore(self.run)

    @precondition(lambda self: self.there)
    @rule(data=st.data(), name=st.sampled_from(["mine", "yours"]))
    def tag(self, data, name):
        entry = data.draw(st.sampled_from(sorted(self.there)))
        self.store.tag(entry, name)
        self.oracle_pins({name: [entry]})

    @precondition(lambda self: {"mine", "yours"} & set(self.pins))
    @rule(data=st.data())
    def untag(self, data):
        name = data.draw(st.sampled_from(sorted({"mine", "yours"} & set(self.pins))))
        self.store.untag(name)
        self.oracle_pins({name: []})

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def go_back(self, data):
        """A run that goes on from an older checkpoint."""
        entry = data.draw(st.sampled_from(sorted(self.there)))
        limit = self.order(entry)
        newer = {name for name in self.there if self.order(name) > limit}
        assert {entry.name for entry in self.store.set_aside_after(*limit)} == newer
        self.there = {name: what for name, what in self.there.items() if name not in newer}
        pins = {pin: [name for name in names if name not in newer] for pin, names in self.pins.items()}
        if "latest" in pins and not pins["latest"]:
            pins["latest"] = [max(self.there, key=self.order)]
        self.oracle_pins(pins)
        self.step = limit[0]

    @invariant()
    def store_and_oracle_agree(self):
        if not hasattr(self, "store"):
            return
        entries = self.store.entries()
        assert [entry.name for entry in entries] == sorted(self.there, key=self.order)
        assert self.store.pins() == {pin: tuple(names) for pin, names in self.pins.items()}
        for entry in entries:
            assert entry.pins == tuple(pin for pin in self.store.pins() if entry.name in self.pins[pin])
            assert (entry.step, entry.metrics["m"], entry.healthy) == self.there[entry.name]
            assert step_in(self.store.read(entry)) == entry.step
        links = {name: target for name, target in links_of(self.run).items() if "." not in name}
        assert links == {pin: f"checkpoints/{names[0]}" for pin, names in self.pins.items()}
        assert_links_lead_somewhere(self.run)
        assert leftovers(self.run) == []


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_any_sequence_of_saves_crashes_tags_and_returns_agrees_with_the_oracle(examples):
    run_state_machine_as_test(
        RunOfSaves,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- foreign things ----

FOREIGN = [
    "checkpoints/.tmp-mine",
    "checkpoints/.trash-step-1-12345678",
    "checkpoints/.tmp-step-000000001-1234567",
    "checkpoints/.tmp-step-000000001-1234567G",
    "checkpoints/step-5",
    "checkpoints/step-000000005.bak",
    "checkpoints/step-000000005-r0",
    "checkpoints/step-000000005-rx",
    "checkpoints/Step-000000005",
    "checkpoints/notes.txt",
    "checkpoints/.hidden",
    "checkpoints/epoch_3.pdparams",
    "notes.txt",
    "latest.txt",
    "best",
    "best.pdparams",
    "best.pdopt",
    "train.log",
    ".tmp-link-zzzzzzzz",
    ".tmp-12345678",
    "tb/events.out",
    "metrics.csv",
]
FOREIGN_LINKS = {
    "top": "checkpoints/step-000000002",
    "top.pdparams": "checkpoints/step-000000002/model.pdparams",
    "elsewhere": "/nowhere/at/all",
    "kept.pdparams": "checkpoints/step-000000002/model.pdparams",
    "checkpoints/link": "step-000000002",
    "checkpoints/.tmp-link-x": "..",
    "last.pdparams": "/nowhere/model.pdparams",
    "data": "../..",
}


def test_thirty_foreign_files_and_links_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tb").mkdir()
    for index, name in enumerate(FOREIGN):
        (tmp_path / name).write_text(f"foreign {index}")
    for name, target in FOREIGN_LINKS.items():
        (tmp_path / name).symlink_to(target)
    assert len(FOREIGN) + len(FOREIGN_LINKS) >= 30
    with pytest.warns(UserWarning, match="is not ours and was left as it is"):
        for step in range(1, 6):
            store = CheckpointStore(tmp_path)
            save(store, step, {"best": ["new"], "last": ["new"], "kept": ["new"]})
        store.set_pins({"best": [], "last": []})
        store.set_aside_after(5)
        store.prune()
        store.repair()
    for index, name in enumerate(FOREIGN):
        assert (tmp_path / name).read_text() == f"foreign {index}", name
    for name, target in FOREIGN_LINKS.items():
        assert os.readlink(tmp_path / name) == target, name
    assert [entry.step for entry in store.entries()] == [5]
    assert step_in(store.read(tmp_path / "latest.pdparams")) == 5


def test_a_hundred_leftovers_are_cleaned_when_the_store_is_opened(tmp_path):
    save(CheckpointStore(tmp_path), 1)
    for index in range(50):
        for kind in (".tmp", ".trash"):
            path = tmp_path / "checkpoints" / f"{kind}-step-{index:09d}-{index:08x}"
            path.mkdir()
            (path / "model.pdparams").write_bytes(b"half")
            (path / "nested").mkdir()
    (tmp_path / "checkpoints/.tmp-pins-00000000").write_text("half")
    (tmp_path / ".tmp-link-00000000").symlink_to("checkpoints/step-000000001")
    CheckpointReader(tmp_path).entries()
    assert len(leftovers(tmp_path)) == 102, "a reader deletes nothing"
    CheckpointStore(tmp_path)
    assert leftovers(tmp_path) == []


def test_order_is_by_step_and_never_by_time_or_name(tmp_path):
    rng = random.Random(0)
    store = CheckpointStore(tmp_path)
    steps = [1, 2, 10, 999_999_999, 1_000_000_000, 20_000_000_000]
    for step in steps:
        save(store, step, {f"s{step}": ["new"]})
    save(store, 10, {"again": ["new"]})
    yesterday = time.time() - 86_400
    for path in (tmp_path / "checkpoints").iterdir():
        moment = yesterday + rng.randrange(200_000)
        os.utime(path, (moment, moment))
    fresh = CheckpointStore(tmp_path)
    assert [entry.step for entry in fresh.entries()] == [1, 2, 10, 10, *steps[3:]]
    assert [entry.revision for entry in fresh.entries()] == [0, 0, 0, 1, 0, 0, 0]
    assert fresh.newest().step == 20_000_000_000


def test_the_same_step_saved_twice_keeps_the_first(tmp_path):
    """A run that goes back and trains the same step again never writes over what it verified before."""
    store = CheckpointStore(tmp_path)
    first = save(store, 5, {"a": ["new"]})
    second = save(store, 5, {"b": ["new"]})
    assert (first.name, second.name) == ("step-000000005", "step-000000005-r1")
    assert store.verify(first) == [] and store.verify(second) == []
    assert store.newest().name == second.name
    [aside] = store.set_aside_after(5, 0)
    assert aside.name == second.name
    third = save(store, 5, {"c": ["new"]})
    assert third.name == second.name
    store.set_aside_after(5, 0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints/.superseded").iterdir())
    assert kept == ["step-000000005-r1", "step-000000005-r1.1"]
    assert [entry.name for entry in store.prune(superseded=True)] == ["step-000000005-r1"] * 2
    assert list((tmp_path / "checkpoints/.superseded").iterdir()) == []


def test_going_on_from_an_older_checkpoint_sets_the_newer_aside(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        save(store, step, {"best": ["new", *(entry.name for entry in store.by_pin("best"))]})
    aside = store.set_aside_after(1)
    assert [entry.step for entry in aside] == [2, 3]
    assert [entry.step for entry in store.entries()] == [1]
    assert store.pins() == {"best": ("step-000000001",), "latest": ("step-000000001",)}
    assert os.readlink(tmp_path / "latest") == "checkpoints/step-000000001"
    assert step_in(store.read(tmp_path / "checkpoints/.superseded/step-000000003")) == 3
    assert CheckpointStore(tmp_path).newest().step == 1


def test_the_newest_healthy_checkpoint_outlives_unhealthy_ones(tmp_path):
    """NaN weights never push the last good ones out, whatever the pins say."""
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save(store, 2)
    for step in (3, 4, 5):
        save(store, step, healthy=False, metrics={"loss": float("nan")})
    assert [entry.step for entry in store.entries()] == [2, 5]
    with pytest.warns(UserWarning, match="step-000000005 holds NaN or infinite values; using step-000000002"):
        assert store.newest().step == 2
    assert store.newest(prefer_healthy=False).step == 5
    assert str(store.entries()[1].metrics["loss"]) == "nan"
    save(store, 6)
    assert [entry.step for entry in store.entries()] == [6]


def test_when_every_checkpoint_is_unhealthy_the_newest_is_used(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step, {"all": [*(entry.name for entry in store.by_pin("all")), "new"]}, healthy=False)
    assert CheckpointStore(tmp_path).newest().step == 2


def test_best_survives_a_moved_run_directory(tmp_path):
    store = CheckpointStore(tmp_path / "a")
    save(store, 1, {"best": ["new"]})
    save(store, 2)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = CheckpointStore(tmp_path / "b")
    assert [entry.path for entry in moved.by_pin("best")] == [tmp_path / "b/checkpoints/step-000000001"]
    assert step_in(moved.read(tmp_path / "b/best.pdparams")) == 1


def test_a_tag_keeps_and_untag_lets_go(tmp_path):
    store = CheckpointStore(tmp_path)
    store.tag(save(store, 1), "before-finetune")
    save(store, 2)
    assert [entry.pins for entry in store.entries()] == [("before-finetune",), ("latest",)]
    assert step_in(store.read(tmp_path / "before-finetune.pdopt")) == 1
    store.untag("before-finetune")
    assert [entry.step for entry in store.entries()] == [2]
    assert "before-finetune" not in links_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no pin 'latets' in .* Did you mean 'latest'"):
        store.untag("latets")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".x",
        "a/b",
        "..",
        "a\\b",
        "x\0",
        "a:b",
        "a?",
        " a",
        "a.",
        "checkpoints",
        "x.pdparams",
        "step-000000001",
        "x" * 300,
        3,
    ],
)
def test_a_pin_that_cannot_be_a_file_name_is_refused_before_anything_is_written(tmp_path, name):
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConfigurationError, match="The name of a pin becomes a file name"):
        store.save(step=1, epoch=0, files={}, states={}, pins={name: ["step-000000001"]})
    assert store.entries() == [] and leftovers(tmp_path) == []


def test_a_pin_of_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with pytest.raises(
        ConfigurationError, match=r"Pin 'best' names 'step-000000002', which is no checkpoint\. Did you mean"
    ):
        store.set_pins({"best": ["step-000000002"]})
    with pytest.raises(ConfigurationError, match="No pin holds step-000000003"):
        store.save(step=3, epoch=0, files={}, states={}, pins={"best": ["step-000000001"]})


def test_one_more_pin_costs_no_bytes(tmp_path):
    def bytes_of(run):
        return sum(path.lstat().st_size for path in (run / "checkpoints").rglob("model.pdparams"))

    store = CheckpointStore(tmp_path)
    entry = save(store, 1)
    before = bytes_of(tmp_path)
    store.set_pins({f"pin{index}": [entry.name] for index in range(20)})
    assert bytes_of(tmp_path) == before and len(links_of(tmp_path)) == 21 * 3


def test_prune_tells_in_a_dry_run_and_deletes_otherwise(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, {"a": ["new"]})
    save(store, 2)
    record = tmp_path / "checkpoints/pins.json"
    before = record.read_bytes()
    store._there.hold(store._pins.with_pins({"a": []}), ["a"])  # as after a crash between the record and the deletion
    assert [entry.step for entry in store.prune(dry_run=True)] == [1]
    assert (tmp_path / "checkpoints/step-000000001").exists() and record.read_bytes() == before
    assert [entry.step for entry in store.prune()] == [1]
    assert [entry.step for entry in store.entries()] == [2]


def test_a_save_looks_at_no_links_but_those_that_change(memory_dir):
    calls = []

    class Counting(FileSystem):
        def lstat(self, path):
            calls.append(path)
            return super().lstat(path)

    store = CheckpointStore(memory_dir, file_system=Counting())

    def cost_of_a_save(step):
        calls.clear()
        save(store, step, {f"kept-{step}": ["new"]})
        return len(calls)

    costs = [cost_of_a_save(step) for step in range(1, 41)]
    assert costs[-1] == costs[4]


def test_a_link_that_a_failed_save_left_behind_is_made_by_the_next(memory_dir):
    class LinksFailOnce(FileSystem):
        fails = False

        def symlink(self, target, path):
            if self.fails:
                raise OSError(5, "Input/output error")
            super().symlink(target, path)

    file_system = LinksFailOnce()
    store = CheckpointStore(memory_dir, file_system=file_system)
    file_system.fails = True
    with pytest.warns(UserWarning, match="links could not be brought up to date"):
        save(store, 1, {"mine": ["new"]})
    file_system.fails = False
    save(store, 2)
    assert (memory_dir / "mine.pdparams").exists()


@pytest.mark.parametrize("how", ["as damaged", "for going on from an older one"])
def test_a_checkpoint_put_back_by_hand_after_it_was_set_aside_is_kept(memory_dir, how):
    store = CheckpointStore(memory_dir)
    save(store, 1)
    kept = save(store, 2, {"mine": ["new"]})
    file = kept.path / "model.pdparams"
    content = file.read_bytes()
    if how == "as damaged":
        file.write_bytes(content[:-1])
        assert store.quarantine([kept.name]) == [kept.name]
        aside = store.directory / ".quarantine" / kept.name
        (aside / "model.pdparams").write_bytes(content)
    else:
        store.set_aside_after(1)
        aside = store.directory / ".superseded" / kept.name
    aside.rename(kept.path)
    again = CheckpointStore(memory_dir)
    assert again.first_of_pin("recovered").name == kept.name
    save(again, 3)
    assert kept.name in [entry.name for entry in again.entries()]
