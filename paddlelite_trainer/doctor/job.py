"""What each process of the check of several devices runs: collectives, and a fit by each strategy.

python -m paddle.distributed.launch ... job.py OUT [--quick]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddlelite_trainer.doctor.workload import Network, Numbers, bits, trainer
from paddlelite_trainer.errors import ConfigurationError

STRATEGIES = ("ddp", "sharding_stage1", "sharding_stage2", "sharding_stage3")
IN_QUICK = ("ddp", "sharding_stage2")
STEPS = 12


def main() -> None:
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv
    ranks = trainer(max_epochs=1).ranks  # which opens the connections
    found: dict[str, Any] = {"backend": str(dist.get_backend()), **collectives(quick)}
    found["strategies"] = {}
    for strategy in IN_QUICK if quick else STRATEGIES:
        one = fit(strategy)
        everyones = ranks.gather_object(one)
        if "bits" in one:
            one["agree"] = all(other.get("bits") == one["bits"] for other in everyones)
        found["strategies"][strategy] = one
    if ranks.is_zero:
        out.with_suffix(".new").write_text(json.dumps(found))
        out.with_suffix(".new").replace(out)
    ranks.barrier()


def collectives(quick: bool) -> dict[str, Any]:
    rank, count = dist.get_rank(), dist.get_world_size()
    sums = {}
    for size in (1, 1000, 1 << 20):
        tensor = paddle.full([size], float(rank + 1))
        dist.all_reduce(tensor)
        sums[f"{size} floats"] = bool((tensor.numpy() == count * (count + 1) / 2).all())
    told = paddle.full([3], float(rank))
    dist.broadcast(told, src=count - 1)
    sums["a broadcast"] = told.numpy().tolist() == [count - 1.0] * 3
    parts: list[Any] = []
    dist.all_gather(parts, paddle.full([2], float(rank)))
    sums["a gathering"] = np.concatenate([part.numpy() for part in parts]).tolist() == [
        float(one) for one in range(count) for _ in range(2)
    ]
    tensor, rounds = paddle.ones([(1 if quick else 16) << 20]), 3
    dist.all_reduce(tensor)
    float(tensor[0].item())
    began = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(tensor)
    float(tensor[0].item())
    seconds = time.perf_counter() - began
    return {"sums": sums, "mb_per_second": round(tensor.size * 4 * rounds / seconds / 2**20)}


def fit(strategy: str) -> dict[str, Any]:
    """How a short fit by a strategy ended on this rank."""
    module = Network()
    loader = paddle.io.DataLoader(Numbers(8 * STEPS * dist.get_world_size()), batch_size=8)
    try:
        made = trainer(max_epochs=1, strategy=strategy)
        began = time.perf_counter()
        made.fit(module, loader)
    except ConfigurationError as error:
        return {"error": " ".join(str(error).split()), "verdict": "not possible here"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "verdict": "failed"}
    seconds = time.perf_counter() - began
    return {"bits": bits(module), "us_a_step": round(seconds / STEPS * 1e6)}


if __name__ == "__main__":
    main()
