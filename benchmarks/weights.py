"""What the callbacks that look at every weight add to a step: the moving average, the guard against NaN.

python benchmarks/weights.py [--rounds 15] [--steps 300] [--json]
"""

from __future__ import annotations

from pairs import arguments, report, rounds, table

from workload import bare, fit, make_batches  # isort: skip

from paddlelite_trainer.callbacks import ExponentialMovingAverage, NonFiniteGuard


def main() -> None:
    given = arguments(__doc__, rounds=15, steps=300).parse_args()
    batches = make_batches(given.steps)
    costs = rounds(
        {
            "bare": lambda: fit(batches, **bare()),
            "ExponentialMovingAverage": lambda: fit(batches, callbacks=(ExponentialMovingAverage(),), **bare()),
            "NonFiniteGuard": lambda: fit(batches, callbacks=(NonFiniteGuard(),), **bare()),
        },
        given.rounds,
    )
    goals = {"ExponentialMovingAverage": "<= +40", "NonFiniteGuard": "<= +20"}
    report([table("a training step", costs, "bare", goals, "us")], as_json=given.json)


if __name__ == "__main__":
    main()
