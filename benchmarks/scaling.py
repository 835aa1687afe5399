"""The cost of a step as the run grows: callbacks, logged names, steps.

python benchmarks/scaling.py [--rounds 7] [--steps 200] [--json]
"""

from __future__ import annotations

from typing import Any

from pairs import arguments, report, rounds, table

from workload import bare, fit, hand_loop, make_batches  # isort: skip

from paddlelite_trainer import Callback


class Empty(Callback):
    """Overrides nothing."""


class OneHook(Callback):
    """Overrides one hook of each batch."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


def main() -> None:
    given = arguments(__doc__, rounds=7, steps=200).parse_args()
    batches = make_batches(given.steps)
    contenders: dict[str, Any] = {"hand": lambda: hand_loop(batches), "bare": lambda: fit(batches, **bare())}
    for count in (10, 30, 100):
        contenders[f"{count} callbacks that override nothing"] = lambda n=count: fit(
            batches, callbacks=tuple(Empty() for _ in range(n)), **bare()
        )
    for count in (10, 30, 100):
        contenders[f"{count} callbacks with one hook a batch"] = lambda n=count: fit(
            batches, callbacks=tuple(OneHook() for _ in range(n)), **bare()
        )
    for count in (1, 10, 100):
        contenders[f"{count} logged names"] = lambda n=count: fit(batches, n, **bare())
    results = [table("what is used", rounds(contenders, given.rounds), "bare", {}, "us")]
    lengths = {
        f"{steps:,} steps": lambda n=steps: fit(make_batches(100) * (n // 100), 1, **bare())
        for steps in (1_000, 10_000)
    }
    results.append(
        table(
            "length of an epoch",
            rounds(lengths, max(1, given.rounds // 3)),
            "1,000 steps",
            {"10,000 steps": "flat"},
            "us",
        )
    )
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
