"""What the trainer adds to a step, over the hand-written loop; beside paddle.Model, and Lightning where there is one.

python benchmarks/overhead.py [--rounds 15] [--steps 300] [--lightning-python PATH] [--json]
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from pairs import arguments, report, rounds, table  # first: it sets the environment Paddle reads

import paddle  # isort: skip
from workload import EPOCHS, MLP, F, bare, fit, hand_loop, make_batches

from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint

LIGHTNING = """
import sys, time, json, logging, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
import torch
try:
    import lightning as L
except ImportError:
    import pytorch_lightning as L
torch.set_num_threads(1)
steps, rounds = int(sys.argv[1]), int(sys.argv[2])
class Batches:  # a list would be one loader for each of its items
    def __init__(self): self.made = [[torch.randn(32, 64), torch.randint(0, 10, (32,))] for _ in range(steps)]
    def __iter__(self): return iter(self.made)
    def __len__(self): return steps
batches = Batches()
class MLP(L.LightningModule):
    def __init__(self, logged=0):
        super().__init__()
        self.logged = logged
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.logged:
            self.log("loss", loss, prog_bar=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
class Clock(L.Callback):
    def on_train_epoch_start(self, trainer, module): self.started = time.perf_counter()
    def on_train_epoch_end(self, trainer, module):
        self.microseconds = (time.perf_counter() - self.started) / steps * 1e6
def hand():
    model = MLP(); optimizer = model.configure_optimizers()
    for _ in range(2):
        started = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model.net(batch[0]), batch[1])
            loss.backward(); optimizer.step()
    return (time.perf_counter() - started) / steps * 1e6
def fit(logged):
    clock = Clock()
    L.Trainer(max_epochs=2, callbacks=[clock], logger=False, enable_checkpointing=False, enable_progress_bar=False,
              enable_model_summary=False, accelerator="cpu").fit(MLP(logged), batches)
    return clock.microseconds
costs = {"hand": [], "bare": [], "one self.log": []}
for number in range(rounds + 1):
    found = {"hand": hand(), "bare": fit(0), "one self.log": fit(1)}
    if number:
        for name, cost in found.items(): costs[name].append(cost)
print(json.dumps(costs))
"""


class Terminal(io.StringIO):
    """Output that a progress bar takes for a terminal."""

    def isatty(self) -> bool:
        return True


def everything(batches: Any, *, saves: bool = True) -> float:
    """An epoch's one checkpoint counts: the fewer steps an epoch has, the more of it comes on each."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(Terminal()):
        callbacks: tuple[Any, ...] = (EarlyStopping(monitor="val_loss", patience=9), LRMonitor())
        if saves:
            callbacks = (ModelCheckpoint(monitor="val_loss"), *callbacks)
        settings = {"max_epochs": EPOCHS, "default_root_dir": root, "seed": 1, "num_sanity_val_steps": 0}
        settings["enable_checkpointing"] = saves
        return fit(batches, 1, callbacks, val=batches[:2], **settings)


def paddle_model(batches: Any) -> float:
    """paddle.Model.fit on the same preloaded batches."""
    network = MLP().net
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=network.parameters()), lambda out, y: F.cross_entropy(out, y))
    clock: dict[str, float] = {}

    class Clock(paddle.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            clock["started"] = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            clock["cost"] = (time.perf_counter() - clock["started"]) / len(batches) * 1e6

    model.fit(batches, epochs=2, verbose=0, callbacks=[Clock()])
    return clock["cost"]


def validation(batches: Any) -> tuple[Any, Any]:
    """The validation loop by hand, and Trainer.validate; microseconds a batch."""

    def by_hand() -> float:
        model = MLP()
        model.eval()
        started, total, count = time.perf_counter(), 0.0, 0
        with paddle.no_grad():
            for x, y in batches:
                total += F.cross_entropy(model(x), y).item() * len(x)
                count += len(x)
        return (time.perf_counter() - started) / len(batches) * 1e6

    def ours() -> float:
        from paddlelite_trainer import Callback, Trainer

        class Clock(Callback):
            def on_validation_start(self, trainer: Any, module: Any) -> None:
                self.started = time.perf_counter()

            def on_validation_end(self, trainer: Any, module: Any) -> None:
                self.cost = (time.perf_counter() - self.started) / len(batches) * 1e6

        clock = Clock()
        Trainer(**bare(callbacks=[clock])).validate(MLP(), batches, verbose=False)
        return clock.cost

    return by_hand, ours


def main() -> None:
    parser = arguments(__doc__, rounds=15, steps=300)
    parser.add_argument("--lightning-python", help="an interpreter that has torch and lightning")
    given = parser.parse_args()
    if given.lightning_python and shutil.which(given.lightning_python) is None:
        parser.error(f"--lightning-python: there is no program {given.lightning_python}")
    batches = make_batches(given.steps)
    costs = rounds(
        {
            "hand": lambda: hand_loop(batches),
            "bare": lambda: fit(batches, **bare()),
            "one self.log": lambda: fit(batches, 1, **bare()),
            "everything on": lambda: everything(batches),
            "... but no checkpoints": lambda: everything(batches, saves=False),
            "paddle.Model": lambda: paddle_model(batches),
        },
        given.rounds,
    )
    goals = {"bare": "<= +10", "one self.log": "<= +20", "everything on": "<= +35"}
    results = [table("a training step", costs, "hand", goals, "us")]
    by_hand, ours = validation(batches)
    costs = rounds({"hand": by_hand, "validate": ours}, given.rounds)
    results.append(table("a validation batch", costs, "hand", {"validate": "<= +10"}, "us"))
    if given.lightning_python:
        command = [given.lightning_python, "-c", LIGHTNING, str(given.steps), str(given.rounds)]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            sys.exit(f"Lightning's run failed:\n{found.stderr[-2000:]}")
        costs = json.loads(found.stdout.strip().splitlines()[-1])
        results.append(table("Lightning: a training step over its own hand-written loop", costs, "hand", {}, "us"))
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
