"""What each of two ranks runs: fits whose steps leave parameters out, on one rank or on both, as they are searched for.

python -m paddle.distributed.launch --nproc_per_node 2 left_out.py ROOT; each rank writes ROOT/rank<N>.json
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import TrainingError

STEPS = 14
Uses = Callable[[int, int], tuple[bool, bool]]
"""Which of two branches a batch goes through, of its number in the run and the rank."""

CASES: dict[str, Uses] = {
    "none": lambda batch, rank: (True, True),
    "both, of every rank, always": lambda batch, rank: (False, False),
    "one, of rank 1, now and then": lambda batch, rank: (True, batch % 4 != 2 or rank == 0),
    "one, of every rank, now and then": lambda batch, rank: (True, batch % 5 != 3),
    "another one of each rank": lambda batch, rank: ((batch + rank) % 3 != 1, (batch + rank) % 3 != 2),
    "late": lambda batch, rank: (batch < 11 or rank == 1, batch != 13),
}


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 2 * 2 * 7

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32")


class Net(Module):
    def __init__(self, uses: Uses, frozen: bool = False) -> None:
        super().__init__()
        paddle.seed(11)
        self.uses, self.batches = uses, 0
        self.first, self.left = paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 4)
        self.right, self.last = paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 2)
        for parameter in self.left.parameters() if frozen else ():
            parameter.stop_gradient = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        left, right = self.uses(self.batches, self.global_rank)
        self.batches += 1
        x = self.first(batch)
        x = x + self.left(x) if left else x
        x = x + self.right(x) if right else x
        return self.last(x).square().mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.05, parameters=self.parameters(), weight_decay=0.1)


class Watches(Callback):
    """The gradients that each step goes by, as hooks after the backward find them; and what is set free in epoch 1."""

    def __init__(self, thaws: bool = False) -> None:
        self.seen, self.thaws = hashlib.sha256(), thaws

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if self.thaws and trainer.current_epoch == 1:
            for parameter in module.left.parameters():
                parameter.stop_gradient = False

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.accumulate_grad_batches > 1:
            return  # within a window they are of one rank alone
        for name, parameter in module.named_parameters():
            self.seen.update(name.encode() if parameter.grad is None else parameter.grad.numpy().tobytes())


def fit(module: Net, watch: Watches, **settings: Any) -> Trainer:
    trainer = Trainer(
        max_steps=STEPS,
        callbacks=[watch],
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        **settings,
    )
    trainer.fit(module, paddle.io.DataLoader(Numbers(), batch_size=2, shuffle=True))
    return trainer


def found(uses: Uses, frozen: bool = False, **settings: Any) -> dict[str, Any]:
    module, watch = Net(uses, frozen), Watches(thaws=frozen)
    fit(module, watch, **settings)
    weights = hashlib.sha256(b"".join(parameter.numpy().tobytes() for parameter in module.parameters()))
    return {"weights": weights.hexdigest(), "gradients": watch.seen.hexdigest()}


def again_and_again() -> str:
    """Fits of one module, each of another Trainer that is gone, with backwards by hand in between."""
    module = Net(CASES["none"])
    for _ in range(4):
        fit(module, Watches())
        gc.collect()
        rubbish = [bytearray(size) for size in range(64, 4096, 16) for _ in range(20)]
        module.last(module.first(paddle.ones([1, 4]))).sum().backward()
        module.clear_gradients()
        del rubbish
    copy.deepcopy(module)
    return hashlib.sha256(b"".join(parameter.numpy().tobytes() for parameter in module.parameters())).hexdigest()


def main(root: Path) -> None:
    results: dict[str, Any] = {}
    for name, uses in CASES.items():
        results[name] = {
            "found out": found(uses),
            "searched for": found(uses, find_unused_parameters=True),
            "windows, found out": found(uses, accumulate_grad_batches=2),
            "windows, searched for": found(uses, accumulate_grad_batches=2, find_unused_parameters=True),
        }
    results["thawed"] = {
        "found out": found(CASES["none"], frozen=True),
        "searched for": found(CASES["none"], frozen=True, find_unused_parameters=True),
        "expected": found(CASES["none"], frozen=True, find_unused_parameters=False),
    }
    results["again"] = again_and_again()
    rank = paddle.distributed.get_rank()
    target = root / f"rank{rank}.json"
    target.write_text(json.dumps(results))
    try:  # last, as it ends the job
        found(CASES["one, of rank 1, now and then"], find_unused_parameters=False)
    except TrainingError as error:
        target.write_text(json.dumps({**results, "refused": str(error)}))
        raise


main(Path(sys.argv[1]))
