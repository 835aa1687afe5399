"""Checks every Trainer argument once, with value, expectation and remedy."""

from __future__ import annotations

import math
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from .duration import Duration, seconds
from .errors import ConfigurationError, ConfigurationTypeError, did_you_mean
from .machine.strategy import Strategy, strategy_of
from .names_elsewhere import callback_here
from .reporting.profiler import make_profiler


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    """None, a count >= 0, or a share from 0.0 to 1.0."""
    return value is None or (_is_int(value) and value >= 0) or (isinstance(value, float) and 0.0 <= value <= 1.0)


def _is_of_compile(options: Mapping[str, Any]) -> bool:
    known = set(options) <= {"layers", "full_graph", "backend"}
    return known and options.get("backend") in (None, "CINN") and options.get("full_graph", True) in (True, False)


def _is_schedule(value: Any) -> bool:
    if isinstance(value, Mapping):
        return 0 in value and all(
            _is_int(key) and key >= 0 and _is_int(window) and window >= 1 for key, window in value.items()
        )
    return _is_int(value) and value >= 1


_TIMES = (str, timedelta, Mapping)
_LIMIT = "a number of batches (int >= 0), a share of them (float from 0.0 to 1.0), or None for all"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_epochs": (lambda v: v is None or (_is_int(v) and v >= -1), "an int >= 0, -1 for no limit, or None"),
    "min_epochs": (lambda v: v is None or (_is_int(v) and v >= 0), "an int >= 0 or None"),
    "max_steps": (lambda v: _is_int(v) and v >= -1, "an int >= 0, or -1 for no limit"),
    "min_steps": (lambda v: v is None or (_is_int(v) and v >= 0), "an int >= 0 or None"),
    "fast_dev_run": (lambda v: isinstance(v, bool) or (_is_int(v) and v >= 0), "True, False or a number of batches"),
    "limit_train_batches": (_is_limit, _LIMIT),
    "limit_val_batches": (_is_limit, _LIMIT),
    "limit_test_batches": (_is_limit, _LIMIT),
    "limit_predict_batches": (_is_limit, _LIMIT),
    "overfit_batches": (lambda v: v is not None and _is_limit(v), _LIMIT),
    "val_check_interval": (
        lambda v: (
            v is None or (_is_int(v) and v >= 1) or (isinstance(v, float) and 0.0 < v <= 1.0) or isinstance(v, _TIMES)
        ),
        "a number of batches (int >= 1), a share of an epoch (float above 0.0, up to 1.0) or a time",
    ),
    "check_val_every_n_epoch": (
        lambda v: v is None or (_is_int(v) and v >= 1),
        "an int >= 1, or None to count batches over epochs",
    ),
    "num_sanity_val_steps": (lambda v: _is_int(v) and v >= -1, "an int >= 0, or -1 for all batches"),
    "log_every_n_steps": (lambda v: _is_int(v) and v >= 1, "an int >= 1; for no logging pass logger=False"),
    "accumulate_grad_batches": (_is_schedule, "an int >= 1, or {epoch: int >= 1} that has epoch 0"),
    "gradient_clip_val": (lambda v: v is None or (_is_number(v) and v > 0), "a number > 0 or None"),
    "precision_options": (
        lambda v: (
            v is None
            or (isinstance(v, Mapping) and set(v) <= {"custom_white_list", "custom_black_list", "scaler_options"})
        ),
        "a dict with any of 'custom_white_list', 'custom_black_list', 'scaler_options', or None",
    ),
    "gradient_clip_algorithm": (lambda v: v in (None, "norm", "value"), "'norm' or 'value'"),
    "deterministic": (lambda v: isinstance(v, bool) or v == "warn", "True, False or 'warn'"),
    "reload_dataloaders_every_n_epochs": (lambda v: _is_int(v) and v >= 0, "an int >= 0"),
    "default_root_dir": (lambda v: isinstance(v, (str, Path)) and str(v) != "", "a path"),
    "run_name": (lambda v: v is None or (isinstance(v, str) and v != ""), "a name or None"),
    "seed": (lambda v: v is None or (_is_int(v) and 0 <= v < 2**32), "an int from 0 to 4294967295 or None"),
    "profiler": (lambda v: v in (None, "simple", "paddle"), "'simple', 'paddle' or None"),
    "cpu_threads": (lambda v: v == "auto" or (_is_int(v) and 1 <= v <= 1024), "'auto' or an int from 1 to 1024"),
    "async_checkpoint": (lambda v: isinstance(v, bool) or v == "auto", "'auto', True or False"),
    "prefetch_to_device": (lambda v: isinstance(v, bool) or v == "auto", "'auto', True or False"),
    "look_ahead": (lambda v: isinstance(v, bool), "True or False"),
    "multiprocessing_context": (
        lambda v: v in ("auto", "fork", "spawn") and (v != "fork" or "fork" in multiprocessing.get_all_start_methods()),
        "'auto', 'spawn' or, where the system has it, 'fork'",
    ),
    "on_save_error": (lambda v: v in ("raise", "warn"), "'raise' or 'warn'"),
    "compile": (
        lambda v: isinstance(v, bool) or (isinstance(v, Mapping) and _is_of_compile(v)),
        "True, False, or a dict with any of 'layers', 'full_graph' (True or False), 'backend' (None or 'CINN')",
    ),
    "recompute": (
        lambda v: (
            v is None
            or (isinstance(v, str) and v != "")
            or (isinstance(v, (list, tuple)) and v != [] and all(isinstance(one, str) for one in v))
        ),
        "None or a list of layers' names, such as ['blocks.*']",
    ),
    "detect_anomaly": (lambda v: isinstance(v, bool), "True or False"),
    "inference_mode": (lambda v: isinstance(v, bool), "True or False"),
    "enable_checkpointing": (lambda v: isinstance(v, bool), "True or False"),
    "enable_progress_bar": (lambda v: isinstance(v, bool), "True or False"),
    "enable_model_summary": (lambda v: isinstance(v, bool), "True or False"),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "max_epochs": (int,),
    "max_steps": (int,),
    "default_root_dir": (str, Path),
}


