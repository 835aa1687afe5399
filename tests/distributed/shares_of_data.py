"""What each of two ranks runs: training on shares of the data that are not equally long.

python -m paddle.distributed.launch --nproc_per_node 2 shares_of_data.py OUT
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.errors import TrainerError

OUT = Path(sys.argv[1])


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(7)
        self.net = paddle.nn.Linear(2, 1)
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.001, parameters=self.parameters())


class Share(paddle.io.IterableDataset):  # type: ignore[misc]
    def __init__(self, count: int, fails: bool = False) -> None:
        self.count, self.fails = count, fails

    def __iter__(self) -> Any:
        for index in range(self.count):
            if self.fails and index == 1:
                raise ValueError("a bad record")
            yield np.full(2, index, "float32")


class Claims:
    """Says how many batches it has."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter([paddle.ones([2, 2])] * self.count)


def fitted(loader: Any, **settings: Any) -> list[Any]:
    trainer = Trainer(
        **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **settings}
    )
    module = Net()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(module, loader)
    weights = hashlib.sha256(b"".join(one.numpy().tobytes() for one in module.parameters())).hexdigest()
    said = sum("give every rank as many batches" in str(one.message) for one in told)
    return [module.seen, trainer.global_step, weights, said]


def loader(count: int, **options: Any) -> Any:
    return paddle.io.DataLoader(Share(count, **options), batch_size=1)


def cases(rank: int) -> dict[str, Callable[[], Any]]:
    return {
        "equal": lambda: fitted(loader(3)),
        "rank 1 is shorter": lambda: fitted(loader(4 - 2 * rank)),
        "rank 0 is shorter": lambda: fitted(loader(2 + 2 * rank)),
        "of known lengths": lambda: fitted(Claims(4 - rank)),
        "accumulating": lambda: fitted(loader(5 - 2 * rank), accumulate_grad_batches=2),
        "one fails": lambda: fitted(loader(3, fails=rank == 1)),
    }


if __name__ == "__main__":
    paddle.set_device("cpu")
    rank = paddle.distributed.get_rank()
    with (OUT / f"rank{rank}.jsonl").open("w") as file:
        for name, case in cases(rank).items():
            try:
                found = case()
            except (TrainerError, ValueError) as error:
                found = f"{type(error).__name__}: {error}"
            file.write(json.dumps([name, found]) + "\n")
            file.flush()
