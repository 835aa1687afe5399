"""The cost of a step on several ranks, beside a hand-written loop with paddle.DataParallel, and what a step sends.

python -m paddle.distributed.launch --nproc_per_node 2 benchmarks/ranks.py [--rounds 11] [--steps 200] [--json]
python -m paddle.distributed.launch --nproc_per_node 2 benchmarks/ranks.py --turns 300     where it is not quiet
python benchmarks/ranks.py --fake-accelerator 2 ...     starts itself so, on the simulated device of tests/fake_gpu
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairs import arguments, report, rounds, table

from workload import bare, make_batches  # isort: skip
import paddle

from paddlelite_trainer import Callback, Module, Trainer

FAKE = "FAKE_GPU_COUNT"
A_TURN = 20  # steps
TURNS_TO_WARM_UP = 3
Batches = list[Any]


class Net(Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = paddle.nn.Sequential(paddle.nn.Linear(64, hidden), paddle.nn.ReLU(), paddle.nn.Linear(hidden, 10))

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return paddle.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(1e-3, parameters=self.parameters())


class ByHand:
    """What a user writes without a trainer."""

    def __init__(self, hidden: int) -> None:
        net = Net(hidden)
        self.wrapped, self.optimizer = paddle.DataParallel(net), net.configure_optimizers()

    def steps(self, batches: Batches) -> None:
        for x, y in batches:
            paddle.nn.functional.cross_entropy(self.wrapped(x), y).backward()
            self.optimizer.step()
            self.optimizer.clear_grad()


class Traffic:
    """Collectives and bytes a step of each contender; only the simulated device counts them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.of: dict[str, tuple[float, float]] = {}

    def sent(self) -> tuple[int, int]:
        if FAKE not in os.environ:
            return 0, 0
        import fake_gpu

        return fake_gpu.collectives(), fake_gpu.bytes_sent()

    def note(self, name: str, before: tuple[int, int]) -> None:
        calls, nbytes = ((now - then) / self.steps for now, then in zip(self.sent(), before))
        self.of[name] = calls, nbytes


class SecondEpoch(Callback):
    """Times the second epoch of a fit, and ends it."""

    def __init__(self, name: str, traffic: Traffic) -> None:
        self.name, self.traffic = name, traffic

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        now = time.perf_counter()
        if trainer.current_epoch == 1:
            self.started, self.before = now, self.traffic.sent()
        elif trainer.current_epoch == 2:
            assert trainer.num_training_batches == self.traffic.steps
            self.microseconds = (now - self.started) / self.traffic.steps * 1e6
            self.traffic.note(self.name, self.before)
            trainer.stop()


class Turns(Callback):
    """Lets the loop by hand take as many steps after each turn of the fit; the first turns are a warm-up."""

    def __init__(self, by_hand: ByHand, batches: Batches) -> None:
        self.by_hand, self.batches = by_hand, batches
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        if batch_idx % A_TURN == 0:
            self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % A_TURN == 0:
            ended = time.perf_counter()
            self.by_hand.steps(self.batches)
            self.ours.append((ended - self.began) / A_TURN * 1e6)
            self.theirs.append((time.perf_counter() - ended) / A_TURN * 1e6)


def quiet_trainer(callback: Callback, **settings: Any) -> Trainer:
    trainer = Trainer(callbacks=[callback], **bare(**settings))
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    return trainer


def turns(count: int, hidden: int, batches: Batches, **settings: Any) -> dict[str, list[float]]:
    """Microseconds a step of each turn."""
    some = [batches[number % len(batches)] for number in range(A_TURN)]
    clock = Turns(ByHand(hidden), some)
    trainer = quiet_trainer(clock, **{**settings, "max_epochs": 1})
    trainer.fit(Net(hidden), some * (count * paddle.distributed.get_world_size()))
    return {"by hand": clock.theirs[TURNS_TO_WARM_UP:], "ddp": clock.ours[TURNS_TO_WARM_UP:]}


def contenders_of(hidden: int, batches: Batches, traffic: Traffic) -> dict[str, Callable[[], float]]:
    """Each returns microseconds a step, and notes what it has sent."""

    def by_hand() -> float:
        loop = ByHand(hidden)
        loop.steps(batches)
        started, before = time.perf_counter(), traffic.sent()
        loop.steps(batches)
        traffic.note("by hand", before)
        return (time.perf_counter() - started) / len(batches) * 1e6

    def fitted(name: str, **settings: Any) -> Callable[[], float]:
        def once() -> float:
            clock = SecondEpoch(name, traffic)
            everyones = batches * paddle.distributed.get_world_size()  # of which each rank takes its share
            quiet_trainer(clock, **settings).fit(Net(hidden), everyones)
            return clock.microseconds

        return once

    searching = "ddp, find_unused_parameters=True"
    contenders = {
        "by hand": by_hand,
        "ddp": fitted("ddp"),
        searching: fitted(searching, find_unused_parameters=True),
    }
    if FAKE in os.environ and paddle.__version__.startswith("3"):
        for strategy in ("sharding_stage2", "sharding_stage3"):
            contenders[strategy] = fitted(strategy, strategy=strategy)
    return contenders


def start_on_fake_accelerators(count: int, given: list[str]) -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import fake_gpu

    with tempfile.TemporaryDirectory() as logs:
        done = fake_gpu.launch(Path(__file__), *given, log_dir=Path(logs), ranks=count, timeout=900)
    print("\n".join(line for line in done.stdout.splitlines() if "ccache" not in line and "warnings.warn" not in line))
    return done.returncode


def main() -> None:
    parser = arguments(__doc__, rounds=11, steps=200, hidden=256)
    parser.add_argument(
        "--turns",
        type=int,
        default=0,
        metavar="N",
        help=f"N times {A_TURN} steps of each, one after the other in one fit",
    )
    parser.add_argument("--fake-accelerator", type=int, default=0, metavar="RANKS", help="start on simulated devices")
    options = parser.parse_args()
    if options.fake_accelerator and FAKE not in os.environ:
        sys.exit(start_on_fake_accelerators(options.fake_accelerator, sys.argv[1:]))
    paddle.distributed.init_parallel_env()
    is_first = paddle.distributed.get_rank() == 0
    title = f"a step on {paddle.distributed.get_world_size()} ranks, {paddle.get_device()}"
    batches = make_batches(options.steps)
    if options.turns:
        searched = turns(options.turns, options.hidden, batches, find_unused_parameters=True)
        costs = turns(options.turns, options.hidden, batches)
        results = [
            table(title, costs, "by hand", {"ddp": "<= 1.02"}, "us"),
            table(f"{title}, find_unused_parameters=True", searched, "by hand", {}, "us"),
        ]
        if is_first:
            report(results, as_json=options.json)
        return
    traffic = Traffic(options.steps)
    costs = rounds(contenders_of(options.hidden, batches, traffic), options.rounds)
    if not is_first:
        return
    result = table(title, costs, "by hand", {"ddp": "<= 1.02"}, "us")
    for name, (calls, nbytes) in traffic.of.items():
        result["rows"][name] |= {"collectives": calls, "bytes": nbytes}
    report([result], as_json=options.json)
    if not options.json and FAKE in os.environ:
        for name, (calls, nbytes) in traffic.of.items():
            print(f"{name}: {calls:g} collectives and {nbytes:,.0f} bytes a step")


main()
