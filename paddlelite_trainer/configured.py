"""Configured: what a Trainer is given, and the parts that it is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .callback import Callback
from .defaults import adapted, default_callbacks, default_loggers, without_replaced
from .errors import explains_unknown_arguments
from .fit.evaluation import Evaluation
from .fit.fit import Fit
from .fit.subject import Machine
from .machine.device import Device, resolve_device
from .machine.precision import Precision
from .machine.ranks import Ranks, launch_if_several
from .machine.rng import seed_everything
from .machine.strategy import Strategy
from .module import Module
from .readable import Readable
from .reporting.terminal import print_line
from .settings import CALLED_HERE, NOT_HERE

if TYPE_CHECKING:
    from .reporting.loggers import Logger


class Configured(Readable):
    """A Trainer's arguments, and the machine, loggers and callbacks that they ask for."""

    _last: Fit | Evaluation
    _configured_for: Module | None = None
    callbacks: list[Callback]
    _given_callbacks: list[Callback]
    _module_callbacks: list[Callback]
    _merged: list[Callback]

    @explains_unknown_arguments(NOT_HERE, called=CALLED_HERE, by_name_only=True)
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
        strategy: str | Strategy = "auto",
        num_nodes: int | None = None,
        sync_batchnorm: bool = False,
        find_unused_parameters: bool | None = None,
        precision: str | int = "32-true",
        precision_options: Mapping[str, Any] | None = None,
        logger: Logger | str | Sequence[Logger | str] | bool | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | Mapping[str, int] | None = None,
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
        compile: bool | Mapping[str, Any] = False,
        recompute: str | Sequence[str] | None = None,
        detect_anomaly: bool = False,
        inference_mode: bool = True,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | Path = "runs",
        run_name: str | None = None,
        seed: int | None = None,
        profiler: Literal["simple", "paddle"] | None = None,
        cpu_threads: int | Literal["auto"] = "auto",
        prefetch_to_device: bool | Literal["auto"] = "auto",
        look_ahead: bool = True,
        multiprocessing_context: Literal["auto", "fork", "spawn"] = "auto",
        async_checkpoint: bool | Literal["auto"] = "auto",
        on_save_error: Literal["raise", "warn"] = "raise",
        rank_timeout: str | timedelta | Mapping[str, int] | None = "00:00:30:00",
    ) -> None:
        """Everything has a default, but one of `max_epochs`, `max_steps`, `max_time` must say when `fit` ends.

        Args:
            max_epochs: end after so many epochs in all, those before a resume included; -1: no limit.
            min_epochs: requests to stop wait until so many epochs are done.
            max_steps: end after so many optimizer steps in all; -1: no limit.
            min_steps: requests to stop wait until so many optimizer steps are done.
            max_time: end after this much training: "DD:HH:MM:SS", a timedelta, or {"hours": 2}.
            accelerator: "auto", "cpu", "gpu", or the name of one of Paddle's custom devices.
            devices: how many devices, which ones, or "auto"; more than one starts a process for each.
            strategy: how training is spread over them: "auto" ("ddp" where there are several), "ddp",
                "sharding_stage1", "sharding_stage2", "sharding_stage3"; words of Lightning and Paddle are understood.
            num_nodes: how many machines the job has, as a check; None: as it was started.
            sync_batchnorm: let BatchNorm's statistics be those of all ranks' batches together.
            find_unused_parameters: whether a step may leave parameters without a gradient; None: in "ddp" it may.
            precision: "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true" or "64-true".
            precision_options: `custom_white_list`, `custom_black_list` (operators' names), `scaler_options`.
            logger: where metrics go: loggers, or names as "wandb"; None: CSV and TensorBoard files, False: nowhere.
            callbacks: one, or a list; they are called in the list's order.
            fast_dev_run: try everything on so many batches (True: 1), without checkpoints, logs or a run directory.
            limit_train_batches: batches of an epoch: a number, or a share from 0.0 to 1.0 of the loader's.
            limit_val_batches: the same for each validation loader; 0 leaves validation out.
            limit_test_batches: the same for `test`.
            limit_predict_batches: the same for `predict`.
            overfit_batches: train and validate on the same first batches: a number or a share; 0.0: off.
            val_check_interval: validate every so many batches, after a share of an epoch, or after a time.
            check_val_every_n_epoch: validate only every n epochs; None lets val_check_interval count over epochs.
            num_sanity_val_steps: batches of validation before training, as a check; -1: all of them.
            log_every_n_steps: optimizer steps between two lines in the loggers.
            enable_checkpointing: whether a ModelCheckpoint is added where none is given.
            enable_progress_bar: whether a bar, or lines in a file, tell how far the run is.
            enable_model_summary: whether the layers' table is printed as `fit` begins.
            accumulate_grad_batches: batches whose gradients are averaged for one step; {epoch: batches} changes it.
            gradient_clip_val: bound of the gradients before each step; None: not clipped.
            gradient_clip_algorithm: "norm", of all gradients together, or "value", of each number.
            deterministic: True refuses what Paddle computes in no fixed order, "warn" tells of it.
            compile: let `paddle.jit.to_static` translate forward; {"layers": ["net"]}: of those layers, "full_graph",
                "backend": its arguments.
            recompute: layers, such as ["blocks.*"], whose results are computed again in the backward and not kept.
            detect_anomaly: stop at the first operator that yields NaN or infinity, and name it; slow.
            inference_mode: changes nothing: evaluation is always under `paddle.no_grad()`.
            reload_dataloaders_every_n_epochs: ask for the training loader anew every n epochs; 0: never.
            default_root_dir: the directory in which run directories are made.
            run_name: the run's directory there, instead of `version_<N>`.
            seed: of data order and augmentation; one that is given seeds everything, now and as `fit` begins.
            profiler: "simple": where the time went, in profile.txt; "paddle": Paddle's own profiler.
            cpu_threads: threads of one operator on the CPU; "auto": the cores, divided by the processes here.
            prefetch_to_device: copy the next batch to an accelerator beside the step; "auto": where it pays.
            look_ahead: False asks an iterable for a batch only when the step before it is done, as data that depend
                on the model need; the number of batches must be known then, by a `__len__` or a limit.
            multiprocessing_context: how DataLoaders' worker processes start: "fork", "spawn", or "auto": a fork, but
                a spawn on Windows and macOS. The batches have the same bits.
            async_checkpoint: write checkpoints beside the training; "auto": where it pays.
            on_save_error: where a checkpoint cannot be written: "raise", or "warn" and train on.
            rank_timeout: how long ranks wait for one that does not come; None: for ever.
        """
        super().__init__(locals() | {"callbacks": (given := adapted(callbacks))}, _DEFAULTS)
        self.ranks, self.strategy, self.device = self._start(accelerator, devices)
        self.precision = Precision(precision, device=self.device, **(precision_options or {}))
        self._loggers = default_loggers(logger, is_dry=bool(fast_dev_run), is_zero=self.ranks.is_zero)
        self._take_callbacks(given)
        self._running: list[Fit | Evaluation] = []
        self._evaluated: dict[str, float] = {}
        self._last = self._fit = self._new_fit()

    def _start(self, accelerator: str, devices: int | str | Sequence[int]) -> tuple[Ranks, Strategy, Device]:
        launch_if_several(accelerator, devices, self.strategy, self.default_root_dir / "launch_logs")
        if self.given_seed is not None:
            seed_everything(self.given_seed, workers=True)  # so that a module made next has the same weights each time
        ranks = Ranks(self.rank_timeout_seconds)
        device = resolve_device(accelerator, devices, local_rank=ranks.local_rank)
        return ranks, self.strategy.on(ranks.world_size), device

    def _take_callbacks(self, callbacks: Callback | Sequence[Callback] | None) -> None:
        self._given_callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        self._module_callbacks = []
        self.callbacks = self._with_defaults(self._given_callbacks)
        self._merged = list(self.callbacks)  # what else is in `callbacks` is the user's

    def print(self, *values: Any, **options: Any) -> None:
        """print() on rank 0 that does not tear the progress bar."""
        if not self.is_global_zero:
            return
        self._fit.train_log.printed(values, options)
        getattr(self.progress_bar_callback, "print", print_line)(*values, **options)

    def _new_fit(self) -> Fit:
        machine = Machine(self.ranks, self.device, self.precision)
        return Fit(self, machine, self._loggers, self.print)

    def _merge_callbacks(self, model: Module, stage: str) -> None:
        if model is self._configured_for and stage != "fit":
            return  # the objects that the fit has used, with what they know
        wanted = model.configure_callbacks()
        wanted = [wanted] if isinstance(wanted, Callback) else list(wanted)
        had, self._module_callbacks, self._configured_for = self._module_callbacks, wanted, model
        if not wanted and not had:
            return
        self._given_callbacks += [one for one in self.callbacks if not any(one is known for known in self._merged)]
        kept = without_replaced(self._given_callbacks, wanted, model, self.print)
        self.callbacks = self._with_defaults([*kept, *wanted])
        self._merged = list(self.callbacks)

    def _with_defaults(self, callbacks: list[Callback]) -> list[Callback]:
        bar, summary = (self.is_global_zero and on for on in (self.enable_progress_bar, self.enable_model_summary))
        checkpointing = self.enable_checkpointing
        return default_callbacks(callbacks, checkpointing=checkpointing, progress_bar=bar, model_summary=summary)


_DEFAULTS = {
    name: argument.default
    for name, argument in inspect.signature(Configured.__init__).parameters.items()
    if name != "self"
}
