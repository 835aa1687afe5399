"""Trainer: settings, fit/validate/test/predict; the loop, readable top to bottom."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import paddle

from .callback import HOOKS as CALLBACK_HOOKS
from .callback import Callback, Pins, Reason, SavePoint, overridden, refuse_misspelt_hooks, refuse_wrong_signature
from .data.batch import batch_size_of, move_to_device
from .data.module import HOOKS as DATA_HOOKS
from .data.module import DataModule
from .data.prefetch import Prefetch
from .data.source import BatchSource
from .defaults import default_callbacks, default_loggers
from .errors import (
    CheckpointError,
    CheckpointSaveError,
    ConfigurationError,
    ConfigurationTypeError,
    DataError,
    DeviceOutOfMemoryError,
    LogWriteError,
    TrainingError,
)
from .fit import mark
from .fit import state as training_state
from .fit.evaluation import EvaluationAbandoned, evaluate
from .fit.mark import Mark
from .machine.device import resolve_device, use_cpu_threads
from .machine.precision import Precision, clip_gradients_by_norm, is_out_of_memory
from .machine.ranks import Ranks, launch_if_several
from .machine.rng import (
    derive_seed,
    draw_seed,
    isolated_random_states,
    paddle_cpu_generator_can_be_saved,
    seed_everything,
)
from .machine.signals import EXIT_PREEMPTED, SignalWatch, WaitingEnded, in_notebook
from .module import HOOKS as MODULE_HOOKS
from .module import Module, is_written, refuse_what_is_never_called
from .optimizers import (
    LRSchedulerConfig,
    ManualOptimizer,
    SchedulerState,
    add_param_group,
    gradients_of,
    normalise,
    parameters_of,
    structured_names,
    will_drop,
)
from .progress import Progress
from .readable import Readable
from .reporting.metrics import MetricCollector, paddle_metrics_of, refuse_taken_names
from .reporting.profiler import make_profiler
from .run.directory import RunDirectory, locked, resolve_ckpt_path
from .run.remote_run import copies_of, resolve_with_remotes
from .settings import check_settings, explains_unknown_arguments, stage_limit, to_seconds

if TYPE_CHECKING:
    from .checkpoint import CheckpointStore, Entry
    from .fit.starting import InitFrom
    from .reporting.loggers import Logger

Stage = Literal["fit", "validate", "test", "predict"]
_TENSOR = paddle.Tensor
_SCALAR_SHAPES: tuple[list[int], ...] = ([], [1])
_STEPS = {"train": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
_AT_EPOCH_END = -1  # a validation period that is known only when the last batch has come


class Trainer(Readable):
    """Runs a Module: epochs, validation, checkpoints, exact resume.

        trainer = Trainer(max_epochs=100, callbacks=[ModelCheckpoint(monitor="val_acc", mode="max")])
        trainer.fit(Classifier(), train_loader, val_loader, ckpt_path="last")
        trainer.test(ckpt_path="best", dataloaders=test_loader)

    Arguments have Lightning's names and meanings. One of `max_epochs`, `max_steps`, `max_time` must say when `fit` ends.
    Beyond Lightning: `precision_options` (`custom_white_list`, `custom_black_list`, `scaler_options` of `Precision`), `run_name` (the run's directory under `default_root_dir` instead of `version_<N>`), `seed` (of data order, augmentation
    and, where given, of everything else), `async_checkpoint` ("auto", True, False: write checkpoints beside the training), `on_save_error` ("raise", or "warn" and train on),
    `cpu_threads` (of one operator on the CPU; see `device.use_cpu_threads`), `prefetch_to_device` (on an accelerator, copy the next batch beside the step: "auto" times the first batches
    and does it where it pays; True; False), `profiler` ("simple", "paddle").
    `inference_mode` is accepted for Lightning's sake and changes nothing: evaluation is always under paddle.no_grad().
    """

    @explains_unknown_arguments
    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | Mapping[str, int] | None = None,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = "auto",
        precision: str | int = "32-true",
        precision_options: Mapping[str, Any] | None = None,
        logger: Logger | Sequence[Logger] | bool | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int = 2,
        log_every_n_steps: int = 50,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = True,
        accumulate_grad_batches: int | Mapping[int, int] = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        deterministic: bool | Literal["warn"] = False,
        detect_anomaly: bool = False,
        inference_mode: bool = True,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | Path = "runs",
        run_name: str | None = None,
        seed: int | None = None,
        profiler: Literal["simple", "paddle"] | None = None,
        cpu_threads: int | Literal["auto"] = "auto",
        prefetch_to_device: bool | Literal["auto"] = "auto",
        async_checkpoint: bool | Literal["auto"] = "auto",
        on_save_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        check_settings(locals())
        self.fast_dev_run = int(fast_dev_run)
        self.max_epochs = 1 if fast_dev_run else max_epochs
        self.min_epochs = min_epochs or 0
        self.max_steps = self.fast_dev_run if fast_dev_run else max_steps
        self.min_steps = min_steps or 0
        self.max_seconds = to_seconds(max_time)
        self.overfit_batches = overfit_batches
        self.limits = {
            "train": stage_limit(fast_dev_run, limit_train_batches, overfit_batches),
            "validate": stage_limit(fast_dev_run, limit_val_batches, overfit_batches),
            "test": stage_limit(fast_dev_run, limit_test_batches),
            "predict": stage_limit(fast_dev_run, limit_predict_batches),
        }
        self.val_check_interval = 1.0 if val_check_interval is None or fast_dev_run else val_check_interval
        self.check_val_every_n_epoch = 1 if fast_dev_run else check_val_every_n_epoch
        self.num_sanity_val_steps = 0 if fast_dev_run else num_sanity_val_steps
        self.log_every_n_steps = log_every_n_steps
        self.enable_checkpointing = enable_checkpointing and not fast_dev_run
        self.enable_progress_bar = enable_progress_bar
        self.enable_model_summary = enable_model_summary
        self._accumulation = (
            dict(accumulate_grad_batches)
            if isinstance(accumulate_grad_batches, Mapping)
            else {0: accumulate_grad_batches}
        )
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.deterministic = deterministic
        self.detect_anomaly = detect_anomaly
        self.inference_mode = inference_mode
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.default_root_dir = Path(default_root_dir).expanduser().absolute()
        self.run_name = run_name
        self.seed = seed
        self._given_seed = seed
        self.async_checkpoint = async_checkpoint
        self.on_save_error = on_save_error
        self.profiler = make_profiler(profiler)
        self.cpu_threads = cpu_threads
        self.prefetch_to_device = prefetch_to_device

        launch_if_several(accelerator, devices, self.default_root_dir / "launch_logs")
        self.ranks = Ranks()
        self.device = resolve_device(accelerator, devices, local_rank=self.ranks.local_rank)
        self.precision = Precision(precision, device=self.device, **(precision_options or {}))
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        for callback in given:
            refuse_misspelt_hooks(callback, Callback, CALLBACK_HOOKS)
        self._given_callbacks = given
        self._module_callbacks: list[Callback] = []
        self._configured_for: Module | None = None
        self.callbacks: list[Callback] = default_callbacks(
            given,
            checkpointing=self.enable_checkpointing,
            progress_bar=enable_progress_bar and self.is_global_zero,
            model_summary=enable_model_summary and self.is_global_zero,
        )
        self.loggers: list[Logger] = [] if fast_dev_run else default_loggers(logger)

        self.model: Any = None
        self.datamodule: DataModule | None = None
        self.run: RunDirectory | None = None
        self._run_path: Path | None = None
        self._store: CheckpointStore | None = None
        self.state: Stage | None = None
        self.training = self.validating = self.testing = self.predicting = self.sanity_checking = False
        self.interrupted = False
        self.ckpt_path: Path | None = None
        """The checkpoint that the running stage, or the last one, took its weights from; None where it took none."""
        self.signals = SignalWatch()
        self._hooks: dict[str, list[Callable[..., Any]]] = {}
        self._collector: MetricCollector | None = None
        self._sources_in_use: Sequence[BatchSource] = ()
        self.cpu_threads_in_use: int | None = None
        self._logs_steps = False
        self._dataloader_suffix = ""
        self._toggled: list[tuple[Any, bool]] = []
        self._batch: Any = None
        self._forget_fit()

    def _forget_fit(self) -> None:
        """Everything that one fit leaves behind and the next must not see."""
        self._untoggle()
        self.run, self._run_path, self._store = None, None, None
        self.progress = Progress()
        self.optimizers: list[Any] = []
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        self._scheduler_states: list[SchedulerState] = []
        self._manual_optimizers: list[ManualOptimizer] = []
        self.parameter_names: dict[str, str] = {}
        self._train_metrics = MetricCollector()
        self._val_metrics = MetricCollector()
        self._callback_metrics: dict[str, float] = {}
        self._evaluated_apart: set[str] = set()  # names that only an evaluation outside fit has logged
        self._logged_metrics: dict[str, float] = {}
        self._progress_bar_metrics: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._epoch_record: dict[str, Any] = {}
        self._stop_reason: str | None = None
        self._stopped_for_good = True
        self._mark: Mark | None = None
        self._saving_mark: Mark | None = None
        self._saved_at: tuple[Any, ...] | None = None
        self._told_failures: set[str] = set()
        self._requested_pins: dict[str, bool] = {}  # tag: whether its weights are enough
        self._agreed_to_leave = self._stop_is_agreed = False
        self._known_candidate: Entry | None = None
        self._train_source: BatchSource | None = None
        self._val_sources: list[BatchSource] = []
        self._last_loss: Any = None
        self.gradient_norm: Any = None
        """Of the last window, before clipping; a tensor where the Trainer clips by norm, else None."""
        self._skips_step = False
        self._added_param_groups: list[dict[str, Any]] = []
        self.imported_best: Entry | None = None
        """The best checkpoint of another tool's run that `InitFrom(best=...)` has brought along, with its scores."""

    # -- entry points ------------------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        *,
        override: Sequence[str] = (),
        init_from: str | Path | InitFrom | None = None,
    ) -> None:
        """Train until `max_epochs`, `max_steps`, `max_time` or a stop; resume where `ckpt_path` says.

        `ckpt_path`: None (a fresh run), "last" or "latest" (the newest run's newest checkpoint; a fresh run where there is none), "best", a
        tag, or a path to a checkpoint, a run or a link. `override` names what the present settings decide although the checkpoint
        holds it: "learning_rate", "lr_schedulers", "optimizer", "callbacks", "data". `init_from` is a checkpoint, of any Paddle tool, whose weights a
        fresh run starts from, or an `InitFrom` that takes more of it; a run that resumes ignores it.

            resolve ckpt_path; setup; configure_optimizers; restore everything
            on_fit_start; sanity validation, which leaves no trace; on_train_start
            each epoch:
                on_train_epoch_start                       (not again when resuming inside the epoch)
                each batch:
                    move to the device; on_train_batch_start
                    training_step, under autocast; on_before_backward; backward; on_after_backward
                    at the end of an accumulation window:  (the last one may be shorter and is averaged over its own length)
                        unscale; on_before_optimizer_step; clip; optimizer step; clear_grad; global_step += 1
                    on_train_batch_end; counters; validation if due
                    at a window's end: schedulers of interval "step", ReduceOnPlateau with what validation has just logged; SAVE POINT
                schedulers of interval "epoch", ReduceOnPlateau with this epoch's metric
                on_train_epoch_end; history; counters; SAVE POINT
            on_train_end; on_fit_end; teardown

        Where schedulers are about to lower the rate in one jump and a callback wants it, there is a SAVE POINT "lr_drop" before them.

        Raises:
            TrainerError: see errors.py. SystemExit(75) after SIGTERM, when saved: run the same command again. KeyboardInterrupt after
            Ctrl-C, when saved; in a notebook fit returns and `trainer.interrupted` is True.
        """
        if isinstance(train_dataloaders, DataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        _refuse_both(datamodule, train_dataloaders, val_dataloaders)
        self._fitted_before = self.progress.total_batches > 0
        self._forget_fit()
        with self.signals:
            outcome = "failed"
            try:
                self._begin("fit", model, datamodule)
                with self._watch_numerics():
                    if self._prepare_fit(train_dataloaders, val_dataloaders, ckpt_path, override, init_from):
                        self.signals.wait_for_save_point(lambda: self.progress.batches_in_window == 0)
                        with contextlib.suppress(WaitingEnded):
                            self._train_loop()
                        self._finish_fit()
                    outcome = "finished"
            except BaseException as error:
                told = self._after_error(error)
                if told is error:
                    raise
                raise told from error
            finally:
                self._end("fit", outcome)
        self._leave_as_asked()

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
    ) -> list[dict[str, float]]:
        """Metrics of `validation_step` over the data, one dict per loader. With `ckpt_path` its weights are loaded, nothing else of it."""
        return self._run_evaluation("validate", model, dataloaders, ckpt_path, verbose, datamodule)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
    ) -> list[dict[str, float]]:
        """Metrics of `test_step` over the data, one dict per loader. With `ckpt_path` its weights are loaded, nothing else of it."""
        return self._run_evaluation("test", model, dataloaders, ckpt_path, verbose, datamodule)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: str | Path | None = None,
    ) -> list[Any]:
        """What `predict_step` returned for each batch; a list of such lists where there are several loaders."""
        outputs = self._run_evaluation(
            "predict", model, dataloaders, ckpt_path, False, datamodule, keep_outputs=return_predictions
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def stop(self, reason: str = "stop() was called", *, for_good: bool = True) -> None:
        """Ask the fit to end at the next save point, once `min_epochs` and `min_steps` are reached.

        The run is then over: started again it says so, unless `fit(override=("stop",))` goes on. With `for_good=False`
        that is left to the caller, who is to decide anew from state of its own.
        """
        self._stop_reason, self._stopped_for_good = reason, for_good

    def skip_optimizer_step(self) -> None:
        """Call it in on_before_optimizer_step: the window's gradients are dropped and the optimizer does not move.

        Counters and schedules go on as after any step, as they do where a gradient scaler skips one.
        """
        self._skips_step = True

    def roll_back(self) -> Entry:
        """Put back weights, optimizers and loss scale of this run's newest healthy checkpoint, which is returned.

        Counters, schedules, data and random numbers go on, so the batches in between are passed over and the one that
        did the damage does not come again. Every hook `on_load_checkpoint` is called. All ranks must call it.

        Raises:
            CheckpointNotFoundError: there is no healthy checkpoint.
        """
        return training_state.roll_back(self)

    def train_batches(self) -> Iterator[Any]:
        """One more pass over the training data of this epoch, on the device; the run's position stays where it is."""
        assert self._train_source is not None, "there is training data only while fit runs"
        (source,) = self._sources("train", self._train_source.loader, "train_dataloader")
        prepare_batch = self._batch_preparation(source)
        try:
            for batch in source.epoch(self.progress.current_epoch):
                yield batch if prepare_batch is None else prepare_batch(batch)
        finally:
            source.close()

    def add_param_group(
        self,
        parameters: Iterable[Any],
        *,
        optimizer_index: int = 0,
        learning_rate: float = 1.0,
        weight_decay: float | None = None,
    ) -> None:
        """Let an optimizer train these parameters too, at `learning_rate` times its own rate; a resumed run has them as well.

        Raises:
            ConfigurationError: it trains one of them already; weight_decay for an optimizer without parameter groups.
        """
        added = list(parameters)
        optimizer = self.optimizers[optimizer_index]
        add_param_group(optimizer, added, learning_rate=learning_rate, weight_decay=weight_decay)
        self._added_param_groups.append(
            {
                "optimizer_index": optimizer_index,
                "parameters": [self.parameter_names[parameter.name] for parameter in added],
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
            }
        )

    def save_checkpoint(self, tag: str, weights_only: bool = False, *, replace: bool = False) -> Path | None:
        """Keep the present state under a name of your own, for good; resume from it with `ckpt_path=tag`.

        During fit it is taken at the next save point, and None is returned; after fit at once, and its directory is
        returned. A save point that writes everything anyway has it in full, with `weights_only` too. With `replace` the
        tag moves here from a checkpoint that has it, which is deleted where nothing else keeps it.

        Raises:
            ConfigurationError: the tag cannot be a file's name, is one that the run uses itself, or is another step's.
            CheckpointError: there is no run directory. CheckpointSaveError, after fit: writing failed.
        """
        from .checkpoint.links import check_tag

        if self._run_path is None:
            raise CheckpointError(
                "save_checkpoint needs a run directory: call it in or after fit, without fast_dev_run"
            )
        check_tag(tag)
        holders = [] if replace or self._store is None else self._store.by_pin(tag)
        others = [
            entry.name for entry in holders if entry.step != self.global_step
        ]  # this step's: the same command again
        if others:
            raise ConfigurationError(
                f"the tag {tag!r} is taken, by {', '.join(others)}. Choose another, or pass replace=True."
            )
        self._requested_pins[tag] = weights_only
        if self.state == "fit":
            return None
        try:
            with locked(self._run_path) if self.is_global_zero else contextlib.nullcontext():
                entry = self._take_checkpoint({})
                if self._store is not None:
                    self._store.wait()
        finally:
            self._requested_pins.clear()
        return None if entry is None else entry.path

    # -- the loop ----------------------------------------------------------------------------------------------------------------

    def _train_loop(self) -> None:
        """Two frames from fit to the user's training_step: this one and fit's."""
        progress, hooks = self.progress, self._hooks
        automatic = self.model.automatic_optimization
        optimizer = self.optimizers[0] if automatic else None
        training_step = self._step
        autocast = self.precision.autocast
        reseed = None if paddle_cpu_generator_can_be_saved() else self._reseed_for_batch
        batch_start, before_backward, after_backward, batch_end = (
            hooks.get(name, ())
            for name in ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end")
        )

        while not self._fit_is_over():
            window = self._open_epoch()
            if window is None:
                return
            source = self._train_source
            assert source is not None
            prepare_batch = self._batch_preparation(source)
            validate_every = self._validation_period()
            skip_rest = False
            for batch in source.epoch(0 if self.overfit_batches else progress.current_epoch, progress.batches_in_epoch):
                batch_idx = progress.batches_in_epoch
                if reseed is not None:
                    reseed()
                if prepare_batch is not None:
                    batch = prepare_batch(batch)
                self._batch = batch
                for hook in batch_start:
                    skip_rest |= hook(batch, batch_idx) == -1
                if skip_rest:
                    break

                if self._needs_closure:
                    outputs = self._closure_step(optimizer, batch, batch_idx)
                elif autocast is None:
                    outputs = training_step(batch, batch_idx)
                else:
                    with autocast():
                        outputs = training_step(batch, batch_idx)
                if automatic and not self._needs_closure:
                    loss = outputs if type(outputs) is _TENSOR else self._loss_in(outputs)
                    if loss.stop_gradient or loss.shape not in _SCALAR_SHAPES:
                        self._refuse_loss(loss)
                    for hook in before_backward:
                        hook(loss)
                    if progress.batches_in_window == 0 and window != 1:
                        self._window_length = self._length_of_window(window)
                    self._backward(loss if window == 1 else loss / self._window_length)
                    for hook in after_backward:
                        hook()
                    progress.batches_in_window += 1
                    if progress.batches_in_window == window or source.is_last:
                        self._step_optimizer(optimizer)
                elif not automatic:
                    self.precision.update()

                for hook in batch_end:
                    hook(outputs, batch, batch_idx)
                progress.batches_in_epoch += 1
                progress.total_batches += 1
                self._last_loss = None if self._skips_step else outputs
                if validate_every and (
                    source.is_last if validate_every < 0 else self._validation_count() % validate_every == 0
                ):
                    progress.validation_is_due = True
                    self._validate_in_fit()
                    if progress.validation_is_due:  # abandoned for a signal; the resumed run begins with it
                        return
                if progress.schedulers_are_due:
                    self._schedule_step()
                if progress.global_step >= self._next_log:
                    self._log_steps()
                if source.is_last or progress.batches_in_window:
                    continue  # an epoch's last batch is saved with the epoch's end, and no checkpoint splits a window
                self._save_point("validation" if self._validated_here else "train_batch")
                if self._must_stop():
                    return
            if not skip_rest:
                self._refuse_short_epoch(source)
            if progress.batches_in_window:
                self._step_optimizer(optimizer)
                self._schedule_step()
            self._close_epoch()

    def _step_optimizer(self, optimizer: Any) -> None:
        """The end of an accumulation window."""
        progress, hooks = self.progress, self._hooks
        if progress.batches_in_window != self._window_length:
            self._rescale_gradients(self._window_length / progress.batches_in_window)
        progress.batches_in_window = 0
        scaler = self.precision.scaler
        if scaler is not None:
            self.precision.unscale(optimizer)
        self._skips_step = False
        for hook in hooks.get("on_before_optimizer_step", ()):
            hook(optimizer)
        if self._clips and not self._skips_step:
            self.model.configure_gradient_clipping(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
        self._mark = None
        if self._skips_step:
            self.precision.discard(optimizer)
        elif scaler is None:
            optimizer.step()
        else:
            self.precision.step(optimizer)
            self.precision.update()
        for hook in hooks.get("on_before_zero_grad", ()):
            hook(optimizer)
        optimizer.clear_grad(False)  # to None: with zeros, parameters the loss does not use would still move
        progress.global_step += 1
        progress.schedulers_are_due = self._schedules_steps

    def _open_epoch(self) -> int | None:
        """Start or re-enter the epoch; returns its accumulation window, or None where the fit ends here."""
        progress = self.progress
        self._collector, self._logs_steps = self._train_metrics, True
        self.training = True
        window = self.accumulate_grad_batches
        self._validated_here = False
        self._window_length = self._length_of_window(window)
        if progress.epoch_is_open:
            validates = progress.validation_is_due
            if validates:
                self._validate_in_fit()
                if progress.validation_is_due:
                    return None
            self._schedule_step()
            if validates and not (self.is_last_batch or progress.batches_in_window):
                self._save_point("validation")
                if self._must_stop():
                    return None
            self._remember(mark.BATCH)
            return window
        if (
            self._reload_train is not None
            and progress.current_epoch
            and progress.current_epoch % self.reload_dataloaders_every_n_epochs == 0
        ):
            self._reload_train()
        self._train_metrics.clear()
        self._logs_steps = False
        self._epoch_record = {}
        self._reseed_where_states_are_lost("epoch start", progress.current_epoch)
        self._call("on_train_epoch_start")
        self._logs_steps = True
        progress.epoch_is_open = True
        self._remember(mark.BATCH)
        return window

    def _close_epoch(self) -> None:
        progress = self.progress
        self._remember(mark.EPOCH_END)
        self._reseed_where_states_are_lost("epoch end", progress.current_epoch)
        self._train_metrics.reduce_over(
            self.ranks.gather_object
        ) if self.ranks.world_size > 1 else self._train_metrics.read()
        self._logs_steps = False
        self._publish(self._train_metrics.callback_values(epoch_end=True))
        self._step_schedulers("epoch", progress.current_epoch + 1)
        self._call("on_train_epoch_end")
        self._train_metrics.read()
        self._publish(self._train_metrics.callback_values(epoch_end=True))
        epoch_values = self._train_metrics.epoch_values(logger=True)
        if epoch_values:
            self.log_metrics(epoch_values)
        record = {
            "epoch": progress.current_epoch,
            "step": progress.global_step,
            **self._train_metrics.callback_values(epoch_end=True),
            **self._epoch_record,
        }
        self.history.append(
            {name: float(value) if isinstance(value, float) else value for name, value in record.items()}
        )
        progress.current_epoch += 1
        progress.batches_in_epoch = 0
        progress.epoch_is_open = False
        self._save_point("train_epoch")

    def _fit_is_over(self) -> bool:
        """Asked between epochs."""
        if self._must_stop():
            return True
        return self.max_epochs is not None and self.max_epochs >= 0 and self.progress.current_epoch >= self.max_epochs

    def _must_stop(self) -> bool:
        """Asked at every save point: is this the last one?"""
        progress = self.progress
        if 0 <= self.max_steps <= progress.global_step and not progress.validation_is_due:
            return True
        if self.ranks.world_size > 1:  # clocks and signals differ between ranks: only what they agreed on counts
            if self._agreed_to_leave:
                return True
            if not self._stop_is_agreed:
                return False
        elif self.signals.received is not None:
            return True
        elif self.max_seconds is not None and self._seconds() >= self.max_seconds:
            self._stop_for_time()
            return True
        if self._stop_reason is None:
            return False
        if self._stop_is_allowed():
            return True
        if not progress.epoch_is_open:  # too early; whoever asked may ask again
            self._stop_reason = None
        return False

    def _stop_is_allowed(self) -> bool:
        return self.progress.current_epoch >= self.min_epochs and self.progress.global_step >= self.min_steps

    def _stop_for_time(self) -> None:
        assert self.max_seconds is not None
        self.stop(f"max_time of {timedelta(seconds=self.max_seconds)} is over", for_good=False)  # a larger one goes on

    # -- parts of a training batch -----------------------------------------------------------------------------------------------

    def _training_step(self) -> Callable[..., Any]:
        step: Callable[..., Any] = self.model.training_step
        if self.ranks.world_size > 1:
            from .machine.data_parallel import synchronised_training_step

            with isolated_random_states():  # wrapping draws a number from python's generator
                step = synchronised_training_step(self)
        return step

    def _loss_in(self, outputs: Any) -> Any:
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), _TENSOR):
            return outputs["loss"]
        if isinstance(outputs, _TENSOR):
            return outputs
        got = (
            f"a dict with keys {sorted(map(str, outputs))}"
            if isinstance(outputs, Mapping)
            else repr(outputs)
            if outputs is None
            else type(outputs).__name__
        )
        raise TrainingError(
            f"{type(self.model).__name__}.training_step returned {got} in batch {self.progress.batches_in_epoch}. Return the loss tensor, or a dict that has it under 'loss'; "
            "to step optimizers yourself, set automatic_optimization = False in the module."
        )

    def _refuse_loss(self, loss: Any) -> None:
        if loss.shape not in _SCALAR_SHAPES:
            raise TrainingError(
                f"the loss must be a single number, got a tensor of shape {list(loss.shape)}. Return its mean() or sum()."
            )
        raise TrainingError(
            "the loss is not attached to any parameter, so there is nothing to learn from (its stop_gradient is True). It was detached, computed under "
            "paddle.no_grad(), passed through NumPy, or every parameter is frozen."
        )

    def _backward(self, loss: Any) -> None:
        self.precision.scale(loss).backward()

    def _length_of_window(self, window: int) -> int:
        length = self._train_source.length if self._train_source is not None else None
        first = self.progress.batches_in_epoch - self.progress.batches_in_window
        return window if length is None else max(1, min(window, length - first))

    def _refuse_short_epoch(self, source: BatchSource) -> None:
        if source.length is not None and self.progress.batches_in_epoch < source.length:
            raise DataError(
                f"{source.name} said that an epoch has {source.length} batches and ended after {self.progress.batches_in_epoch}: "
                "validation, schedules and resume go by the length. Correct its __len__, or leave it out."
            )

    def _rescale_gradients(self, factor: float) -> None:
        # Only where a loader of unknown length ended inside a window, or a hook ended the epoch there.
        with paddle.no_grad():
            for optimizer in self.optimizers:
                for parameter in parameters_of(optimizer):
                    if parameter.grad is not None:
                        parameter.grad.scale_(factor)

    def _closure_step(self, optimizer: Any, batch: Any, batch_idx: int) -> Any:
        """One step of an optimizer that evaluates the loss several times (LBFGS)."""
        outputs: Any = None

        def closure() -> Any:
            nonlocal outputs
            optimizer.clear_grad(False)
            outputs = self.model.training_step(batch, batch_idx)
            loss = self._loss_in(outputs)
            self._call("on_before_backward", loss)
            loss.backward()
            self._call("on_after_backward")
            return loss

        self._call("on_before_optimizer_step", optimizer)
        self._mark = None
        optimizer.step(closure)
        optimizer.clear_grad(False)
        self.progress.global_step += 1
        self.progress.schedulers_are_due = self._schedules_steps
        return outputs

    def _manual_step(self, optimizer: Any, closure: Callable[[], Any] | None) -> Any:
        result = None
        with self.precision.outside_autocast():
            self._skips_step = False
            self._call("on_before_optimizer_step", optimizer)
            self._mark = None
            if self._skips_step:
                self.precision.discard(optimizer)
            elif closure is not None:
                result = optimizer.step(closure)
            else:
                self.precision.step(optimizer)
        self.progress.global_step += 1
        return result

    def _clip(self, optimizer: Any, value: float | None, algorithm: str | None) -> Any:
        if value is None:
            return None
        # The norm is over parameters that have a gradient, in the optimizer's order.
        parameters = [parameter for parameter in parameters_of(optimizer) if parameter.grad is not None]
        if not parameters:
            return None
        with self.precision.outside_autocast():
            self.precision.unscale(getattr(optimizer, "optimizer", optimizer))
            if algorithm == "value":
                paddle.nn.utils.clip_grad_value_(parameters, value)
                return None
            self.gradient_norm = clip_gradients_by_norm(parameters, value)
            return self.gradient_norm

    def _toggle(self, optimizer: Any) -> None:
        self._untoggle()
        wanted = {id(parameter) for parameter in parameters_of(getattr(optimizer, "optimizer", optimizer))}
        for other in self.optimizers:
            for parameter in parameters_of(other):
                if id(parameter) not in wanted:
                    self._toggled.append((parameter, parameter.stop_gradient))
                    parameter.stop_gradient = True

    def _untoggle(self) -> None:
        for parameter, stop_gradient in self._toggled:
            parameter.stop_gradient = stop_gradient
        self._toggled.clear()

    def _reseed_for_batch(self) -> None:
        # Paddle 2.6 cannot save its CPU generator: the stream of every batch then starts from a seed of its own.
        assert self.seed is not None
        paddle.seed(derive_seed(self.seed, "step", self.progress.total_batches))

    def _reseed_where_states_are_lost(self, where: str, number: int) -> None:
        if not paddle_cpu_generator_can_be_saved():
            assert self.seed is not None
            paddle.seed(derive_seed(self.seed, where, number))

    def _batch_preparation(self, source: BatchSource, dataloader_idx: int = 0) -> Callable[[Any], Any] | None:
        """The way of a batch to the device, or None where there is nothing to do."""
        owner = self._transfers_batches()
        if owner is None:
            convert = self.precision.convert_input
            if not self.device.is_accelerator:
                return convert
            place, prefetch = self.device.place, source.prefetch
            move = prefetch.move if prefetch is not None else lambda batch: move_to_device(batch, place)
            return move if convert is None else lambda batch: convert(move(batch))

        def prepare(batch: Any) -> Any:
            batch = owner.on_before_batch_transfer(batch, dataloader_idx)
            batch = owner.transfer_batch_to_device(batch, self.device.place, dataloader_idx)
            if self.precision.convert_input is not None:
                batch = self.precision.convert_input(batch)
            return owner.on_after_batch_transfer(batch, dataloader_idx)

        return prepare

    def _transfers_batches(self) -> Any:
        """The datamodule or module that has a hook of a batch's transfer overridden, or None."""
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        if self.datamodule is not None and any(
            getattr(type(self.datamodule), name, None) is not getattr(DataModule, name, None) for name in hooks
        ):
            return self.datamodule
        return self.model if any(is_written(self.model, name) for name in hooks) else None

    @property
    def prefetches_to_device(self) -> bool | None:
        """Whether the next training batch is copied to the device while the step runs; None while that is being measured."""
        prefetch = self._train_source.prefetch if self._train_source is not None else None
        return False if prefetch is None else prefetch.is_on

    def _new_prefetch(self) -> Prefetch | None:
        wanted = self.prefetch_to_device
        if wanted is False or not self.device.is_accelerator or self._transfers_batches() is not None:
            return None
        return Prefetch(wanted, self.device)

    def _why_no_prefetch(self) -> str:
        owner = self._transfers_batches()
        if not self.device.is_accelerator:
            return "on the CPU there is nothing to copy"
        if owner is not None:
            return f"{type(owner).__name__} moves its batches by hooks of its own"
        return "only lists of batches, iterables, and DataLoaders with num_workers of 1 or more are read ahead"

    # -- schedulers --------------------------------------------------------------------------------------------------------------

    def _schedule_step(self) -> None:
        """Bring the schedules of interval "step" up to the optimizer step just made, once."""
        if self.progress.schedulers_are_due:
            self._step_schedulers("step", self.progress.global_step)
            self.progress.schedulers_are_due = False

    def _step_schedulers(self, interval: Literal["epoch", "step"], count: int) -> None:
        """Step those that are due after `count` of their intervals; every rank calls it."""
        if not self.model.automatic_optimization:
            return
        due = [
            (config, self._metric_for(config))
            for config in self.lr_scheduler_configs
            if config.interval == interval and count % config.frequency == 0
        ]
        if self._watches_lr_drops and any(will_drop(config, metric) for config, metric in due):
            self._save_point("lr_drop")
        for config, metric in due:
            self._step_scheduler(config, metric)

    def _metric_for(self, config: LRSchedulerConfig) -> float | None:
        if config.monitor is None or not config.needs_metric:
            return None
        metric = self.callback_metrics.get(config.monitor)
        # What one step logs differs between ranks, and their rates must not.
        return metric if self.ranks.world_size == 1 else self.ranks.broadcast_object(metric)

    def _step_scheduler(self, config: LRSchedulerConfig, metric: float | None) -> None:
        if not config.needs_metric:
            self.model.lr_scheduler_step(config.scheduler, None)
            return
        if metric is not None:
            self.model.lr_scheduler_step(config.scheduler, float(metric))
        elif config.strict:
            from .errors import did_you_mean

            known = sorted(self.callback_metrics)
            raise ConfigurationError(
                f"ReduceOnPlateau watches {config.monitor!r}, which was not logged. Logged: {', '.join(known) or 'nothing'}.{did_you_mean(str(config.monitor), known)} "
                "Log it, or pass 'strict': False to step only when it is there."
            )

    # -- validation, test, predict -------------------------------------------------------------------------------------------------

    def _validation_period(self) -> int:
        """Batches between validations in this epoch: 0 for none, _AT_EPOCH_END where the length is unknown."""
        if not self._val_sources or not self._has_validation_step:
            return 0
        every_n = self.check_val_every_n_epoch
        interval = self.val_check_interval
        if every_n is None:
            return int(interval)
        if (self.progress.current_epoch + 1) % every_n:
            return 0
        length = self._train_source.length if self._train_source is not None else None
        if isinstance(interval, int):
            if length is not None and interval > length:
                raise ConfigurationError(
                    f"val_check_interval={interval} is more than the {length} batches of an epoch, so validation would never run. "
                    "Lower it, or pass check_val_every_n_epoch=None to count over epochs."
                )
            return interval
        if length is None:
            if interval != 1.0:
                raise ConfigurationError(
                    f"val_check_interval={interval} is a share of an epoch, and the training data has no length. Give a number of batches."
                )
            return _AT_EPOCH_END
        return max(1, int(length * interval))

    def _validation_count(self) -> int:
        return self.progress.total_batches if self.check_val_every_n_epoch is None else self.progress.batches_in_epoch

    def _validate_in_fit(self) -> None:
        self._log_steps()
        self._mark = Mark(self, mark.VALIDATION)
        # Validation has random numbers of its own to draw from, and training goes on as if there had been none.
        try:
            with isolated_random_states():
                self._reseed_where_states_are_lost("validation", self.progress.total_batches)
                results = evaluate(self, "validate", self._val_sources, self._val_metrics)
        except (EvaluationAbandoned, WaitingEnded):
            return
        self._mark = None
        self.progress.validation_is_due = False
        self._validated_here = True
        merged = {name: value for result in results for name, value in result.items()}
        self._epoch_record.update(merged)

    def _remember(self, hooks: tuple[str, ...]) -> None:
        """Where a callback saves on exceptions: make this the state that is saved if what follows raises."""
        if not self._marks:
            return
        waiting = not self.model.automatic_optimization and gradients_of(self.optimizers)
        # Gradients that wait for a step of the user's own are not copied, and a window's are dropped.
        self._mark = Mark(self, hooks) if not waiting and self.progress.batches_in_window == 0 else None

    def _sanity_check(self) -> None:
        if not self._val_sources or not self._has_validation_step or not self.num_sanity_val_steps:
            return
        self.sanity_checking = True
        self._call("on_sanity_check_start")
        with isolated_random_states():
            limit = None if self.num_sanity_val_steps < 0 else self.num_sanity_val_steps
            evaluate(self, "validate", self._val_sources, self._val_metrics, limit=limit)
        self._val_metrics = MetricCollector()
        self._callback_metrics.clear()
        self._call("on_sanity_check_end")
        self.sanity_checking = False

    def _run_evaluation(
        self,
        stage: Stage,
        model: Module | None,
        dataloaders: Any,
        ckpt_path: str | Path | None,
        verbose: bool,
        datamodule: DataModule | None,
        keep_outputs: bool = False,
    ) -> list[Any]:
        if isinstance(dataloaders, DataModule):
            dataloaders, datamodule = None, dataloaders
        _refuse_both(datamodule, dataloaders)
        if model is None and self.model is None:
            raise ConfigurationError(f"trainer.{stage}() needs a model: this trainer has not fitted one yet")
        self.ckpt_path = None
        sources: list[BatchSource] = []
        try:
            self._begin(stage, model if model is not None else self.model, datamodule)
            method = {"validate": "val_dataloader"}.get(stage, f"{stage}_dataloader")
            sources = self._sources(stage, dataloaders, method)
            word = {"validate": "validation"}.get(stage, stage)
            if not sources:
                raise ConfigurationError(
                    f"trainer.{stage}() needs data: pass dataloaders=, a datamodule, or write {method} in the module"
                )
            if stage != "predict" and not is_written(self.model, f"{word}_step"):
                raise ConfigurationError(f"trainer.{stage}() needs {type(self.model).__name__}.{word}_step")
            self.precision.prepare(self.model, self.optimizers)
            if ckpt_path is not None:
                resolution = resolve_ckpt_path(
                    ckpt_path, default_root_dir=self.default_root_dir, run_name=self._own_run_name()
                )
                if resolution.entry is None:
                    raise CheckpointError(f"trainer.{stage}(ckpt_path={str(ckpt_path)!r}): {resolution.message}")
                for finding in resolution.findings:
                    self.print(f"WARNING: {finding}")
                training_state.load_weights_at(self.model, resolution.entry.path)
                self.ckpt_path = resolution.entry.path
                self.print(f"Weights of {resolution.entry.path}")
            results = evaluate(self, stage, sources, MetricCollector(), keep_outputs=keep_outputs)
            if verbose and self.is_global_zero and stage != "predict":
                from .reporting.summary import print_results

                print_results(stage, results)
            return results
        except BaseException as error:
            told = self._after_error(error)
            if told is error:
                raise
            raise told from error
        finally:
            for source in sources:
                source.close()
            self._end(stage, "finished")

    # -- before and after --------------------------------------------------------------------------------------------------------

    def _begin(self, stage: Stage, model: Module, datamodule: DataModule | None) -> None:
        if not isinstance(model, Module):
            if isinstance(model, paddle.nn.Layer):
                raise ConfigurationTypeError(
                    f"trainer.{stage} takes a paddlelite_trainer.Module, got {type(model).__name__}: derive it from Module instead of paddle.nn.Layer"
                )
            raise ConfigurationTypeError(
                f"trainer.{stage} takes a paddlelite_trainer.Module, got "
                + (
                    f"the class {model.__name__}; pass an object: {model.__name__}()"
                    if isinstance(model, type)
                    else type(model).__name__
                )
            )
        refuse_what_is_never_called(model)
        if stage == "fit":
            for method in ("training_step", "configure_optimizers"):
                if not is_written(model, method):
                    refuse_misspelt_hooks(model, Module, MODULE_HOOKS)
                    raise ConfigurationError(f"{type(model).__name__} has no {method}; fit needs it")
        refuse_misspelt_hooks(model, Module, MODULE_HOOKS)
        if datamodule is not None and not isinstance(datamodule, DataModule):
            raise ConfigurationTypeError(
                f"datamodule must be a paddlelite_trainer.DataModule, got {type(datamodule).__name__}"
            )
        if datamodule is not None:
            refuse_misspelt_hooks(datamodule, DataModule, DATA_HOOKS)
        self.state = stage
        if stage != "fit":
            self.signals.received = None
        self.model = model
        self.datamodule = datamodule if datamodule is not None else self.datamodule if stage != "fit" else None
        model._trainer = self
        self.interrupted = False
        self._batch = None
        self.device.activate()
        if self.device.is_accelerator:
            model.to(self.device.name)
        self._merge_callbacks(model)
        self._collect_hooks()
        self.ranks.on_rank_zero(self._prepare_data)
        if self.datamodule is not None:
            self.datamodule.trainer = self
            self.datamodule.setup(stage)
        self._call("setup", stage)

    def _prepare_data(self) -> None:
        if self.datamodule is not None:
            self.datamodule.prepare_data()
        if is_written(self.model, "prepare_data"):
            self.model.prepare_data()

    def _prepare_fit(
        self,
        train: Any,
        val: Any,
        ckpt_path: str | Path | None,
        override: Sequence[str],
        init_from: str | Path | InitFrom | None,
    ) -> bool:
        """Everything before the first batch; False where the checkpoint's run is over already."""
        from .reporting.summary import announce_fit

        if self.max_epochs is None and self.max_steps < 0 and self.max_seconds is None:
            raise ConfigurationError(
                "when should fit end? Pass max_epochs, max_steps or max_time to Trainer; max_epochs=-1 trains until it is stopped."
            )
        override = training_state.checked_override(override)
        resolution = None
        remotes = copies_of(self.callbacks) if self.enable_checkpointing else []
        if ckpt_path is not None or remotes:
            resolution = self.ranks.on_rank_zero(
                lambda: resolve_with_remotes(
                    ckpt_path, remotes, default_root_dir=self.default_root_dir, run_name=self.run_name
                )
            )
        saved = None
        self.ckpt_path = None
        if resolution is not None and resolution.entry is not None:
            saved = training_state.open_saved(resolution.entry, resolution.opened)
            self.ckpt_path = resolution.entry.path
        if not self.device.is_accelerator:
            saved_threads = saved.trainer["run"].get("cpu_threads") if saved is not None else None
            size = sum(int(parameter.size) for parameter in self.model.parameters())
            self.cpu_threads_in_use = use_cpu_threads(self.cpu_threads, saved_threads, parameters=size)
        if saved is not None:
            self.seed = training_state.agreed_seed(self._given_seed, saved)
        elif self._given_seed is None:
            self.seed = self.ranks.broadcast_object(draw_seed())
        else:
            self.seed = seed_everything(self._given_seed, workers=True)
        self._train_source = next(iter(self._sources("train", train, "train_dataloader")), None)
        if self._train_source is None:
            raise ConfigurationError(
                "limit_train_batches=0 leaves no training data"
                if self.limits["train"] == 0
                else "fit needs training data: pass train_dataloaders=, a datamodule, or write train_dataloader in the module"
            )
        self._tell_what_has_no_effect(train)
        self._reload_train = self._reloader(train)
        self._val_sources = self._sources("validate", val, "val_dataloader")
        self._has_validation_step = is_written(self.model, "validation_step")
        if self._val_sources and not self._has_validation_step:
            self.print("Validation data was given, and the module has no validation_step: no validation will run.")
        self._train_metrics.batch_size = self._current_batch_size
        self._train_metrics.paddle_metrics = functools.partial(paddle_metrics_of, self.model)
        self._configure_optimizers()
        self._step = self._training_step()
        start = None
        if saved is None and init_from is not None:
            from .fit.starting import start_from

            start = start_from(self, init_from)  # before there is a directory: what does not fit leaves none
        self._open_run(saved, resolution)
        notes: list[str] = []
        if resolution is not None:
            notes += [f"WARNING: {finding}" for finding in resolution.findings]
            notes += [resolution.message] if ckpt_path is not None else []
        if saved is not None:
            notes += training_state.restore(self, saved, override)
            self._saved_at = self.progress.position
            damaged = () if resolution is None else resolution.damaged
            notes += self.ranks.on_rank_zero(lambda: self._set_aside_after(saved.entry, damaged))
        elif start is not None:
            notes += start.save_best(self)
        for logger in self.loggers if self.is_global_zero else ():
            logger.log_hyperparams(self.model.hparams)
        if saved is None and self._fitted_before:
            notes.append(
                "a fresh fit: counters, optimizers and schedules begin anew, on the weights that the module has"
            )
        announce_fit(self, notes)
        self._next_log = self._step_after(self.progress.global_step)  # an earlier process has logged what came before
        goes_on = saved is not None or self.progress.current_epoch > 0 or self.progress.global_step > 0
        over = self._already_over() if goes_on else None
        if over is not None:
            self.print(over)
            self._call("on_already_over")
            return False
        self._call("on_fit_start")
        self.model.train()
        if saved is None:  # the resumed run's callbacks have had it, and remember it
            self._sanity_check()
        self._clock = time.monotonic()
        self._seconds_before = self.progress.seconds
        self.training = True
        self._call("on_train_start")
        if saved is not None:
            training_state.restore_random_states(self, saved)  # last, as hooks may have drawn some numbers again
        elif goes_on and self.enable_checkpointing and self._savers:
            self._take_checkpoint(
                {"latest": []}, weights_only=False
            )  # what was brought along can be gone on from by itself, as of now
        if self.profiler is not None:
            self.profiler.attach(self)
        return True

    def _tell_what_has_no_effect(self, train: Any) -> None:
        idle: dict[str, str] = {}
        if self.reload_dataloaders_every_n_epochs and train is not None:
            idle[f"reload_dataloaders_every_n_epochs={self.reload_dataloaders_every_n_epochs}"] = (
                "a loader was passed to fit, and it is train_dataloader of the module or datamodule that is called again"
            )
        if not self.model.automatic_optimization:
            if self.gradient_clip_val is not None:
                idle[f"gradient_clip_val={self.gradient_clip_val}"] = (
                    "with automatic_optimization = False call self.clip_gradients(optimizer, value) before optimizer.step()"
                )
            if self._accumulation != {0: 1}:
                idle[f"accumulate_grad_batches={self._accumulation}"] = (
                    "with automatic_optimization = False call optimizer.step() after as many batches as you want"
                )
        if self.prefetch_to_device is True and not self.prefetches_to_device:
            idle["prefetch_to_device=True"] = self._why_no_prefetch()
        for setting, why in idle.items():
            warnings.warn(f"Trainer({setting}) has no effect: {why}", stacklevel=2)

    def _configure_optimizers(self) -> None:
        model = self.model
        self.optimizers, self.lr_scheduler_configs = normalise(model.configure_optimizers())
        if not self.optimizers:
            if model.automatic_optimization:
                raise ConfigurationError(
                    f"{type(model).__name__}.configure_optimizers returned no optimizer; fit needs one (or automatic_optimization = False)"
                )
        elif len(self.optimizers) > 1 and model.automatic_optimization:
            raise ConfigurationError(
                f"{type(model).__name__}.configure_optimizers returned {len(self.optimizers)} optimizers: which steps when is yours to say. Set self.automatic_optimization = False "
                "in __init__, and in training_step use self.optimizers(), self.manual_backward(loss) and optimizer.step()."
            )
        self.precision.prepare(model, self.optimizers)
        self.parameter_names = structured_names(model)
        for optimizer in self.optimizers:
            for parameter in parameters_of(optimizer):
                if parameter.name not in self.parameter_names:
                    raise ConfigurationError(
                        f"an optimizer holds the parameter {parameter.name!r} of shape {list(parameter.shape)}, which is not part of {type(model).__name__}: make its layer an attribute of the "
                        "module, else no checkpoint would hold it"
                    )
        own_clip = next((optimizer for optimizer in self.optimizers if optimizer._grad_clip is not None), None)
        if own_clip is not None and self.gradient_clip_val is not None:
            raise ConfigurationError(
                f"gradients would be clipped twice: by Trainer(gradient_clip_val={self.gradient_clip_val}) and by {type(own_clip).__name__}(grad_clip="
                f"{type(own_clip._grad_clip).__name__}). Remove one."
            )
        self._clips = self.gradient_clip_val is not None or is_written(model, "configure_gradient_clipping")
        self._needs_closure = model.automatic_optimization and type(self.optimizers[0]).__name__ == "LBFGS"
        if self._needs_closure and self.world_size > 1:
            raise ConfigurationError(
                "LBFGS runs on one process: its several losses a step are not synchronised over ranks"
            )
        if self._needs_closure and (self.precision.autocast is not None or max(self._accumulation.values()) > 1):
            raise ConfigurationError(
                "LBFGS evaluates the loss several times a step: it works in float32 and without accumulate_grad_batches"
            )
        self._schedules_steps = model.automatic_optimization and any(
            config.interval == "step" for config in self.lr_scheduler_configs
        )
        self._scheduler_states = [SchedulerState(config) for config in self.lr_scheduler_configs]
        self._manual_optimizers = [ManualOptimizer(optimizer, self._manual_step) for optimizer in self.optimizers]

    def _open_run(self, saved: training_state.Saved | None, resolution: Any) -> None:
        """The run's directory with its lock, store and loggers, in place where a run goes on."""
        if self.fast_dev_run or not (self.enable_checkpointing or self.loggers):
            return

        def open_on_disk() -> Path:
            from .checkpoint import CheckpointStore

            if resolution is not None and resolution.run_dir is not None:
                self.run = RunDirectory.resume(resolution.run_dir)
            else:
                self.run = RunDirectory.create(self.default_root_dir, run_name=self.run_name)
            self._store = CheckpointStore(self.run.path)
            for logger in self.loggers:
                logger.open(self.run.path, {} if resolution is None or resolution.run_dir is None else None)
            return self.run.path

        self._run_path = self.ranks.on_rank_zero(open_on_disk)

    def _set_aside_after(self, entry: Entry, damaged: Sequence[str]) -> list[str]:
        """Only once the checkpoint has proved to fit: what an earlier process saved after it is no longer this run's.

        Returns sentences about what was moved.
        """
        if self._store is None:
            return []
        moved = self._store.quarantine(damaged)
        notes = [f"moved to checkpoints/.quarantine/: {', '.join(moved)}"] if moved else []
        newer = self._store.set_aside_after(entry.step, entry.revision)
        if newer:
            names = sorted({pin for other in newer for pin in other.pins} - set(self._store.pins()))
            notes.append(
                f"{len(newer)} checkpoint{'s' if len(newer) > 1 else ''} after step {entry.step} moved to checkpoints/.superseded/, since "
                f"the run goes on from here{'; their names are free again: ' + ', '.join(names) if names else ''}"
            )
        return notes

    def _already_over(self) -> str | None:
        progress = self.progress
        if progress.validation_is_due:
            return None
        if self._stop_reason is not None and self._stop_is_allowed():
            return f"Already stopped at epoch {progress.current_epoch}, step {progress.global_step}: {self._stop_reason}. Nothing to do; override=('stop',) goes on."
        if self.max_epochs is not None and 0 <= self.max_epochs <= progress.current_epoch:
            return f"Already finished {progress.current_epoch}/{self.max_epochs} epochs: nothing to do. A larger max_epochs goes on."
        if 0 <= self.max_steps <= progress.global_step:
            return f"Already finished {progress.global_step}/{self.max_steps} steps: nothing to do. A larger max_steps goes on."
        if self.max_seconds is not None and progress.seconds >= self.max_seconds:
            return f"Already trained for {timedelta(seconds=int(progress.seconds))} of max_time: nothing to do. A larger max_time goes on."
        return None

    def _finish_fit(self) -> None:
        if self._store is not None:
            self._await_save()  # what follows depends on whether the last save is there
        is_over = self._is_over_by_itself()
        if not is_over:
            self._tell_of_exception(self._as_exception())
        if (self.progress.epoch_is_open or not is_over) and self._saved_at != self.progress.position:
            abandoned = self._mark if self.progress.validation_is_due else None
            with contextlib.nullcontext() if abandoned is None else abandoned.applied(self):
                self._save_point("stop")
        if self._store is not None:
            self._await_save()
        if not is_over:
            return
        if 0 <= self.max_steps <= self.progress.global_step and self._stop_reason is None:
            self.stop(f"max_steps={self.max_steps} reached", for_good=False)
        self._log_steps()
        self._call("on_train_end")
        self.training = False
        self._call("on_fit_end")
        if self._requested_pins:  # asked for in one of the last hooks
            self._take_checkpoint({})
        if self._store is not None:
            self._await_save()
        if self._stop_reason is not None:
            self.print(
                f"Stopped at epoch {self.progress.current_epoch}, step {self.progress.global_step}: {self._stop_reason}"
            )

    def _is_over_by_itself(self) -> bool:
        """Whether training has ended, as against a process that is asked to go."""
        progress = self.progress
        if progress.validation_is_due:
            return False
        asked_to_go = self.signals.received is not None or self._agreed_to_leave
        if not asked_to_go or self._stop_reason is not None:
            return True
        reached_epochs = self.max_epochs is not None and 0 <= self.max_epochs <= progress.current_epoch
        return reached_epochs or 0 <= self.max_steps <= progress.global_step

    def _as_exception(self) -> BaseException:
        """What the signal received would raise."""
        return SystemExit(EXIT_PREEMPTED) if self.signals.received == signal.SIGTERM else KeyboardInterrupt()

    def _tell_of_exception(self, error: BaseException) -> None:
        for hook in self._hooks.get("on_exception", ()):
            with contextlib.suppress(Exception):  # the first error is the one to be seen
                hook(error)

    def _save_after_error(self) -> None:
        """Where a callback wants it and no optimizer has moved since: save the last save point's state."""
        remembered, self._mark = self._mark, None
        if remembered is None or not self._marks:
            return
        try:
            with remembered.applied(self):
                self._save_point("exception")
                step, batch = self.progress.global_step, self.progress.batches_in_epoch
            self.print(
                f"Saved what was before the error: epoch {self.progress.current_epoch}, batch {batch}, step {step}."
            )
        except Exception as error:
            warnings.warn(f"the state before the error could not be saved: {error}", stacklevel=2)

    def _after_error(self, error: BaseException) -> BaseException:
        """Tell everybody of an exception, save if asked to, and return what leaves fit."""
        if is_out_of_memory(error):
            from .reporting.summary import describe_batch

            ahead = (
                "prefetch_to_device=False, which has one batch less on the device, "
                if self.prefetches_to_device
                else ""
            )
            told = DeviceOutOfMemoryError(
                f"{self.device.name} is out of memory in {'epoch ' + str(self.progress.current_epoch) + ', ' if self.state == 'fit' else ''}batch "
                f"{self.progress.batches_in_epoch}: {describe_batch(self._batch)}. What helps: {ahead}a smaller batch with accumulate_grad_batches, precision='16-mixed' or 'bf16-mixed', "
                "a smaller model or input."
            )
            error = told
        self._tell_of_exception(error)
        self._save_after_error()
        return error

    def _end(self, stage: Stage, outcome: str) -> None:
        """Tear everything down, whatever happened; a teardown's own error is raised where no other is on its way."""
        on_its_way = sys.exc_info()[1]
        try:
            self._tear_down(stage, outcome)
        except Exception as error:
            if on_its_way is None:
                raise
            warnings.warn(f"while ending after the {type(on_its_way).__name__} above: {error}", stacklevel=2)

    def _tear_down(self, stage: Stage, outcome: str) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "state", None)
            if stage == "fit":
                if self.run is not None:
                    stack.callback(self.run.close, self._how_it_ended(outcome))
                if self._store is not None and self.run is not None:
                    stack.callback(self._store.close)
                for source in (self._train_source, *self._val_sources):
                    if source is not None:
                        stack.callback(source.close)
                if self.profiler is not None:
                    stack.callback(self.profiler.finish, self)
            for logger in self._open_loggers():
                stack.callback(self._finalize, logger, outcome)
            if self.datamodule is not None:
                stack.callback(self.datamodule.teardown, stage)
            stack.callback(self._call, "teardown", stage)
            self._collector = None
            self._batch = None
            self._last_loss = None
            self.training = self.validating = self.testing = self.predicting = self.sanity_checking = False

    def _how_it_ended(self, outcome: str) -> str:
        """What run.json keeps: "finished", "stopped: why", "failed: error" or "interrupted: signal"."""
        error = sys.exc_info()[1]
        if self.signals.received is not None and isinstance(error, (SystemExit, KeyboardInterrupt, type(None))):
            return f"interrupted: {self.signals.received.name}"
        if error is not None:
            return f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'failed'}: {type(error).__name__}: {error}"
        return outcome if self._stop_reason is None else f"stopped: {self._stop_reason}"

    def _leave_as_asked(self) -> None:
        """After a signal: the process ends in the way that says why, except in a notebook."""
        received = self.signals.received
        if received is None:
            return
        self.interrupted = True
        progress = self.progress
        where = f"{received.name}: stopped at epoch {progress.current_epoch}, step {progress.global_step}"
        newest = self._store.entries()[-1].name if self._store is not None and self._store.entries() else None
        if self._saved_at == progress.position:
            self.print(f"{where}, saved. Run the same command with ckpt_path='last' to go on.")
        elif newest is not None:
            self.print(f"{where}; this was not saved. ckpt_path='last' goes on from {newest}.")
        else:
            self.print(f"{where}; nothing was saved.")
        if not in_notebook():
            raise self._as_exception()

    @contextlib.contextmanager
    def _watch_numerics(self) -> Iterator[None]:
        """detect_anomaly and deterministic, while a fit runs."""
        from .machine.numerics import numeric_checks

        with numeric_checks(detect_anomaly=self.detect_anomaly, deterministic=self.deterministic):
            yield

    # -- data --------------------------------------------------------------------------------------------------------------------

    def _sources(self, stage: str, given: Any, method: str) -> list[BatchSource]:
        """BatchSources of the loaders given, or of the datamodule's or module's method."""
        if given is None:
            for owner, base in ((self.datamodule, DataModule), (self.model, Module)):
                if owner is not None and getattr(getattr(owner, method), "__func__", None) is not getattr(base, method):
                    given = getattr(owner, method)()
                    break
        if given is None:
            return []
        loaders = list(given) if stage != "train" and _are_several_loaders(given) else [given]
        if self.limits[stage] == 0:
            return []
        step = _STEPS[stage]
        if is_written(self.model, step):
            more = ("dataloader_idx",) if len(loaders) > 1 else ()
            refuse_wrong_signature(self.model, step, getattr(self.model, step), Module, *more)
        seed = self.seed if self.seed is not None else 0
        return [
            BatchSource(
                loader,
                stage=stage,  # type: ignore[arg-type]
                seed=seed,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                limit=self.limits[stage],
                name=method if len(loaders) == 1 else f"{method}[{index}]",
                prefetch=self._new_prefetch(),
            )
            for index, loader in enumerate(loaders)
        ]

    def _reloader(self, given: Any) -> Callable[[], None] | None:
        if given is not None or not self.reload_dataloaders_every_n_epochs:
            return None

        def reload() -> None:
            old, self._train_source = self._train_source, self._sources("train", None, "train_dataloader")[0]
            if old is not None:
                old.close()

        return reload

    def _reload_as_before(self, saved: Progress) -> None:
        """A resumed run's training data, where it came from a call of train_dataloader in the course of the run."""
        every = self.reload_dataloaders_every_n_epochs
        last_reload = saved.current_epoch - saved.current_epoch % every if every else 0
        if not saved.epoch_is_open and last_reload == saved.current_epoch:
            last_reload -= every  # that call is still to come
        if self._reload_train is not None and last_reload > 0:
            present, self.progress.current_epoch = self.progress.current_epoch, last_reload  # as the method saw it
            self._reload_train()
            self.progress.current_epoch = present

    def _current_batch_size(self) -> int:
        return batch_size_of(self._batch)

    # -- metrics -----------------------------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The newest value of every name logged, as numbers; reading brings waiting values to the host."""
        if self.training and self._logs_steps:  # at an epoch's end the epoch's values are there already
            self._publish(self._train_metrics.callback_values(epoch_end=False), only_new_steps=True)
        return self._callback_metrics

    @property
    def logged_metrics(self) -> dict[str, float]:
        """What was last sent to the loggers."""
        return self._logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The newest values logged with prog_bar=True."""
        if self.training:
            self._progress_bar_metrics.update(self._train_metrics.step_values(prog_bar=True))
        return self._progress_bar_metrics

    def record(self, name: str, value: float) -> None:
        """Put a number into callback_metrics and this epoch's history record, without a logger."""
        self._callback_metrics[name] = value
        self._epoch_record[name] = value

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send numbers to every logger, at `global_step` unless told otherwise, with the epoch beside them."""
        values = {name: float(value) for name, value in metrics.items()}
        refuse_taken_names(*values)
        self._logged_metrics.update(values)
        loggers = self._open_loggers()
        if loggers and self._mark is not None:
            try:
                self._mark.remember_logs(self)
            except LogWriteError as error:
                self._mark = None  # without positions in the logs no checkpoint can be made of it
                self._after_failed_log(error)
        for logger in loggers:
            try:
                logger.log_metrics(
                    {**values, "epoch": float(self.progress.current_epoch)},
                    self.progress.global_step if step is None else step,
                )
            except LogWriteError as error:
                self._after_failed_log(error)

    def _after_failed_log(self, error: LogWriteError) -> None:
        if self.on_save_error == "raise":
            raise error
        if str(error) not in self._told_failures:
            self._told_failures.add(str(error))
            self.print(f"WARNING: {error}. Training goes on as on_save_error='warn' asks, and what is logged waits.")

    def _finalize(self, logger: Any, outcome: str) -> None:
        try:
            logger.finalize(outcome)
        except LogWriteError as error:
            self._after_failed_log(error)

    def _open_loggers(self) -> list[Any]:
        """Those that have somewhere to write: none before a fit has begun, and on rank 0 only."""
        if not self.is_global_zero:
            return []
        return [logger for logger in self.loggers if getattr(logger, "is_open", True)]

    def metrics_of_the_fit(self) -> dict[str, float]:
        """callback_metrics without what a validate, test or predict of its own has logged since."""
        return {
            name: float(value) for name, value in self.callback_metrics.items() if name not in self._evaluated_apart
        }

    def _publish(self, values: Mapping[str, float], only_new_steps: bool = False) -> None:
        self._callback_metrics.update(values)
        self._known_candidate = None

    def _log_steps(self) -> None:
        """Send this step's numbers to the loggers, once; where several optimizers step in a batch, at the first batch past a multiple."""
        if self.progress.global_step < self._next_log:
            return
        self._next_log = self._step_after(self.progress.global_step)
        values = self._train_metrics.step_values(logger=True)
        if values:
            self.log_metrics(values)

    def _step_after(self, step: int) -> int:
        """The next step at which there is something to log."""
        return (step // self.log_every_n_steps + 1) * self.log_every_n_steps

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        if self._store is None:
            raise CheckpointError(
                "this trainer has no run directory: it has not fitted yet, or without loggers and checkpoints, or with fast_dev_run"
            )
        return self._store

    def _candidate(self) -> Entry:
        if self._known_candidate is None:
            self._known_candidate = self.checkpoints.candidate(
                step=self.progress.global_step,
                epoch=self.progress.current_epoch,
                metrics=self.metrics_of_the_fit(),
                healthy=training_state.is_healthy(self),
            )
        return self._known_candidate

    def _save_point(self, reason: Reason) -> None:
        """Everything of this batch or epoch has run: let callbacks ask for a checkpoint, and take one."""
        self._validated_here = False
        self._known_candidate = None
        if self.ranks.world_size > 1 and reason == "train_batch" and not self._ranks_agree_here():
            return
        pins: dict[str, Sequence[str]] = {}
        weights_only = True  # where nobody asks for more
        if self._store is not None:
            point = SavePoint(reason, self)
            for callback, ask in self._savers:
                wanted = ask(point)
                if wanted:
                    pins.update(wanted)
                    weights_only = weights_only and getattr(callback, "save_weights_only", False)
        leaving = self.signals.received is not None
        if self.ranks.world_size > 1:
            leaving = self._agree_on_leaving()
            pins, weights_only, self._requested_pins = self.ranks.broadcast_object(
                (pins, weights_only, self._requested_pins)
            )
        if self.enable_checkpointing and self._savers and (reason == "stop" or (leaving and reason != "lr_drop")):
            pins.setdefault("latest", [])  # filled in with this checkpoint
            weights_only = False
        if pins or self._requested_pins:
            self._take_checkpoint(pins, weights_only=weights_only)
        if reason in ("train_batch", "validation"):
            self._remember(mark.BATCH)

    def _agree_on_leaving(self) -> bool:
        """Clocks, signals and reasons to stop may differ between ranks; from here on all have the same. Whether a signal came."""
        over = self.max_seconds is not None and self._seconds() >= self.max_seconds
        everyones = self.ranks.gather_object((self.signals.received, self._stop_reason, self._stopped_for_good, over))
        self.signals.received = next((received for received, *_ in everyones if received is not None), None)
        stopping = next((answer for answer in everyones if answer[1] is not None), None)
        if stopping is not None:
            self._stop_reason, self._stopped_for_good = stopping[1], stopping[2]
        elif any(answer[3] for answer in everyones):
            self._stop_for_time()
        self._stop_is_agreed = self._stop_reason is not None
        self._agreed_to_leave = self.signals.received is not None
        return self._agreed_to_leave

    def _ranks_agree_here(self) -> bool:
        """Whether ranks talk after this batch. It costs a round trip, so not after each, and all must give the same answer."""
        step = self.progress.global_step
        every = [getattr(callback, "every_n_train_steps", None) for callback in self.callbacks]
        return step % self.log_every_n_steps == 0 or any(count and step % count == 0 for count in every)

    def _take_checkpoint(self, pins: Pins, *, weights_only: bool = True) -> Entry | None:
        """Write one checkpoint under these pins and those that users asked for, full if one of them is to be; every rank calls it."""
        weights_only = weights_only and all(self._requested_pins.values())
        mine = [self._candidate().name] if self._store is not None else []
        all_pins = {**pins, **dict.fromkeys(self._requested_pins, mine)}
        if "latest" in all_pins:
            all_pins["latest"] = all_pins["latest"] or mine
        self.progress.seconds = self._seconds()
        try:
            entry = training_state.save(self, all_pins, weights_only=weights_only)
        except (CheckpointSaveError, LogWriteError) as error:  # it holds how far the logs had come
            self._after_failed_save(error)
            return None
        self._requested_pins.clear()
        self._known_candidate = None
        if not weights_only:
            self._saved_at = self.progress.position
        return entry

    def _await_save(self) -> None:
        """Let a background save end, before anything is decided from what is on disk; its error is raised or told here."""
        try:
            self.checkpoints.wait()
        except CheckpointSaveError as error:
            self._after_failed_save(error)

    def _after_failed_save(self, error: CheckpointSaveError | LogWriteError) -> None:
        if self.on_save_error == "raise":
            raise error
        self._known_candidate = self._saved_at = None
        self.print(f"WARNING: a checkpoint was not written, and training goes on as on_save_error='warn' asks: {error}")

    def _seconds(self) -> float:
        if self.state != "fit" or not hasattr(self, "_clock"):
            return self.progress.seconds
        return self._seconds_before + time.monotonic() - self._clock

    def load_weights_of(self, entry: Entry) -> None:
        """Put a checkpoint's weights into the module; nothing else of it."""
        training_state.load_weights_at(self.model, entry.path)

    # -- callbacks ---------------------------------------------------------------------------------------------------------------

    def _merge_callbacks(self, model: Module) -> None:
        if model is self._configured_for and self.state != "fit":
            return  # the objects that the fit has used, with what they know
        wanted = model.configure_callbacks()
        wanted = [wanted] if isinstance(wanted, Callback) else list(wanted)
        for callback in wanted:
            refuse_misspelt_hooks(callback, Callback, CALLBACK_HOOKS)
        had, self._module_callbacks, self._configured_for = self._module_callbacks, wanted, model
        if not wanted and not had:
            return
        replaced = {type(callback) for callback in wanted}
        self.callbacks = default_callbacks(
            [callback for callback in self._given_callbacks if type(callback) not in replaced] + wanted,
            checkpointing=self.enable_checkpointing,
            progress_bar=self.enable_progress_bar and self.is_global_zero,
            model_summary=self.enable_model_summary and self.is_global_zero,
        )

    def _collect_hooks(self) -> None:
        """Find every overridden hook once: callbacks in list order, then the module. What nobody overrides costs nothing."""
        self._hooks = {}
        for name in CALLBACK_HOOKS - {"on_save_point"}:
            calls: list[Callable[..., Any]] = []
            for callback in self.callbacks:
                method = overridden(callback, name, Callback)
                if method is not None:
                    refuse_wrong_signature(callback, name, method, Callback)
                    calls.append(functools.partial(method, self, self.model))
            own = overridden(self.model, name, Module)
            if own is not None:
                refuse_wrong_signature(self.model, name, own, Module)
                calls.append(own)
            if calls:
                self._hooks[name] = calls
        self._savers = [
            (callback, functools.partial(method, self, self.model))
            for callback in self.callbacks
            if (method := overridden(callback, "on_save_point", Callback)) is not None
        ]
        self._marks = self.ranks.world_size == 1 and any(
            getattr(callback, "save_on_exception", False) for callback in self.callbacks
        )
        self._watches_lr_drops = any(getattr(callback, "save_before_lr_drop", False) for callback in self.callbacks)

    def _call(self, hook: str, *arguments: Any) -> None:
        for call in self._hooks.get(hook, ()):
            call(*arguments)

    def print(self, *values: Any, **options: Any) -> None:
        """print() on rank 0 that does not tear the progress bar."""
        if not self.is_global_zero:
            return
        bar = self.progress_bar_callback
        if bar is not None and hasattr(bar, "print"):
            bar.print(*values, **options)
        else:
            print(*values, **options)

    def _own_run_name(self) -> str | None:
        """The run that "best" and "last" mean to this trainer: its own, once it has one."""
        if self._run_path is not None:
            return os.path.relpath(self._run_path, self.default_root_dir)
        return self.run_name


def _refuse_both(datamodule: DataModule | None, *loaders: Any) -> None:
    if datamodule is not None and any(loader is not None for loader in loaders):
        raise ConfigurationError("data comes from a datamodule or from loaders: pass one of them, not both")


def _are_several_loaders(given: Any) -> bool:
    """A list of loaders, as against one list of batches."""
    plain = (list, tuple, dict, paddle.Tensor)
    return (
        isinstance(given, (list, tuple))
        and bool(given)
        and all(
            hasattr(item, "__iter__") and not isinstance(item, plain) and not hasattr(item, "shape") for item in given
        )
    )
