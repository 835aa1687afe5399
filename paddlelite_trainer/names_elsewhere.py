"""Names that users of Paddle and Lightning try first, and what is meant by them here; read where one is missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import ConfigurationTypeError, did_you_mean

# Of Lightning's and Paddle's classes, those that are not here, and what to use; the documents' table says the same.
CLASSES = {
    "LightningModule": "it is called Module here: from paddlelite_trainer import Module",
    "LightningDataModule": "it is called DataModule here: from paddlelite_trainer import DataModule",
    "Fabric": "a loop of your own in plain Paddle",
    "Model": "a paddle.Model is a Module and a Trainer here: from paddlelite_trainer import Module, Trainer",
}
_SCHEDULES = "return the schedule from configure_optimizers, alone or with its optimizer; the trainer steps it"
CALLBACKS = {
    "LearningRateMonitor": "it is called LRMonitor here: from paddlelite_trainer.callbacks import LRMonitor",
    "TQDMProgressBar": "it is called ProgressBar here: from paddlelite_trainer.callbacks import ProgressBar",
    "RichProgressBar": "it is called ProgressBar here: from paddlelite_trainer.callbacks import ProgressBar",
    "ProgBarLogger": "it is called ProgressBar here: from paddlelite_trainer.callbacks import ProgressBar",
    "RichModelSummary": "it is called ModelSummary here: from paddlelite_trainer.callbacks import ModelSummary",
    "EMAWeightAveraging": "it is ExponentialMovingAverage(decay=0.999, update_every_n_steps=1, start_step=0) here",
    "WeightAveraging": "AveragedWeights does it here; a subclass decides when, with begin and move",
    "LearningRateFinder": "Tuner(trainer).lr_find(module, loader, update_attr=True) before fit does it here",
    "BatchSizeFinder": "Tuner(trainer).scale_batch_size(module, update_attr=True) before fit does it here",
    "PredictionWriter": "it is called BasePredictionWriter here",
    "Callback": "it stands beside Trainer: from paddlelite_trainer import Callback",
    "Checkpoint": "write a Callback with on_save_point",
    "SpikeDetection": "it is called LossSpikeWatch here",
    "ModelPruning": "PaddleSlim prunes",
    "LRScheduler": f"no callback is needed: {_SCHEDULES}",
    "ReduceLROnPlateau": "it is a schedule and no callback here: return {'optimizer': optimizer, 'lr_scheduler': "
    "{'scheduler': paddle.optimizer.lr.ReduceOnPlateau(0.1), 'monitor': 'val_loss'}} from configure_optimizers",
    "VisualDL": "metrics are logged by loggers: Trainer(logger='visualdl')",
    "WandbCallback": "metrics are logged by loggers: Trainer(logger='wandb')",
}
_SAME_NAME = (
    *("BackboneFinetuning", "BaseFinetuning", "BasePredictionWriter", "DeviceStatsMonitor", "EarlyStopping"),
    "GradientAccumulationScheduler",
    *("LambdaCallback", "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint", "ProgressBar"),
    *("StochasticWeightAveraging", "ThroughputMonitor", "Timer"),
)
_METHODS = {
    "evaluate": "trainer.validate(module, loader) or trainer.test(module, loader) does it here",
    "prepare": "configure_optimizers of the module returns the optimizer, and training_step the loss",
    "save": "trainer.save_checkpoint(name) keeps everything, trainer.export(path) the network for other programs",
    **dict.fromkeys(("to_onnx", "export_onnx"), "trainer.export(path, format='onnx') does it here"),
    "to_torchscript": "trainer.export(path) writes a program for paddle.inference",
    "load": "fit(ckpt_path=...) goes on with a run, Module.load_from_checkpoint(path) makes the module",
    "summary": "the callback ModelSummary prints it as a fit begins",
    "train_batch": "training_step of the module is a batch; fit calls it",
    "eval_batch": "validation_step of the module is a batch; validate calls it",
    "predict_batch": "predict_step of the module is a batch; predict calls it",
    "tune": "Tuner(trainer).lr_find(module, loader) or .scale_batch_size(module, loader) does it here",
    "lr_find": "Tuner(trainer).lr_find(module, loader) does it here",
    "scale_batch_size": "Tuner(trainer).scale_batch_size(module, loader) does it here",
}
_LOADER = "paddle.io.DataLoader(dataset, {}=...)"
_ARGUMENTS = {
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs"), "Trainer(max_epochs=...)"),
    **dict.fromkeys(("num_iters", "max_steps"), "Trainer(max_steps=...)"),
    **{name: _LOADER.format(name) for name in ("shuffle", "drop_last")},
    "callbacks": "Trainer(callbacks=...)",
    "verbose": "Trainer(enable_progress_bar=...)",
    "save_dir": "Trainer(default_root_dir=...)",
    "save_freq": "ModelCheckpoint(every_n_epochs=...)",
    "eval_freq": "Trainer(check_val_every_n_epoch=...)",
    "log_freq": "Trainer(log_every_n_steps=...)",
    "accumulate_grad_batches": "Trainer(accumulate_grad_batches=...)",
    **dict.fromkeys(("train_data", "train_loader", "train_dataset"), "train_dataloaders"),
    **dict.fromkeys(("eval_data", "val_data", "valid_data", "validation_data", "val_loader"), "val_dataloaders"),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "checkpoint"), "ckpt_path"),
}


def refuse_class(name: str, package: str) -> None:
    """Raise ImportError for a name of another framework's, with ours; `from package import name` shows nothing else."""
    if not _explains:
        return
    known = CLASSES if package == "paddlelite_trainer" else CALLBACKS
    if name in known:
        raise ImportError(f"{package} has no {name}: {known[name]}.")
    if package == "paddlelite_trainer" and (name in CALLBACKS or name in _SAME_NAME):
        raise ImportError(f"{package} has no {name}: {callback_here(name)}.")


def callback_here(class_name: str) -> str:
    """What does here what a callback of that name does elsewhere; "" where nothing is known."""
    if class_name in _SAME_NAME:
        return f"it is here: from paddlelite_trainer.callbacks import {class_name}"
    return CALLBACKS.get(class_name, "")


def no_attribute(owner: object, name: str) -> AttributeError:
    """The error for what `owner` does not have, with what was meant."""
    if name.startswith("_"):
        return AttributeError(f"{type(owner).__name__} has no {name!r}")
    known = [other for other in dir(type(owner)) if not other.startswith("_")]
    hint = f" {_METHODS[name]}." if name in _METHODS else did_you_mean(name, known)
    return AttributeError(f"{type(owner).__name__} has no {name!r}.{hint}")


def refuse_unknown(method: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raise ConfigurationTypeError for arguments that `method` does not have, with what was meant by the first."""
    for name in unknown:
        known = [other for other in inspect.signature(method).parameters if other != "unknown"]
        meant = _ARGUMENTS.get(name)
        if name == "ckpt_path" and "checkpoint" in known:
            meant = "checkpoint"
        if meant is not None and meant.endswith("_dataloaders") and "dataloaders" in known:
            meant = "dataloaders"
        hint = f" Here it is {meant}." if meant is not None else did_you_mean(name, known)
        owner = type(getattr(method, "__self__", None)).__name__
        raise ConfigurationTypeError(f"{owner}.{method.__name__} has no argument {name!r}.{hint}")


_explains = True


@contextmanager
def attribute_errors_only() -> Iterator[None]:
    """Within, a name of another framework's is missing as any other is, for programs that ask what there is."""
    global _explains
    before, _explains = _explains, False
    try:
        yield
    finally:
        _explains = before
