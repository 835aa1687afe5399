"""How long an epoch's first batch takes, and what the order of a large shuffled dataset costs in memory.

    python benchmarks/epoch_start.py [SAMPLES ...]

Each figure is of a process of its own: the time from asking for the epoch to its first batch, and by how much the
process's peak memory rose meanwhile; ours and paddle.io.DataLoader's by turns.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = 3


def measured(who: str, samples: int) -> None:
    import numpy as np
    import paddle

    class Numbers(paddle.io.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return samples

        def __getitem__(self, index: int) -> np.ndarray:
            return np.zeros(1, dtype="float32")

    loader = paddle.io.DataLoader(Numbers(), batch_size=64, shuffle=True)
    before = peak()
    if who == "paddle":
        start = time.perf_counter()
        next(iter(loader))
        print("first batch", time.perf_counter() - start, peak() - before)
        return

    from paddlelite_trainer import Callback, Module, Trainer

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.before, self.start = peak(), time.perf_counter()

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            print("first batch", time.perf_counter() - self.start, peak() - self.before)

    class Nothing(Module):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, limit_train_batches=1, seed=1, logger=False, callbacks=[Watch()], **quiet)
    trainer.fit(Nothing(), loader)


def peak() -> float:
    """The process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if sys.argv[1:2] in (["ours"], ["paddle"]):
        measured(sys.argv[1], int(sys.argv[2]))
        return
    print(f"{'samples':>12}{'ours s':>10}{'paddle s':>10}{'ours MB':>10}{'paddle MB':>10}")
    for samples in [int(float(text)) for text in sys.argv[1:]] or [1_000_000, 10_000_000, 30_000_000]:
        found: dict[str, list[list[float]]] = {"ours": [], "paddle": []}
        for _ in range(ROUNDS):
            for who, rows in found.items():
                command = [sys.executable, "-W", "ignore", __file__, who, str(samples)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                (line,) = [line for line in output.splitlines() if line.startswith("first batch ")]
                rows.append([float(word) for word in line.split()[2:]])
        (ours, our_memory), (theirs, their_memory) = (
            [statistics.median(column) for column in zip(*found[who])] for who in ("ours", "paddle")
        )
        print(f"{samples:>12,}{ours:>10.2f}{theirs:>10.2f}{our_memory:>10.0f}{their_memory:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
