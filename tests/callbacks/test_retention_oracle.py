"""Best, latest, top-k and last-n against a few lines of oracle, over random runs that are killed and resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.checkpoint.entry import Entry, entry_name


@dataclass
class Store:
    """Pins and deletes as the real store does, in memory."""

    held: dict[str, list[str]] = field(default_factory=dict)
    saved: list[Entry] = field(default_factory=list)

    def wait(self) -> None: ...

    def entries(self) -> list[Entry]:
        return [
            replace(entry, pins=tuple(pin for pin, names in self.held.items() if entry.name in names))
            for entry in self.saved
        ]

    def pins(self) -> dict[str, tuple[str, ...]]:
        return {pin: tuple(names) for pin, names in self.held.items()}

    def save(self, candidate: Entry, pins: Mapping[str, Sequence[str]]) -> None:
        self.saved.append(candidate)
        for pin, names in pins.items():
            assert set(names) <= {entry.name for entry in self.saved}
            self.held[pin] = list(names)
        self.held = {pin: names for pin, names in self.held.items() if names}
        kept = {name for names in self.held.values() for name in names}
        self.saved = [entry for entry in self.saved if entry.name in kept]

    def set_aside_after(self, step: int) -> None:
        self.saved = [entry for entry in self.saved if entry.step <= step]
        left = {entry.name for entry in self.saved}
        self.held = {
            pin: kept for pin, names in self.held.items() if (kept := [name for name in names if name in left])
        }


class FakeTrainer:
    """What ModelCheckpoint reads of a Trainer."""

    enable_checkpointing, fast_dev_run, sanity_checking, should_stop, is_global_zero = True, False, False, False, True
    state, max_steps, num_val_batches, max_epochs = "fit", -1, [1], 10_000
    imported_best = None

    def __init__(self, store: Store, step: int, metrics: dict[str, float]) -> None:
        self.checkpoints = self.checkpoint_store = store
        self.global_step, self.current_epoch, self.callback_metrics = step, step, metrics
        self.run_dir: Path | None = None
        self.checkpoint_callbacks: list[ModelCheckpoint] = []
        self.loggers: list[Any] = []

    def print(self, *values: Any) -> None: ...


@dataclass
class Point:
    reason: str
    candidate: Entry
    entries: list[Entry]
    is_added: bool = False


event = st.fixed_dictionaries(
    {
        "score": st.one_of(
            st.sampled_from([1.0, 2.0, 2.0, 3.0, math.nan, math.inf]), st.floats(-5, 5), st.none(), st.none()
        ),
        "healthy": st.sampled_from([True, True, False]),
        "then": st.sampled_from(["go on", "go on", "go on", "kill", "kill and lose the newest"]),
    }
)


def run(
    events: Sequence[dict[str, Any]], mode: str, top_k: int, last_n: int | None, store: Store
) -> list[tuple[Any, ...]]:
    """Drive ModelCheckpoint as a Trainer would; returns the saves that a resumed run still knows of."""
    history: list[tuple[int, float | None, bool]] = []
    step, metrics = 0, {"other": 0.0}
    callback = None
    for one in events:
        if callback is None:
            callback = ModelCheckpoint(monitor="score", mode=mode, save_top_k=top_k, keep_last_n=last_n)  # type: ignore[arg-type]
            trainer: Any = FakeTrainer(store, step, metrics)
            trainer.checkpoint_callbacks = [callback]
            callback.setup(trainer, trainer, "fit")
            callback.on_train_start(trainer, trainer)
        step += 1
        trainer.global_step = trainer.current_epoch = step
        if one["score"] is not None:
            metrics["score"] = float(str(one["score"]))  # an object of its own, as a logged value is
            callback.on_validation_end(trainer, trainer)
        candidate = Entry(entry_name(step, 0), Path(), step, 0, step, dict(metrics), one["healthy"], (), 0, "")
        pins = callback.on_save_point(trainer, trainer, Point("train_epoch", candidate, store.entries()))  # type: ignore[arg-type]
        assert pins is not None, "every epoch refreshes latest"
        store.save(candidate, pins)
        history.append((step, one["score"], one["healthy"]))
        if one["then"] != "go on":
            callback = None
            if one["then"] == "kill and lose the newest" and len(store.saved) > 1:
                store.saved.pop()  # as quarantine of a damaged one does
                store.set_aside_after(store.saved[-1].step)
            step = store.saved[-1].step
            metrics = dict(store.saved[-1].metrics)
            history = [save for save in history if save[0] <= step]
    return history


def oracle(history: Sequence[tuple[int, float | None, bool]], mode: str, top_k: int) -> list[int]:
    """Steps of the best, from all that was ever saved and not rolled back."""
    sign = 1 if mode == "min" else -1
    ranked = sorted(
        (sign * score, step)
        for step, score, healthy in history
        if healthy and score is not None and math.isfinite(score)
    )
    return [step for _, step in ranked][:top_k]


def steps(store: Store, pin: str) -> list[int]:
    return [int(name.split("-")[1]) for name in store.held.get(pin, [])]


def check(events: Sequence[dict[str, Any]], mode: str, top_k: int, last_n: int | None) -> None:
    store = Store()
    history = run(events, mode, top_k, last_n, store)
    lost = any(one["then"] == "kill and lose the newest" for one in events)
    if not lost:  # a checkpoint that was pushed out before the loss cannot come back
        assert steps(store, "best") == oracle(history, mode, top_k)
        assert steps(store, "best_score") == oracle(history, mode, top_k)
    if events[-1]["then"] != "kill and lose the newest":
        newest, newest_healthy = history[-1][0], [step for step, _, healthy in history if healthy]
        assert steps(store, "latest")[0] == newest
        if last_n and not lost:
            assert steps(store, "recent")[:last_n] == [step for step, *_ in history[::-1]][:last_n]
        if newest_healthy and not lost:
            assert newest_healthy[-1] in {entry.step for entry in store.saved}
    scores = [entry.metrics["score"] for entry in store.entries() if "best" in entry.pins]
    assert all(map(math.isfinite, scores))
    assert len(scores) <= top_k


@settings(max_examples=150, deadline=None)
@given(
    st.lists(event, min_size=1, max_size=25),
    st.sampled_from(["min", "max"]),
    st.integers(1, 4),
    st.sampled_from([None, 1, 3]),
)
def test_best_latest_and_last_n_equal_the_oracle_after_kills_and_resumes(
    events: list[dict[str, Any]], mode: str, top_k: int, last_n: int | None
) -> None:
    check(events, mode, top_k, last_n)


@pytest.mark.soak
@settings(max_examples=3000, deadline=None)
@given(
    st.lists(event, min_size=1, max_size=60),
    st.sampled_from(["min", "max"]),
    st.integers(1, 6),
    st.sampled_from([None, 1, 3, 7]),
)
def test_best_latest_and_last_n_equal_the_oracle_in_thousands_of_runs(
    events: list[dict[str, Any]], mode: str, top_k: int, last_n: int | None
) -> None:
    check(events, mode, top_k, last_n)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.1, 1.0, 1.2, 2.0, 2.4, 3.0]), st.integers(0, 2)), min_size=1, max_size=40),
    st.sampled_from([1, 2, 5, -1]),
    st.sampled_from([None, "{score:.0f}", "{step}-{score}", "epoch={epoch}"]),
)
def test_a_ranking_that_is_carried_on_keeps_what_one_read_anew_at_each_save_keeps(
    saves: list[tuple[float, int]], top_k: int, filename: str | None
) -> None:
    def kept(*, read_anew: bool) -> tuple[dict[str, list[str]], list[str]]:
        store, step, revisions = Store(), 0, dict[int, int]()
        callback = ModelCheckpoint(
            monitor="score",
            save_top_k=top_k,
            filename=filename,
            archive_every_n_epochs=3,
            auto_insert_metric_name=False,
        )
        trainer: Any = FakeTrainer(store, 0, {})
        trainer.checkpoint_callbacks = [callback]
        callback.setup(trainer, trainer, "fit")
        callback.on_train_start(trainer, trainer)
        for score, forward in saves:
            step += forward  # 0: the same step again
            revisions[step] = revisions.get(step, -1) + 1
            trainer.global_step = trainer.current_epoch = step
            trainer.callback_metrics = {"score": float(str(score))}
            callback.on_validation_end(trainer, trainer)
            name = entry_name(step, revisions[step])
            candidate = Entry(name, Path(), step, revisions[step], step, {"score": score}, True, (), 0, "")
            if read_anew:
                callback._ranking._given = None
            pins = callback.on_save_point(trainer, trainer, Point("train_epoch", candidate, store.entries()))  # type: ignore[arg-type]
            store.save(candidate, pins or {})
        return store.held, [entry.name for entry in store.saved]

    assert kept(read_anew=False) == kept(read_anew=True)