# Arguments of Lightning's Trainer, of today and of before, that are not here, and what to do instead.
NOT_HERE = {
    "model_registry": "RemoteCopy copies checkpoints to an object storage",
    "use_distributed_sampler": "a DistributedBatchSampler is used as it is, "
    "any other sampler's batches are divided over ranks",
    "benchmark": "set FLAGS_cudnn_exhaustive_search with paddle.set_flags",
    "plugins": "precision= and callbacks= are what can be exchanged",
    "barebones": "pass logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False",
    "enable_autolog_hparams": "save_hyperparameters(logger=False) leaves them out of the logs",
    "gpus": "pass accelerator='gpu', devices=",
    "resume_from_checkpoint": "pass ckpt_path= to fit",
    "checkpoint_callback": "pass enable_checkpointing=",
    "progress_bar_refresh_rate": "pass callbacks=[ProgressBar(refresh_seconds=...)]",
    "auto_lr_find": "Tuner(trainer).lr_find(module, loader)",
    "auto_scale_batch_size": "Tuner(trainer).scale_batch_size(module, datamodule=data)",
    "weights_summary": "pass enable_model_summary=",
    "amp_level": "pass precision=",
}
# Of paddle.Model and Keras, and what it is called here.
CALLED_HERE = {
    "epochs": "max_epochs",
    "num_iters": "max_steps",
    "eval_freq": "check_val_every_n_epoch",
    "log_freq": "log_every_n_steps",
    "save_dir": "default_root_dir",
    "save_freq": "ModelCheckpoint(every_n_epochs=)",
    "verbose": "enable_progress_bar",
}


