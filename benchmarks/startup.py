"""What an import costs over Paddle's own, and what lies between Trainer(...) and the first step; each in a fresh process.

python benchmarks/startup.py [--rounds 7] [--json]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pairs import arguments, report, rounds, table

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "import paddle": "import paddle",
    "import paddle, paddlelite_trainer": "import paddle, paddlelite_trainer",
    "... and Trainer, Module": "import paddle; from paddlelite_trainer import Trainer, Module",
}
FIRST_STEP = """
import sys, time; sys.path[:0] = [{here!r}, {root!r}]
import paddle
from workload import *
batches = make_batches(2)
class First(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0: print("TOOK", time.perf_counter() - started)
if {ours}:
    started = time.perf_counter()
    Trainer(**bare(max_epochs=1, callbacks=[First()])).fit(MLP(), batches)
else:
    started = time.perf_counter()
    model = MLP(); optimizer = model.configure_optimizers()
    loss = F.cross_entropy(model(batches[0][0]), batches[0][1]); loss.backward(); optimizer.step(); optimizer.clear_grad()
    print("TOOK", time.perf_counter() - started)
"""


def run(code: str) -> float:
    """Milliseconds that the code says it took, or that its statements took."""
    timed = f"import sys, time; sys.path.insert(0, {str(HERE.parent)!r}); t = time.perf_counter()\n{code}\nprint('TOOK', time.perf_counter() - t)"
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", timed if "TOOK" not in code else code],
        capture_output=True,
        text=True,
        check=True,
    )
    return next(float(line.split()[1]) for line in out.stdout.splitlines() if line.startswith("TOOK")) * 1e3


def main() -> None:
    given = arguments(__doc__, rounds=7).parse_args()
    costs = rounds({name: lambda code=code: run(code) for name, code in SCRIPTS.items()}, given.rounds)
    goals = {"import paddle, paddlelite_trainer": "<= +100", "... and Trainer, Module": "<= +100"}
    results = [table("importing", costs, "import paddle", goals, "ms")]
    codes = {
        name: FIRST_STEP.format(here=str(HERE), root=str(HERE.parent), ours=ours)
        for name, ours in (("by hand", False), ("Trainer", True))
    }
    costs = rounds({name: lambda code=code: run(code) for name, code in codes.items()}, given.rounds)
    results.append(table("to the end of the first step", costs, "by hand", {"Trainer": "<= +150"}, "ms"))
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
