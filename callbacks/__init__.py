"""Callbacks: clients of the engine that use only what `paddlelite_trainer` exports."""

from __future__ import annotations

if __name__ == "callbacks":  # a second copy of every class would exist, and isinstance would fail between them
    raise ImportError(
        "import these as paddlelite_trainer.callbacks: `from paddlelite_trainer.callbacks import ModelCheckpoint`"
    )

from .averaged_weights import AveragedWeights
from .early_stopping import EarlyStopping
from .ema import ExponentialMovingAverage
from .finetuning import BackboneFinetuning, BaseFinetuning
from .gradient_accumulation_scheduler import GradientAccumulationScheduler
from .gradient_watch import GradientNormWatch, LossSpikeWatch
from .lambda_callback import LambdaCallback
from .lr_monitor import LRMonitor
from .model_checkpoint import ModelCheckpoint
from .model_summary import ModelSummary
from .non_finite_guard import NonFiniteGuard
from .on_exception_checkpoint import OnExceptionCheckpoint
from .plot_curves import PlotCurves
from .prediction_writer import BasePredictionWriter
from .progress_bar import ProgressBar
from .remote_copy import RemoteCopy
from .throughput_monitor import ThroughputMonitor
from .timer import Timer
from .weight_averaging import StochasticWeightAveraging

# Of Lightning's callbacks, those that are not here, and what to use.
INSTEAD = {
    "Callback": "from paddlelite_trainer import Callback",
    "Checkpoint": "Callback, with on_save_point",
    "LearningRateMonitor": "LRMonitor",
    "TQDMProgressBar": "ProgressBar",
    "RichProgressBar": "ProgressBar",
    "RichModelSummary": "ModelSummary",
    "EMAWeightAveraging": "ExponentialMovingAverage(decay=0.999, update_every_n_steps=1, start_step=0)",
    "WeightAveraging": "AveragedWeights, whose subclass decides when, with begin and move",
    "LearningRateFinder": "Tuner(trainer).lr_find(module, loader, update_attr=True) before fit",
    "BatchSizeFinder": "Tuner(trainer).scale_batch_size(module, update_attr=True) before fit",
    "DeviceStatsMonitor": "paddle.device.cuda.memory_allocated() and the like, logged in a hook",
    "SpikeDetection": "LossSpikeWatch",
    "ModelPruning": "PaddleSlim",
}

__all__ = [
    "AveragedWeights",
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "GradientAccumulationScheduler",
    "GradientNormWatch",
    "LRMonitor",
    "LambdaCallback",
    "LossSpikeWatch",
    "ModelCheckpoint",
    "ModelSummary",
    "NonFiniteGuard",
    "OnExceptionCheckpoint",
    "PlotCurves",
    "ProgressBar",
    "RemoteCopy",
    "StochasticWeightAveraging",
    "ThroughputMonitor",
    "Timer",
]


def __getattr__(name: str) -> object:
    if name in INSTEAD:  # an AttributeError's words would not be seen by those who import it
        raise ImportError(f"{name} is one of Lightning's callbacks; here {INSTEAD[name]}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
