"""What an import costs over Paddle's own, and what comes before the first step; each in a fresh process.

python benchmarks/startup.py [--rounds 7] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import Contender, arguments, report, rounds, table

HERE = Path(__file__).resolve().parent
IMPORTS = {
    "nothing more": "",
    "import paddlelite_trainer": "import paddlelite_trainer",
    "... and Trainer, Module": "from paddlelite_trainer import Trainer, Module",
    "... and callbacks": "from paddlelite_trainer import Trainer, Module, callbacks",
}
IMPORTING = """
import sys, time; sys.path.insert(0, {root!r})
import paddle
started = time.perf_counter()
{statements}
print("TOOK", time.perf_counter() - started)
"""
FIRST_STEP = """
import sys, tempfile, time; sys.path[:0] = [{here!r}, {root!r}]
import paddle
from workload import *
from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint
batches = make_batches(2)
class First(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0: print("TOOK", time.perf_counter() - started)
with tempfile.TemporaryDirectory() as root:
    started = time.perf_counter()
    {statements}
"""
STATEMENTS = {
    "by hand": (
        "model = MLP(); optimizer = model.configure_optimizers(); "
        "loss = F.cross_entropy(model(batches[0][0]), batches[0][1]); "
        "loss.backward(); optimizer.step(); optimizer.clear_grad(); print('TOOK', time.perf_counter() - started)"
    ),
    "Trainer, bare": "Trainer(**bare(max_epochs=1, callbacks=[First()])).fit(MLP(), batches)",
    "Trainer, everything on": (
        "Trainer(max_epochs=1, default_root_dir=root, callbacks=[First(), ModelCheckpoint(monitor='val_loss'), "
        "EarlyStopping(monitor='val_loss'), LRMonitor()]).fit(MLP(1), batches, batches)"
    ),
}


def run(code: str, compiled: str) -> float:
    """Milliseconds that the code says it took; the warm-up round compiles modules, as an installation does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPYCACHEPREFIX": compiled},
    )
    return next(float(line.split()[1]) for line in out.stdout.splitlines() if line.startswith("TOOK")) * 1e3


def contenders(template: str, statements: dict[str, str], compiled: str) -> dict[str, Contender]:
    codes = {
        name: template.format(here=str(HERE), root=str(HERE.parent), statements=own) for name, own in statements.items()
    }
    return {name: lambda code=code: run(code, compiled) for name, code in codes.items()}  # type: ignore[misc]


def main() -> None:
    given = arguments(__doc__, rounds=7).parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        imports = rounds(contenders(IMPORTING, IMPORTS, compiled), given.rounds)
        steps = rounds(contenders(FIRST_STEP, STATEMENTS, compiled), given.rounds)
    results = [
        table(
            "importing, on top of paddle", imports, "nothing more", dict.fromkeys(list(IMPORTS)[1:], "<= +100"), "ms"
        ),
        table("to the end of the first step", steps, "by hand", dict.fromkeys(list(STATEMENTS)[1:], "<= +150"), "ms"),
    ]
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
