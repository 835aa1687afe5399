"""The cost of a step as the run grows: callbacks, logged names, steps and epochs.

python benchmarks/scaling.py [--rounds 11] [--steps 200] [--run 100000] [--json]
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from typing import Any

from pairs import arguments, at_least_one, report, rounds, table

from workload import bare, fit, hand_loop, make_batches  # isort: skip

from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint


class Idle(Callback):
    """Overrides no hook of a batch."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        pass


class OneHook(Callback):
    """Overrides one hook of each batch."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


class EpochBesideHand(Callback):
    """Microseconds a step of each epoch up to the next one's start and, between two, of the hand-written loop.

    Of processor time, all threads': over minutes other programs come and go, and would look like a trend.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.ours: list[float] = []
        self.hand: list[float] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        started = time.process_time()
        if trainer.current_epoch:
            self.ours.append((started - self.started) / len(self.batches) * 1e6)
            hand_loop(self.batches[:100])  # two epochs of them
            self.hand.append((time.process_time() - started) / 200 * 1e6)
        self.started = time.process_time()


def over_hand_by_thirds(steps: int) -> dict[str, list[float]]:
    """What everything on adds to a step in each third of a run in epochs of 500 steps, checkpoints included."""
    batches = make_batches(500)
    clock = EpochBesideHand(batches)
    callbacks = (clock, ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss", patience=10**6), LRMonitor())
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        epochs = steps // 500 + 1
        fit(batches, 1, callbacks, val=batches[:2], max_epochs=epochs, default_root_dir=root, num_sanity_val_steps=0)
    over = [ours - hand for ours, hand in zip(clock.ours, clock.hand)]
    third = len(over) // 3
    return {f"third {number + 1}": over[number * third : (number + 1) * third] for number in range(3)}


def main() -> None:
    parser = arguments(__doc__, rounds=11, steps=200)
    parser.add_argument("--run", type=at_least_one, default=100_000, help="steps of the long run, default 100,000")
    given = parser.parse_args()
    batches = make_batches(given.steps)
    contenders: dict[str, Any] = {"bare": lambda: fit(batches, **bare())}
    for count in (10, 30, 100):
        contenders[f"{count} callbacks that override nothing of a batch"] = lambda n=count: fit(
            batches, callbacks=tuple(Idle() for _ in range(n)), **bare()
        )
    for count in (10, 30, 100):
        contenders[f"{count} callbacks with one hook a batch"] = lambda n=count: fit(
            batches, callbacks=tuple(OneHook() for _ in range(n)), **bare()
        )
    for count in (1, 10, 100):
        contenders[f"{count} logged names"] = lambda n=count: fit(batches, n, **bare())
    goals = {name: "zero" if "nothing" in name else "linear" for name in contenders if name != "bare"}
    results = [table("what is used", rounds(contenders, given.rounds), "bare", goals, "us")]
    title = f"what everything on adds to a step of the hand loop, {given.run:,} steps in epochs of 500"
    results.append(table(title, over_hand_by_thirds(given.run), "third 1", {"third 3": "flat"}, "us"))
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
