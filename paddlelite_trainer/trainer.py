"""Trainer: what you do: fit, validate, test, predict, stop, save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from .checkpoint.links import check_tag
from .configured import Configured
from .data.module import DataModule
from .data.whole import loader_of
from .errors import CheckpointError, ConfigurationError
from .fit import state as fit_state
from .fit.apart import (
    checkpoint_to_export,
    let_log,
    module_of,
    refuse_other_weights_in_fit,
    sources_of,
    take_checkpoint,
    tear_down_evaluation,
    tell_of_weights,
    told_of,
)
from .fit.compiling import exchange_forwards
from .fit.ending import finish, leave_as_asked, tear_down, told
from .fit.evaluation import Evaluation
from .fit.evaluation import Stage as EvaluationStage
from .fit.fit import Fit
from .fit.hooks import Hooks
from .fit.loading import Loading
from .fit.loop import train
from .fit.preparation import Request, prepare
from .fit.subject import Subject, refuse_both, refuse_unfit_for
from .importing import stop_if_imported
from .machine.numerics import numeric_checks
from .machine.outputs import Outputs
from .machine.paddle_internals import move_to
from .machine.rng import isolated_random_states
from .machine.signals import WaitingEnded
from .module import Module
from .names_elsewhere import refuse_unknown
from .reporting.log_target import LogTarget
from .reporting.metrics import MetricCollector
from .reporting.summary import results_table
from .run.begun import asked_to_resume
from .run.weights import load_weights_at

if TYPE_CHECKING:
    from .checkpoint import Entry
    from .export.exporting import Exported
    from .fit.starting import InitFrom


class Trainer(Configured):
    """Runs a Module: epochs, validation, checkpoints, exact resume.

        trainer = Trainer(max_epochs=100, callbacks=[ModelCheckpoint(monitor="val_acc", mode="max")])
        trainer.fit(Classifier(), train_loader, val_loader, ckpt_path="last")
        trainer.test(ckpt_path="best", dataloaders=test_loader)

    Arguments have Lightning's names and meanings; those beyond them, and all the others: see `__init__`.
    """

    # -- entry points --------------------------------------------------------------------------------------------------
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
        batch_size: int | None = None,
        num_workers: int = 0,
        **unknown: NoReturn,
    ) -> None:
        """Train until `max_epochs`, `max_steps`, `max_time` or a stop; resume where `ckpt_path` says.

            resolve ckpt_path; setup; configure_optimizers; restore everything
            on_fit_start; sanity validation, which leaves no trace; on_train_start
            each epoch:
                on_train_epoch_start           (when resuming inside the epoch: on_train_epoch_resume)
                each batch:
                    move to the device; on_train_batch_start
                    training_step, under autocast; on_before_backward; backward; on_after_backward
                    at the end of a window:    (the last may be shorter; the mean is over its length)
                        unscale; on_before_optimizer_step; clip; step; clear_grad; global_step += 1
                    on_train_batch_end; counters; validation if due
                    at the end of a window: schedulers of interval "step"; SAVE POINT
                schedulers of interval "epoch", ReduceOnPlateau with the metric of this epoch
                on_train_epoch_end; history; counters; SAVE POINT
            on_train_end; on_fit_end; teardown (ended within an epoch: on_train_epoch_end before)

        Where schedulers are about to lower the rate in one jump and a callback wants it, there is a SAVE POINT
        "lr_drop" before them.

        Args:
            model: the module.
            train_dataloaders: a loader, a dict or list of them, batches, or a DataModule; None: the module's own.
            val_dataloaders: a loader, batches, or a list of loaders.
            datamodule: in place of both.
            ckpt_path: None (a fresh run), "last" (the newest run, or a fresh one), "best", a tag, a path or a link.
            override: what the present settings decide although the checkpoint holds it: "learning_rate",
                "lr_schedulers", "optimizer", "callbacks", "data", "precision", "stop".
            init_from: a checkpoint, of any Paddle tool, whose weights a fresh run starts from, or an `InitFrom`.
            batch_size: then the data are a dataset, arrays (X, Y) or samples, not loaders; training's are shuffled.
            num_workers: processes that read them.

        Raises:
            ConfigurationError: this Trainer runs; TrainerError: see errors.py.
            SystemExit: with 75 after SIGTERM, when saved: run the same command again.
            KeyboardInterrupt: after Ctrl-C, when saved; in a notebook fit returns and `trainer.interrupted` is True.
        """
        stop_if_imported()
        refuse_unknown(self.fit, unknown)
        if isinstance(train_dataloaders, DataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        refuse_both(datamodule, train_dataloaders, val_dataloaders)
        sizes = batch_size, num_workers, datamodule
        train_dataloaders = loader_of("fit", "train_dataloaders", train_dataloaders, *sizes, shuffle=True)
        val_dataloaders = loader_of("fit", "val_dataloaders", val_dataloaders, *sizes)
        if self._running:
            raise ConfigurationError(
                f"trainer.fit() was called while this Trainer's {self.state} runs. "
                "Call it afterwards, or with a Trainer of its own."
            )
        ckpt_path = asked_to_resume(self.default_root_dir, self.run_name) or ckpt_path
        asked = Request(
            train_dataloaders, val_dataloaders, ckpt_path, override, init_from, self.progress.total_batches > 0
        )
        self._evaluated = {}
        self._fit = fit = self._new_fit()
        with fit.stopping.signals, Outputs(), self._entered(fit) as entered:
            outcome = "failed"
            try:
                entered.enter_context(fit.train_log.hears_warnings())
                self._begin(fit, "fit", model, datamodule, entered)
                with numeric_checks(detect_anomaly=self.detect_anomaly, deterministic=self.deterministic):
                    if prepare(fit, asked):
                        fit.stopping.signals.wait_for_save_point(lambda: fit.progress.batches_in_window == 0)
                        if self.profiler is not None:
                            self.profiler.attach(fit)
                        with contextlib.suppress(WaitingEnded):
                            train(fit)
                        finish(fit)
                    outcome = "finished"
            except BaseException as error:
                leaves = told(fit, error)
                if leaves is error:
                    raise
                raise leaves from error
            finally:
                tear_down(fit, outcome)
        leave_as_asked(fit)

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        **unknown: NoReturn,
    ) -> list[dict[str, float]]:
        """Metrics of `validation_step` over the data, one dict per loader; within a fit it changes nothing of the fit.

        Args:
            model: the module; None: the one of the last fit.
            dataloaders: a loader, batches, a list of loaders, or a DataModule; None: the module's own.
            ckpt_path: as in `fit`; its weights are taken, and what module and datamodule keep themselves.
            verbose: print a table of the results.
            datamodule: in place of loaders.
            batch_size: as in `fit`.
            num_workers: likewise.
        """
        dataloaders = loader_of("validate", "dataloaders", dataloaders, batch_size, num_workers, datamodule)
        return self._evaluate("validate", model, dataloaders, ckpt_path, verbose, datamodule, unknown)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        **unknown: NoReturn,
    ) -> list[dict[str, float]]:
        """Metrics of `test_step` over the data, one dict per loader; arguments as `validate`."""
        dataloaders = loader_of("test", "dataloaders", dataloaders, batch_size, num_workers, datamodule)
        return self._evaluate("test", model, dataloaders, ckpt_path, verbose, datamodule, unknown)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: str | Path | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        **unknown: NoReturn,
    ) -> list[Any]:
        """What `predict_step` returned for each batch, those of all ranks; with several loaders a list for each.

        Arguments as `validate`, and one more.

        Args:
            return_predictions: False keeps nothing; for a BasePredictionWriter, which does.
        """
        dataloaders = loader_of("predict", "dataloaders", dataloaders, batch_size, num_workers, datamodule)
        outputs = self._evaluate(
            "predict", model, dataloaders, ckpt_path, False, datamodule, unknown, keep_outputs=return_predictions
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def stop(self, reason: str = "stop() was called", *, for_good: bool = True) -> None:
        """Ask the fit to end at the next save point at which `min_epochs` and `min_steps` are reached.

        The run is then over: started again it says so, unless `fit(override=("stop",))` goes on. With `for_good=False`
        that is left to the caller, who is to decide anew from state of its own.
        """
        self._fit.stopping.request(reason, for_good=for_good)

    def skip_optimizer_step(self) -> None:
        """Call it in on_before_optimizer_step: the window's gradients are dropped and the optimizer does not move.

        Counters and schedules go on as after any step, as they do where a gradient scaler skips one.
        """
        assert self._fit.optimization is not None, "there is an optimizer only while fit runs"
        self._fit.optimization.skip_step()

    def roll_back(self) -> Entry:
        """Put back weights, optimizers and loss scale of this run's newest healthy checkpoint, which is returned.

        Counters, schedules, data and random numbers go on, so the batches in between are passed over and the one that
        did the damage does not come again. Every hook `on_load_checkpoint` is called. All ranks must call it.

        Raises:
            CheckpointNotFoundError: there is no healthy checkpoint.
        """
        return fit_state.roll_back(self._fit)

    def train_batches(self) -> Iterator[Any]:
        """One more pass over the data of this epoch, or the last one; the run's position stays where it is."""
        assert self._fit.data is not None, "there is training data only while fit runs"
        return self._fit.data.one_more_pass()

    def add_param_group(
        self,
        parameters: Iterable[Any],
        *,
        optimizer_index: int = 0,
        learning_rate: float = 1.0,
        weight_decay: float | None = None,
    ) -> None:
        """Let an optimizer train these parameters too, at `learning_rate` times its own rate, after a resume as well.

        Args:
            parameters: of the module.
            optimizer_index: which optimizer, in the order of `configure_optimizers`.
            learning_rate: a factor of the optimizer's rate.
            weight_decay: of these parameters; None: the optimizer's.

        Raises:
            ConfigurationError: it trains one of them already; weight_decay for an optimizer without parameter groups.
        """
        assert self._fit.optimization is not None, "there is an optimizer only while fit runs"
        self._fit.optimization.add_param_group(
            parameters, optimizer_index=optimizer_index, learning_rate=learning_rate, weight_decay=weight_decay
        )

    def save_checkpoint(self, tag: str, weights_only: bool = False, *, replace: bool = False) -> Path | None:
        """Keep the present state under a name of your own, for good; resume from it with `ckpt_path=tag`.

        During fit it is taken at the next save point, and None is returned; after fit at once, and its directory is
        returned. Under fast_dev_run nothing is written. A save point that writes everything anyway has it in full, with
        `weights_only` too. With `replace` the tag moves here from a checkpoint that has it, which is deleted where
        nothing else keeps it. All ranks must call it, and all get the same path or error.

        Raises:
            ConfigurationError: the tag cannot be a file's name, is one that the run uses itself, or is another step's.
            CheckpointError: there is no run directory. After fit RunLockedError: another process goes on with the run;
            CheckpointSaveError: writing failed (with on_save_error="warn" that is told, and None is returned).
        """
        fit = self._fit
        if self.fast_dev_run:
            check_tag(tag)
            self.print(f"fast_dev_run: the checkpoint {tag!r} is not written")
            return None
        if fit.run.path is None or fit.saver is None:
            raise CheckpointError("save_checkpoint needs a run directory: call it in or after fit")
        return fit.saver.keep(tag, weights_only=weights_only, replace=replace, at_once=fit not in self._running)

    def load_weights_of(self, entry: Entry) -> None:
        """Put a checkpoint's weights into the module; nothing else of it."""
        self.progress.begin_step()  # what a mark remembers of the weights is over
        load_weights_at(self.model, entry.path)

    def export(
        self,
        path: str | Path,
        format: Literal["inference", "onnx", "safetensors", "pdparams"] | None = None,
        checkpoint: str | Path | None = "best",
        input_spec: Any = None,
        *,
        model: Module | None = None,
        batch: Any = None,
        weights: str | None = None,
        tolerance: float = 1e-4,
        opset_version: int = 13,
        dry_run: bool = False,
        **unknown: NoReturn,
    ) -> Exported:
        """Write `forward` as files for other programs, tried in another process and compared with the module.

            trainer.export("out/model")  # out/model.json and out/model.pdiparams; with Paddle 2 .pdmodel
            trainer.export("out/model.onnx", checkpoint="last")

        Args:
            path: the files' name without suffix, or with the format's own; directories above it are made.
            format: "inference" for `paddle.inference`, "onnx", or the weights alone: "safetensors", "pdparams". By
                default that of the path's suffix, and "inference" where it has none.
            checkpoint: whose weights: "best" (the newest where nothing is monitored), "last", a tag, a path, or None
                for those that the module has.
            input_spec: an InputSpec or an example Tensor or array for each argument of forward, nested as they are; by
                default the first call of forward in the run tells, with the batch's axis free.
            model: the module, by default the one that this trainer has.
            batch: a batch that predict_step takes, whose call of forward tells the input.
            weights: "model", "ema", "swa": the checkpoint's file; by default the averages where evaluation takes them.
            tolerance: how far an output may be from eager, in parts of its largest number or of 1, whichever is more.
            opset_version: of ONNX, raised where an operator needs a newer one.
            dry_run: make and compare everything, and leave no file.

        The module, its modes and buffers and all random numbers are as before. Rank 0 writes; all ranks must call it.

        Raises:
            ExportError: it cannot be traced, which names the line; the runtime refuses it; it computes something else.
                What was at `path` before is there.
            ConfigurationError: an argument, a package that is missing, or an input of which nothing is known.
            CheckpointError: there is no such checkpoint.
        """
        from .export.exporting import Wanted, averages_of, export_module
        from .export.files import format_of

        refuse_unknown(self.export, unknown)
        wanted = Wanted(format or format_of(path), input_spec, batch, weights, tolerance, opset_version)
        module = module_of("export", model, self.model)
        entry = None
        if checkpoint is not None:
            monitors = any(one.monitor for one in self.checkpoint_callbacks)
            entry = checkpoint_to_export(checkpoint, self._fit, self.callbacks, self.print, monitors=monitors)
        averages = averages_of(self.callbacks)
        keep = not (dry_run or self.fast_dev_run)
        exported = self.ranks.on_rank_zero(lambda: export_module(module, path, wanted, entry, averages, keep=keep))
        if not dry_run:
            self.print(exported if keep else f"fast_dev_run: {path} was tried and is not written")
        return exported

    def record(self, name: str, value: float) -> None:
        """Put a number into callback_metrics and this epoch's history record, without a logger."""
        self._fit.book.record(name, value)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send numbers to every logger, at `global_step` unless told otherwise, with the epoch beside them."""
        self._fit.book.log_metrics(metrics, step)

    # -- an evaluation of its own ------------------------------------------------------------------------------------
    def _evaluate(
        self,
        stage: EvaluationStage,
        model: Module | None,
        dataloaders: Any,
        ckpt_path: str | Path | None,
        verbose: bool,
        datamodule: DataModule | None,
        unknown: Mapping[str, Any],
        keep_outputs: bool = False,
    ) -> list[Any]:
        stop_if_imported()
        refuse_unknown(getattr(self, stage), unknown)
        if isinstance(dataloaders, DataModule):
            dataloaders, datamodule = None, dataloaders
        refuse_both(datamodule, dataloaders)
        module = module_of(stage, model, self.model)
        is_in_a_run = module.is_in_a_run  # another Trainer's perhaps
        is_nested = self.is_running or is_in_a_run
        refuse_other_weights_in_fit(stage, ckpt_path, is_in_a_run=is_in_a_run)
        if not self._running:
            self._evaluated = {}
            if model is None and ckpt_path is None and self._fit.subject is not None:
                tell_of_weights(self._fit.run, self.global_step, self.print)
        evaluation = Evaluation(stage, LogTarget(), MetricCollector(), self._take, keep_outputs=keep_outputs)
        with self._entered(evaluation) as entered:
            if is_nested:
                evaluation.collector.keep_apart_from(self._fit.book.train.series)
                entered.enter_context(isolated_random_states())  # training goes on as if there had been none
            try:
                subject = self._begin(evaluation, stage, module, datamodule, entered, is_in_a_run=is_in_a_run)
                if not is_nested:
                    let_log(evaluation, self._fit.run, self._fit.book, entered)
                if ckpt_path is not None:
                    take_checkpoint(evaluation, ckpt_path, self._fit.run, self.print, self._fit.subject is not None)
                sources = sources_of(stage, dataloaders, subject)
                for source in sources:
                    entered.callback(source.close)
                if not is_in_a_run:
                    self.precision.prepare(module, [] if is_nested else self.optimizers)
                if evaluation.ckpt_path is not None:
                    load_weights_at(module, evaluation.ckpt_path, strict=module.strict_loading)
                results = evaluation.run(subject, sources)
                if verbose and any(results) and stage != "predict":
                    self.print(results_table(stage, results))
                return results
            except BaseException as error:
                leaves = told_of(evaluation, error, self.device.name)
                if leaves is error:
                    raise
                raise leaves from error
            finally:
                tear_down_evaluation(evaluation, self._fit.book if len(self._running) == 1 else None)

    def _take(self, collector: MetricCollector, is_final: bool) -> dict[str, float]:
        """What an evaluation apart has logged: no number of the fit's, and within one no line in its logs either."""
        values = self._fit.book.values_of(collector)
        self._evaluated.update(values)
        if is_final and len(self._running) == 1:
            self._fit.book.send_apart(collector)
        return values

    # -- before any of them ------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _entered(self, run: Fit | Evaluation) -> Iterator[contextlib.ExitStack]:
        """Within, `run` is what this Trainer does; a run that it interrupts finds everything as it was."""
        parts = ("model", "datamodule", "callbacks", "_module_callbacks", "_configured_for", "_merged")
        before = {part: getattr(self, part) for part in parts}
        evaluated = dict(self._evaluated)
        self._running.append(run)
        try:
            with contextlib.ExitStack() as entered:
                yield entered
        finally:
            self._running.pop()
            if self._running:
                vars(self).update(before)
                self._evaluated = evaluated
            else:
                self._last = run

    def _begin(
        self,
        run: Fit | Evaluation,
        stage: Literal["fit", "validate", "test", "predict"],
        model: Module,
        datamodule: DataModule | None,
        entered: contextlib.ExitStack,
        *,
        is_in_a_run: bool = False,
    ) -> Subject:
        """Check and attach the module, find the hooks, set everything up but what a run around this one has set up.

        `is_in_a_run` says that the module takes part in one, of this Trainer or of another.
        """
        refuse_unfit_for(stage, model, datamodule)
        is_nested = len(self._running) > 1  # in a run of this Trainer, which has its callbacks set up
        self.model = model
        if stage == "fit" or datamodule is not None:
            self.datamodule = datamodule
        entered.callback(model.attach_run(self, run))
        self.device.activate()
        if self.device.is_accelerator:
            move_to(model, self.device.name)
        if not is_in_a_run:
            self._merge_callbacks(model, stage)
        for callback in self.callbacks:
            entered.callback(callback.attach_module(model))
        hooks = life = Hooks(self.callbacks, model, (self, model))
        if is_nested or is_in_a_run:
            life = Hooks(() if is_nested else self.callbacks, None if is_in_a_run else model, (self, model))
        seed = self.seed if self.seed is not None else 0
        loading = Loading(model, self.datamodule, self, self.ranks, self.device, self.precision, seed)
        own_datamodule = datamodule if is_nested else self.datamodule
        subject = Subject(model, self.datamodule, self.callbacks, hooks, loading, life, not is_in_a_run, own_datamodule)
        run.begin(subject)
        subject.set_up(stage, self.ranks, self.strategy, self)
        if not is_in_a_run:
            entered.callback(exchange_forwards(model, self, self.print))
        entered.callback(model.forward_inputs.watch(model, afresh=stage == "fit"))
        return subject
