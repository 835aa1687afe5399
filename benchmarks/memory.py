"""Resident memory over the hand-written loop without the package, and whether it grows with steps and epochs.

python benchmarks/memory.py [--steps 50000] [--json]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pairs import arguments, machine

HERE = Path(__file__).resolve().parent
LOOK = """
import sys; sys.path[:0] = [{here!r}, {root!r}]
import json, os, tempfile
import paddle
page = os.sysconf("SC_PAGE_SIZE")
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * page / 1e6
steps, seen = {steps}, []
def look(step):
    if step % (steps // 10) == 0: seen.append(megabytes())
"""
BY_HAND = """
F = paddle.nn.functional
batches = [[paddle.randn([32, 64]), paddle.randint(0, 10, [32])] for _ in range(500)]
model = paddle.nn.Sequential(paddle.nn.Linear(64, 128), paddle.nn.ReLU(), paddle.nn.Linear(128, 10))
optimizer = paddle.optimizer.Adam(1e-3, parameters=model.parameters())
for step in range(1, steps + 1):
    x, y = batches[step % 500]
    loss = F.cross_entropy(model(x), y); loss.backward(); optimizer.step(); optimizer.clear_grad()
    look(step)
print("SEEN", json.dumps(seen))
"""
OURS = """
from workload import *
from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint
batches = make_batches(500)
class Look(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx): look(trainer.global_step)
with tempfile.TemporaryDirectory() as root:
    Trainer(max_steps=steps, default_root_dir=root, num_sanity_val_steps=0, callbacks=[
        Look(), ModelCheckpoint(monitor="val_loss"), EarlyStopping(monitor="val_loss", patience=10**6), LRMonitor()
    ]).fit(MLP(1), batches, batches[:2])
print("SEEN", json.dumps(seen))
"""


def seen(loop: str, steps: int) -> list[float]:
    code = LOOK.format(here=str(HERE), root=str(HERE.parent), steps=steps) + loop
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return json.loads(next(line[5:] for line in out.splitlines() if line.startswith("SEEN")))  # type: ignore[no-any-return]


def main() -> None:
    given = arguments(__doc__, steps=50_000).parse_args()
    hand, ours = seen(BY_HAND, given.steps), seen(OURS, given.steps)
    result = {
        "machine": machine(),
        "steps": given.steps,
        "hand": hand,
        "everything on": ours,
        "over": ours[-1] - hand[-1],
        "growth": ours[-1] - ours[1],
    }
    if given.json:
        print(json.dumps(result, indent=1))
        return
    print(result["machine"])
    for name in ("hand", "everything on"):
        print(
            f"{name:<14} MB at each tenth of {given.steps:,} steps: "
            + " ".join(f"{value:.0f}" for value in result[name])
        )
    print(
        f"over the hand-written loop at the end: {result['over']:+.1f} MB (goal <= 20); grown since two tenths: "
        f"{result['growth']:+.1f} MB (goal: flat)"
    )


if __name__ == "__main__":
    main()
