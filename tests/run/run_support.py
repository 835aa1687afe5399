"""What the tests of runs share: small checkpoints, and damage."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from paddlelite_trainer.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]


def save(run, step, **pins):
    """Add a checkpoint of this step to a run; `pins` are held by it, besides `latest` and one of its own."""
    run.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(run)
    name = store.candidate(step, epoch=step // 10).name
    entry = store.save(
        step=step,
        epoch=step // 10,
        files={"model.pdparams": {"w": np.full(3, step, "float32")}},
        states={"trainer.json": {"step": step}},
        pins={"latest": [name], f"keep_{step}": [name], **{pin: [name] for pin in pins.get("pins", ())}},
    )
    store.close()
    return entry


def damage(entry):
    path = entry.path / "model.pdparams"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
