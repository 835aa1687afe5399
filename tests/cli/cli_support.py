"""What the tests of the command line share: a run of small checkpoints, and damage."""

from pathlib import Path

import numpy as np

from paddlelite_trainer.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]


def save(run, step, pins=(), healthy=True, **metrics):
    """Add a checkpoint whose values are its step; `pins` hold it beside `latest` and one of its own."""
    run.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(run)
    name = store.candidate(step, step // 10).name
    entry = store.save(
        step=step,
        epoch=step // 10,
        metrics=metrics,
        healthy=healthy,
        info={"config": {"batch_size": step}},
        files={
            "model.pdparams": {"w": np.full((2, 3), step, "f4"), "same": np.zeros(4, "f4")},
            "optimizer.pdopt": {"w.moment1": np.full((2, 3), step, "f4")},
        },
        states={"trainer.json": {"progress": {"step": step, "best": [step, 1.5]}}},
        pins={"latest": [name], f"keep_{step}": [name], **{pin: [name] for pin in pins}},
    )
    store.close()
    return entry


def damage(entry, file="model.pdparams"):
    path = entry.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