class Settings:
    """A Trainer's arguments, checked and normalised; every part of a fit reads them.

    Only Trainer's construction writes it; `accumulation` may be set later, up to on_train_epoch_start of the epoch.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        check_settings(given)
        self.asked_for = {
            name: given[name]
            for name, default in defaults.items()
            if name not in ("callbacks", "logger") and given[name] != default
        }
        """The arguments that are no default, without callbacks and loggers."""
        fast_dev_run = given["fast_dev_run"]
        self.fast_dev_run = int(fast_dev_run)
        self.max_epochs: int | None = 1 if fast_dev_run else given["max_epochs"]
        self.min_epochs: int = given["min_epochs"] or 0
        self.max_steps: int = self.fast_dev_run if fast_dev_run else given["max_steps"]
        self.min_steps: int = given["min_steps"] or 0
        self.max_seconds = seconds(given["max_time"], "Trainer", "max_time")
        self.rank_timeout_seconds = _above_nought(given["rank_timeout"], "rank_timeout")
        """How long ranks wait for one another."""
        self.overfit_batches: int | float = given["overfit_batches"]
        self.limits = {
            "train": stage_limit(fast_dev_run, given["limit_train_batches"], self.overfit_batches),
            "validate": stage_limit(fast_dev_run, given["limit_val_batches"], self.overfit_batches),
            "test": stage_limit(fast_dev_run, given["limit_test_batches"]),
            "predict": stage_limit(fast_dev_run, given["limit_predict_batches"]),
        }
        interval = given["val_check_interval"]
        by_time = isinstance(interval, _TIMES) and not fast_dev_run
        self.val_check_seconds = seconds(interval, "Trainer", "val_check_interval") if by_time else None
        """Training time between validations, where they do not go by batches."""
        self.val_check_interval: int | float = 1.0 if interval is None or fast_dev_run or by_time else interval
        self.check_val_every_n_epoch: int | None = 1 if fast_dev_run else given["check_val_every_n_epoch"]
        self.num_sanity_val_steps: int = 0 if fast_dev_run else given["num_sanity_val_steps"]
        self.log_every_n_steps: int = given["log_every_n_steps"]
        self.enable_checkpointing: bool = given["enable_checkpointing"] and not fast_dev_run
        self.enable_progress_bar: bool = given["enable_progress_bar"]
        self.enable_model_summary: bool = given["enable_model_summary"]
        self.accumulation = as_schedule(given["accumulate_grad_batches"])
        """{first epoch: accumulation window from there on}"""
        self.gradient_clip_val: float | None = given["gradient_clip_val"]
        self.gradient_clip_algorithm: Literal["norm", "value"] | None = given["gradient_clip_algorithm"]
        self.deterministic: bool | Literal["warn"] = given["deterministic"]
        self.detect_anomaly: bool = given["detect_anomaly"]
        self.compile: bool | Mapping[str, Any] = given["compile"]
        self.recompute: str | Sequence[str] | None = given["recompute"]
        self.reload_dataloaders_every_n_epochs: int = given["reload_dataloaders_every_n_epochs"]
        self.logs_evaluations = given["logger"] is not None and not fast_dev_run
        """Whether a logger was asked for, so that an evaluation before any fit writes too."""
        self.default_root_dir = Path(given["default_root_dir"]).expanduser().absolute()
        self.run_name: str | None = given["run_name"]
        self.given_seed: int | None = given["seed"]
        self.async_checkpoint: bool | Literal["auto"] = given["async_checkpoint"]
        self.on_save_error: Literal["raise", "warn"] = given["on_save_error"]
        self.profiler = make_profiler(given["profiler"])
        self.cpu_threads: int | Literal["auto"] = given["cpu_threads"]
        self.look_ahead: bool = given["look_ahead"]
        self.multiprocessing_context: Literal["auto", "fork", "spawn"] = given["multiprocessing_context"]
        self.prefetch_to_device: bool | Literal["auto"] = given["prefetch_to_device"]
        names = ("strategy", "num_nodes", "sync_batchnorm", "find_unused_parameters", "precision")
        self.strategy: Strategy = strategy_of(**{name: given[name] for name in names})
        """As it was asked for, until it is known how many processes there are."""

    def window_of(self, epoch: int) -> int:
        """The accumulation window of an epoch."""
        return self.accumulation[max(first for first in self.accumulation if first <= epoch)]


def _above_nought(duration: Duration | None, name: str) -> float:
    """Seconds; infinity for None."""
    found = seconds(duration, "Trainer", name)
    if found is not None and found <= 0:
        raise ConfigurationError(f"Trainer({name}=...) must be longer than nothing, or None, got {duration!r}")
    return math.inf if found is None else found


def as_schedule(windows: int | Mapping[int, int]) -> dict[int, int]:
    """{first epoch: accumulation window from there on}, of one window or such a mapping."""
    return dict(windows) if isinstance(windows, Mapping) else {0: windows}


def check_settings(given: Mapping[str, Any]) -> None:
    """Check Trainer's arguments.

    Raises:
        ConfigurationTypeError: a value of a wrong type.
        ConfigurationError: a value out of range, or two that contradict each other.
    """
    from .callback import Callback

    for name in _RULES:
        check_setting(name, given[name], f"Trainer({name}=...)")
    callbacks = given["callbacks"]
    for callback in (
        [callbacks]
        if isinstance(callbacks, Callback)
        else _sequence("callbacks", callbacks, "a Callback or a list of them")
    ):
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise ConfigurationTypeError(
                f"Trainer(callbacks=...) got the class {callback.__name__}; pass an object: {callback.__name__}()"
            )
        if not isinstance(callback, Callback):
            raise ConfigurationTypeError(
                f"Trainer(callbacks=...) takes Callback objects, got {callback!r} ({type(callback).__name__})"
                + _meant(callback)
            )
        needs = {"ModelCheckpoint", "OnExceptionCheckpoint", "RemoteCopy"} & {
            base.__name__ for base in type(callback).__mro__
        }  # no import of it
        if needs and not given["enable_checkpointing"] and not given["fast_dev_run"]:
            raise ConfigurationError(
                f"a {type(callback).__name__} was passed together with enable_checkpointing=False: drop one of the two"
            )
    if given["gradient_clip_algorithm"] is not None and given["gradient_clip_val"] is None:
        raise ConfigurationError("Trainer(gradient_clip_algorithm=...) has no effect without gradient_clip_val")
    if given["compile"] and given["recompute"]:
        raise ConfigurationError(
            "Trainer(compile=...) and recompute=... cannot be together: what is compiled is recomputed nowhere. "
            "Leave one of them out"
        )
    if given["min_epochs"] and given["max_epochs"] not in (None, -1) and given["min_epochs"] > given["max_epochs"]:
        raise ConfigurationError(f"min_epochs={given['min_epochs']} is more than max_epochs={given['max_epochs']}")
    if given["min_steps"] and 0 <= given["max_steps"] < given["min_steps"]:
        raise ConfigurationError(f"min_steps={given['min_steps']} is more than max_steps={given['max_steps']}")
    if isinstance(given["val_check_interval"], _TIMES):
        _check_time_between_validations(given)
    elif given["check_val_every_n_epoch"] is None and not _is_int(given["val_check_interval"]):
        raise ConfigurationError(
            "check_val_every_n_epoch=None counts batches over epochs: pass val_check_interval as a number of batches"
        )


def _meant(callback: object) -> str:
    """What is meant by a callback of another framework's, where that is known."""
    here = callback_here(type(callback).__name__)
    return f": {here}" if here else ""


