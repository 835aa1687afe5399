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
from pathlib import Path
from typing import Any

from pairs import arguments, report, rounds, table

from workload import bare  # isort: skip

FAKE = "FAKE_GPU_COUNT"
A_TURN = 20  # steps


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
    import paddle

    from paddlelite_trainer import Callback, Module, Trainer

    paddle.distributed.init_parallel_env()
    functional = paddle.nn.functional

    def sent() -> tuple[int, int]:
        """Collectives and bytes so far; only the simulated device counts them."""
        if FAKE not in os.environ:
            return 0, 0
        import fake_gpu

        return fake_gpu.collectives(), fake_gpu.bytes_sent()

    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            wide = options.hidden
            self.net = paddle.nn.Sequential(paddle.nn.Linear(64, wide), paddle.nn.ReLU(), paddle.nn.Linear(wide, 10))

        def forward(self, x: Any) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> Any:
            return paddle.optimizer.Adam(1e-3, parameters=self.parameters())

    batches = [[paddle.randn([32, 64]), paddle.randint(0, 10, [32])] for _ in range(options.steps)]
    traffic: dict[str, tuple[float, float]] = {}

    def note(name: str, before: tuple[int, int]) -> None:
        traffic[name] = tuple((now - then) / options.steps for now, then in zip(sent(), before))  # type: ignore[assignment]

    def by_hand() -> float:
        model = Net()
        wrapped = paddle.DataParallel(model)
        optimizer = model.configure_optimizers()
        for _ in range(2):
            started, before = time.perf_counter(), sent()
            for x, y in batches:
                functional.cross_entropy(wrapped(x), y).backward()
                optimizer.step()
                optimizer.clear_grad()
        note("by hand", before)
        return (time.perf_counter() - started) / options.steps * 1e6

    class SecondEpoch(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            now = time.perf_counter()
            if trainer.current_epoch == 1:
                self.started, self.before = now, sent()
            elif trainer.current_epoch == 2:
                assert trainer.num_training_batches == options.steps
                self.microseconds = (now - self.started) / options.steps * 1e6
                note(self.name, self.before)
                trainer.stop()

    def fitted(name: str, **settings: Any) -> Any:
        def once() -> float:
            clock = SecondEpoch()
            clock.name = name
            trainer = Trainer(callbacks=[clock], **bare(**settings))
            trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
            trainer.fit(Net(), batches * paddle.distributed.get_world_size())  # of which each rank takes its share
            return clock.microseconds

        return once

    def in_turns(**settings: Any) -> dict[str, list[float]]:
        """Microseconds a step of each turn; the first ones are a warm-up and not counted."""
        hand = Net()
        wrapped, optimizer = paddle.DataParallel(hand), hand.configure_optimizers()
        some = [batches[number % len(batches)] for number in range(A_TURN)]
        costs: dict[str, list[float]] = {"by hand": [], "ddp": []}

        class Turns(Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx % A_TURN == 0:
                    self.began = time.perf_counter()

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                if (batch_idx + 1) % A_TURN:
                    return
                ended = time.perf_counter()
                for x, y in some:
                    functional.cross_entropy(wrapped(x), y).backward()
                    optimizer.step()
                    optimizer.clear_grad()
                costs["ddp"].append((ended - self.began) / A_TURN * 1e6)
                costs["by hand"].append((time.perf_counter() - ended) / A_TURN * 1e6)

        trainer = Trainer(callbacks=[Turns()], **bare(**{**settings, "max_epochs": 1}))
        trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
        trainer.fit(Net(), some * (options.turns * paddle.distributed.get_world_size()))
        return {name: values[3:] for name, values in costs.items()}

    if options.turns:
        searched = in_turns(find_unused_parameters=True)
        costs, title = in_turns(), f"a step on {paddle.distributed.get_world_size()} ranks, {paddle.get_device()}"
        if not paddle.distributed.get_rank():
            results = [
                table(title, costs, "by hand", {"ddp": "<= 1.02"}, "us"),
                table(f"{title}, find_unused_parameters=True", searched, "by hand", {}, "us"),
            ]
            report(results, as_json=options.json)
        return
    contenders = {
        "by hand": by_hand,
        "ddp": fitted("ddp"),
        "ddp, find_unused_parameters=True": fitted("ddp, find_unused_parameters=True", find_unused_parameters=True),
    }
    if FAKE in os.environ and paddle.__version__.startswith("3"):
        contenders["sharding_stage2"] = fitted("sharding_stage2", strategy="sharding_stage2")
        contenders["sharding_stage3"] = fitted("sharding_stage3", strategy="sharding_stage3")
    costs = rounds(contenders, options.rounds)
    if paddle.distributed.get_rank():
        return
    world = paddle.distributed.get_world_size()
    result = table(f"a step on {world} ranks, {paddle.get_device()}", costs, "by hand", {"ddp": "<= 1.02"}, "us")
    for name, (calls, nbytes) in traffic.items():
        result["rows"][name] |= {"collectives": calls, "bytes": nbytes}
    report([result], as_json=options.json)
    if not options.json and FAKE in os.environ:
        for name, (calls, nbytes) in traffic.items():
            print(f"{name}: {calls:g} collectives and {nbytes:,.0f} bytes a step")


main()
