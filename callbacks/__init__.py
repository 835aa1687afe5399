"""Callbacks: clients of the engine that use only what `paddlelite_trainer` exports."""

from __future__ import annotations

if __name__ == "callbacks":  # a second copy of every class would exist, and isinstance would fail between them
    raise ImportError(
        "import these as paddlelite_trainer.callbacks: `from paddlelite_trainer.callbacks import ModelCheckpoint`"
    )
