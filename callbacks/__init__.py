"""Callbacks: clients of the engine that use only what `paddlelite_trainer` exports."""

from __future__ import annotations

if __name__ == "callbacks":  # a second copy of every class would exist, and isinstance would fail between them
    raise ImportError(
        "import these as paddlelite_trainer.callbacks: `from paddlelite_trainer.callbacks import ModelCheckpoint`"
    )

from .early_stopping import EarlyStopping
from .ema import ExponentialMovingAverage
from .gradient_accumulation_scheduler import GradientAccumulationScheduler
from .lambda_callback import LambdaCallback
from .lr_monitor import LRMonitor
from .model_checkpoint import ModelCheckpoint
from .model_summary import ModelSummary
from .plot_curves import PlotCurves
from .progress_bar import ProgressBar
from .timer import Timer

__all__ = [
    "EarlyStopping",
    "ExponentialMovingAverage",
    "GradientAccumulationScheduler",
    "LRMonitor",
    "LambdaCallback",
    "ModelCheckpoint",
    "ModelSummary",
    "PlotCurves",
    "ProgressBar",
    "Timer",
]