def _check_time_between_validations(given: Mapping[str, Any]) -> None:
    interval, every_n = given["val_check_interval"], given["check_val_every_n_epoch"]
    if not (seconds(interval, "Trainer", "val_check_interval") or 0) > 0:
        raise ConfigurationError(f"Trainer(val_check_interval={interval!r}) must be longer than 0 s")
    if every_n not in (None, 1):
        raise ConfigurationError(
            f"check_val_every_n_epoch={every_n} counts epochs, and val_check_interval={interval!r} is a time: "
            "leave one of them out"
        )


def has_rule(name: str) -> bool:
    """Whether `check_setting` knows an argument."""
    return name in _RULES


def check_setting(name: str, value: Any, where: str) -> None:
    """Check one of Trainer's arguments, given at `where`; raises as `check_settings` does."""
    is_right, expectation = _RULES[name]
    if is_right(value):
        return
    message = f"{where} must be {expectation}, got {value!r} ({type(value).__name__})"
    if isinstance(value, str):
        words = re.findall(r"'(\w+)'", expectation)
        message += did_you_mean(value, words)
    raise (ConfigurationError if _same_kind(value, expectation) else ConfigurationTypeError)(message)


def _same_kind(value: Any, expectation: str) -> bool:
    """Whether the value has a type that some right value has, so that it is its size that is wrong."""
    if isinstance(value, bool):
        return "True" in expectation
    if isinstance(value, str):
        return "'" in expectation or "path" in expectation or "name" in expectation
    if isinstance(value, int):
        return "int" in expectation or "number" in expectation
    return isinstance(value, float) and ("float" in expectation or "number >" in expectation)


def _sequence(name: str, value: Any, expectation: str) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return value
    raise ConfigurationTypeError(f"Trainer({name}=...) must be {expectation}, got {value!r} ({type(value).__name__})")


def stage_limit(fast_dev_run: int | bool, limit: int | float | None, overfit: int | float = 0.0) -> int | float | None:
    """How much of a stage's data is used: fast_dev_run beats overfit_batches beats the stage's own limit."""
    if fast_dev_run:
        return int(fast_dev_run)
    return overfit or limit
