"""Callbacks: clients of the engine that use only what `paddlelite_trainer` exports."""

from __future__ import annotations

if __name__ == "callbacks":  # a second copy of every class would exist, and isinstance would fail between them
    raise ImportError(
        "import these as paddlelite_trainer.callbacks: `from paddlelite_trainer.callbacks import ModelCheckpoint`"
    )

from typing import TYPE_CHECKING

from .averaged_weights import AveragedWeights
from .device_stats_monitor import DeviceStatsMonitor
from .early_stopping import EarlyStopping
from .ema import ExponentialMovingAverage
from .finetuning import BackboneFinetuning, BaseFinetuning
from .gradient_accumulation_scheduler import GradientAccumulationScheduler
from .gradient_watch import GradientNormWatch, LossSpikeWatch
from .lambda_callback import LambdaCallback
from .lr_monitor import LRMonitor
from .model_checkpoint import ModelCheckpoint
from .model_export import ModelExport
from .model_summary import ModelSummary
from .non_finite_guard import NonFiniteGuard
from .on_exception_checkpoint import OnExceptionCheckpoint
from .optuna_pruning import OptunaPruning
from .paddle_callback import PaddleCallback
from .plot_curves import PlotCurves
from .prediction_writer import BasePredictionWriter
from .progress_bar import ProgressBar
from .remote_copy import RemoteCopy
from .throughput_monitor import ThroughputMonitor
from .timer import Timer
from .weight_averaging import StochasticWeightAveraging

__all__ = [
    "AveragedWeights",
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "GradientAccumulationScheduler",
    "GradientNormWatch",
    "LRMonitor",
    "LambdaCallback",
    "LossSpikeWatch",
    "ModelCheckpoint",
    "ModelExport",
    "ModelSummary",
    "NonFiniteGuard",
    "OnExceptionCheckpoint",
    "OptunaPruning",
    "PaddleCallback",
    "PlotCurves",
    "ProgressBar",
    "RemoteCopy",
    "StochasticWeightAveraging",
    "ThroughputMonitor",
    "Timer",
]

if not TYPE_CHECKING:  # or type checkers would take any name

    def __getattr__(name):
        from paddlelite_trainer.callback import refuse_class

        if not name.startswith("_"):
            refuse_class(name, __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
