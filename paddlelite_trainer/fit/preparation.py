"""Preparation: everything before the first batch, in eleven steps whose order is law."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..callback import Callback, overridden
from ..errors import ConfigurationError
from ..layers import synchronise_batch_norm
from ..machine.device import use_cpu_threads
from ..machine.engine import WaitForRanks
from ..machine.rng import draw_seed, isolated_random_states, seed_everything
from ..module import Module, is_written
from ..optimizers import normalise
from ..progress import Progress
from ..reporting.terminal import facts
from ..run.resolve import copies_of, resolve
from ..run.shared import refuse_unshared
from . import state
from .ending import end_open_epoch
from .logs import open_logs
from .loop import validate
from .mark import Mark
from .optimization import Optimization
from .rank_state import restore_random_states
from .saved import Saved, agreed_seed, open_saved
from .saving import Saver, ranks_talk_after
from .schedules import Schedules, follow_steps
from .stopping import StopRequests
from .training_data import TrainingData
from .unfit_optimizers import refuse_number, refuse_unfit

if TYPE_CHECKING:
    from ..machine.engine import Engine
    from ..run.resolve import Resolution
    from .fit import Fit
    from .starting import InitFrom, Start


@dataclass(frozen=True)
class Request:
    """What `Trainer.fit` was asked for, beside the module."""

    train: Any
    val: Any
    ckpt_path: str | Path | None
    override: Sequence[str]
    init_from: str | Path | InitFrom | None
    fitted_before: bool


def prepare(fit: Fit, request: Request) -> bool:
    """Everything before the first batch; False where the checkpoint's run is over already."""
    refuse_endless(fit)
    override = state.checked_override(request.override)
    if fit.settings.fast_dev_run:  # of a finished run too it tries a batch
        override = (*override, "callbacks", "data", "stop")
    # 1. Which checkpoint: it decides on the seed and the threads of all that follows.
    resolution = _resolve(fit, request)
    saved = None
    if resolution is not None and resolution.entry is not None:
        saved = open_saved(resolution.entry, resolution.opened)
        _refuse_the_end_of_another(fit, request, resolution, saved, override)
        fit.run.goes_on_from(resolution.entry.path)
    # 2. Threads and seed, before anything computes or draws.
    _settle_threads(fit, saved)
    _settle_seed(fit, saved)
    # 3. What users keep of their own, before they are asked for what they build from it.
    notes = state.give_back(fit, saved, override) if saved is not None else []
    # 4. Data, before optimizers: configure_optimizers may ask how many steps there will be.
    _open_data(fit, request)
    # 5. Optimizers and schedules, before anything is restored into them.
    _configure_optimizers(fit)
    fit.use_verbs(_training_step(fit), partial(validate, fit))
    # 6. What a fresh run starts from, before there is a directory: what does not fit leaves none.
    start = _start(fit, request) if saved is None and request.init_from is not None else None
    # 7. The directory with its lock and store.
    fit.run.open(resolution, has_loggers=bool(fit.book.loggers))
    if fit.run.directory is not None:  # on rank 0, where anything is written
        fit.train_log.open(fit.run.directory.path)
    _make_saver(fit)
    # 8. The saved state, all at once; then the logs, which lose what came after it.
    notes += fit.run.findings
    notes += _restore(fit, request, resolution, saved, override)
    open_logs(fit, saved, _hyper_parameters_to_log(fit))
    notes += start.save_best(fit) if start is not None else []
    if fit.run.directory is not None:
        fit.journal.begin(fit.run.directory.path, fit.run.ckpt_path, **_told_of(fit))
    if saved is None and request.fitted_before:
        notes.append("a fresh fit: counters, optimizers and schedules begin anew, on the weights that the module has")
    announce_fit(fit, notes)
    fit.book.go_on_logging()
    # 9. Perhaps there is nothing to do.
    goes_on = saved is not None or fit.progress.current_epoch > 0 or fit.progress.global_step > 0
    owes_save = fit.progress.epoch_is_open and fit.saver is not None and fit.saver.lacks_its_own
    over = fit.stopping.already_over if goes_on and not owes_save else None
    if over is not None:
        _tell_that_it_is_over(fit, over)
        return False
    # 10. The hooks that begin a fit, around the sanity check.
    _begin_training(fit, is_fresh=saved is None)
    # 11. Random numbers last, as hooks may have drawn some again.
    assert fit.saver is not None
    if saved is not None:
        restore_random_states(fit, saved)
    elif goes_on and fit.settings.enable_checkpointing and fit.hooks.savers:
        # What was brought along can be gone on from by itself, as of now.
        fit.saver.take({"latest": []}, weights_only=False)
    return True


def _tell_that_it_is_over(fit: Fit, why: str) -> None:
    """With what came after the last save, which opening the logs has cut off."""
    fit.print(why)
    if fit.progress.epoch_is_open:  # it was left early
        fit.target.collect(fit.book.train, on_step=True)
        end_open_epoch(fit)
    fit.hooks.call("on_already_over")
    fit.book.log_summary()


def _hyper_parameters_to_log(fit: Fit) -> dict[str, Any]:
    """The module's and the datamodule's; a name of both with other values twice, once with its class."""
    assert fit.subject is not None
    logged, datamodule = dict(fit.module.hparams_to_log), fit.subject.datamodule
    for name, value in datamodule.hparams_to_log.items() if datamodule is not None else ():
        clashes = name in logged and repr(logged[name]) != repr(value)
        logged[f"{type(datamodule).__name__}.{name}" if clashes else name] = value
    return logged


def _told_of(fit: Fit) -> dict[str, Any]:
    """What the journal keeps of a fit: where it runs, what it was asked for."""
    assert fit.subject is not None and fit.optimization is not None and fit.schedules is not None
    place = {"platform": platform.platform(), "cores": os.cpu_count(), "cpu_threads": fit.cpu_threads}
    parts = {
        "callbacks": [callback.state_key for callback in fit.subject.callbacks],
        "optimizers": [type(optimizer).__name__ for optimizer in fit.optimization.optimizers],
        "schedules": [config.describe() for config in fit.schedules.configs],
    }
    return {
        "environment": {**state.environment(fit), **place},
        "trainer": {**fit.settings.asked_for, "seed": fit.seed, **parts},
        "hyper_parameters": _hyper_parameters_to_log(fit),
    }


def refuse_endless(fit: Fit) -> None:
    settings = fit.settings
    if settings.max_epochs is None and settings.max_steps < 0 and settings.max_seconds is None:
        raise ConfigurationError(
            "when should fit end? Pass max_epochs, max_steps or max_time to Trainer; "
            "max_epochs=-1 trains until it is stopped."
        )


def _resolve(fit: Fit, request: Request) -> Resolution | None:
    assert fit.subject is not None
    settings = fit.settings
    remotes = copies_of(fit.subject.callbacks) if settings.enable_checkpointing else []
    if request.ckpt_path is None and not remotes:
        return None
    resolution = fit.ranks.on_rank_zero(
        lambda: resolve(
            request.ckpt_path, remotes, default_root_dir=settings.default_root_dir, run_name=settings.run_name
        )
    )
    if resolution.entry is not None:
        refuse_unshared(fit.ranks, resolution.entry.path, "goes on from")
    return resolution


def _refuse_the_end_of_another(
    fit: Fit, request: Request, resolution: Resolution, saved: Saved, override: Sequence[str]
) -> None:
    """Raise ConfigurationError where "last" means what another Trainer of this process has trained to its end.

    Several runs of one process, folds or a sweep, would all be the first one.
    """
    settings = fit.settings
    if settings.run_name is not None or settings.fast_dev_run or str(request.ckpt_path) not in ("last", "latest"):
        return
    if resolution.run_dir is None or not fit.run.is_another_trainer_s(resolution.run_dir):
        return
    ends = StopRequests(settings, Progress(**saved.tree["progress"]), fit.ranks)
    if "stop" not in override:
        ends.load_state_dict(saved.tree)
    if ends.already_over is not None:
        raise ConfigurationError(
            f"ckpt_path='last' means {resolution.run_dir}, which another Trainer of this process has trained to its "
            "end: this one would train nothing and have that one's weights. Where it is to be a run of its own, name "
            f"each: Trainer(run_name='fold_1'). To go on with that one: ckpt_path={str(resolution.run_dir)!r}."
        )


def _settle_threads(fit: Fit, saved: Saved | None) -> None:
    if not fit.device.is_accelerator:
        threads = saved.tree["run"].get("cpu_threads") if saved is not None else None
        size = sum(int(parameter.size) for parameter in fit.module.parameters())
        fit.use_threads(use_cpu_threads(fit.settings.cpu_threads, threads, parameters=size))


def _settle_seed(fit: Fit, saved: Saved | None) -> None:
    given = fit.settings.given_seed
    if saved is not None:
        fit.use_seed(agreed_seed(given, saved))
    elif given is None:
        fit.use_seed(fit.ranks.broadcast_object(draw_seed()))
    else:
        fit.use_seed(seed_everything(given, workers=True))


def _open_data(fit: Fit, request: Request) -> None:
    data = TrainingData(fit.loading, fit.progress, request.train, request.val)
    fit.use_data(data)
    data.open_validation()
    _tell_what_has_no_effect(fit, request.train)
    if data.val and not is_written(fit.module, "validation_step"):
        fit.print("Validation data was given, and the module has no validation_step: no validation will run.")


def _tell_what_has_no_effect(fit: Fit, train: Any) -> None:
    assert fit.data is not None
    settings = fit.settings
    idle: dict[str, str] = {}
    if settings.reload_dataloaders_every_n_epochs and train is not None and not (fit.data.val and fit.data.val_every):
        idle[f"reload_dataloaders_every_n_epochs={settings.reload_dataloaders_every_n_epochs}"] = (
            "a loader was passed to fit, and it is train_dataloader of the module or datamodule that is called again"
        )
    if settings.prefetch_to_device is True and not (fit.data.train.prefetch and fit.data.train.prefetch.is_on):
        idle["prefetch_to_device=True"] = fit.loading.why_no_prefetch()
    for setting, why in idle.items():
        warnings.warn(f"Trainer({setting}) has no effect: {why}", stacklevel=2)


def _configure_optimizers(fit: Fit) -> None:
    module, data = fit.module, fit.data
    assert data is not None
    if fit.settings.strategy.sync_batchnorm and fit.ranks.world_size > 1:
        synchronise_batch_norm(module, fit.device.name)
    returned = module.configure_optimizers()
    optimizers, configs = normalise(returned, steps_schedulers=module.automatic_optimization)
    if returned is None and module.automatic_optimization:
        _tell_of_no_training(fit)
    else:
        refuse_number(module, optimizers)
    fit.precision.prepare(module, optimizers)
    if fit.ranks.world_size > 1:
        fit.hooks.add("on_before_backward", WaitForRanks(fit.ranks, partial(_ends_window, fit)).before_backward)
    optimization = Optimization(
        module,
        optimizers,
        fit.settings,
        fit.precision,
        fit.progress,
        fit.hooks,
        lambda: data.length,
        schedules_follow=follow_steps(module, configs),
    )
    refuse_unfit(optimization, fit.ranks.world_size)
    before_drop = fit.before_drop if fit.hooks.watch_lr_drops else None
    schedules = Schedules(module, configs, fit.progress, fit.ranks, lambda: fit.book.callback_metrics, before_drop)
    fit.use_optimization(optimization, schedules)


def _tell_of_no_training(fit: Fit) -> None:
    """Without an optimizer training_step runs, and nobody steps."""
    name, settings = type(fit.module).__name__, fit.settings
    if settings.max_epochs in (None, -1) and settings.max_seconds is None:
        raise ConfigurationError(
            f"{name}.configure_optimizers returned None, so no step is made and max_steps={settings.max_steps} is "
            "never reached: pass max_epochs or max_time, or return an optimizer"
        )
    warnings.warn(
        f"{name}.configure_optimizers returned None: nothing is trained, and training_step runs without backward. "
        "If that is not meant, return the optimizer.",
        stacklevel=2,
    )


def _training_step(fit: Fit) -> Callable[[Any, int], Any]:
    optimization = fit.optimization
    assert optimization is not None
    if optimization.needs_closure:
        return optimization.closure_step
    if fit.ranks.world_size == 1 or not (optimization.optimizers or not fit.module.automatic_optimization):
        return optimization.training_step
    with isolated_random_states():  # wrapping draws a number from python's generator
        engine = _engine(fit)
        fit.use_engine(engine)
        return engine.training_step(optimization.training_step)


def _engine(fit: Fit) -> Engine:
    """What moves gradients between the ranks, as the strategy asks."""
    strategy, optimization = fit.settings.strategy, fit.optimization
    assert optimization is not None
    names = optimization.parameter_names
    if strategy.stage == 0:
        from ..machine.data_parallel import DataParallel

        ends_window = partial(_ends_window, fit) if fit.module.automatic_optimization else None
        return DataParallel(fit.module, strategy, fit.ranks, names, ends_window)
    if not fit.module.automatic_optimization:
        raise ConfigurationError(
            f"strategy={strategy.name!r} cannot be with manual optimization: Paddle shards one optimizer, whose steps "
            "are the trainer's. Use strategy='ddp'"
        )
    from ..machine.sharding import ShardedState

    if fit.precision.scaler is not None:
        fit.precision.scaler.judge_over_ranks()

    if strategy.stage == 3:
        from ..machine.sharded_weights import ShardedWeights

        assert fit.subject is not None
        return ShardedWeights(fit.module, optimization.optimizers[0], strategy, names, fit.ranks, fit.subject.pieces)

    def window() -> tuple[bool, bool]:
        return fit.progress.batches_in_window == 0, _ends_window(fit)

    return ShardedState(fit.module, optimization.optimizers[0], strategy, names, fit.ranks, window)


def _ends_window(fit: Fit) -> bool:
    """Whether the optimizer steps after the batch at hand, and gradients are averaged over ranks before."""
    assert fit.optimization is not None and fit.data is not None
    return fit.progress.batches_in_window + 1 == fit.optimization.window or fit.data.train.is_last


def _start(fit: Fit, request: Request) -> Start:
    from .starting import start_from

    assert request.init_from is not None
    return start_from(fit, request.init_from)


def _make_saver(fit: Fit) -> None:
    assert fit.subject is not None
    fit.plain_tensors.watch(fit.module)
    saver = Saver(
        fit.settings,
        fit.progress,
        fit.ranks,
        fit.hooks,
        fit.stopping,
        fit.book,
        fit.run,
        ranks_talk_after(fit.settings, fit.subject.callbacks),
        partial(state.candidate, fit),
        partial(state.save, fit),
        partial(_mark_of, fit),
        fit.may_remember,
    )
    fit.use_saver(saver)


def _mark_of(fit: Fit, hooks: tuple[str, ...]) -> Mark:
    assert fit.subject is not None and fit.data is not None and fit.schedules is not None
    parts = (fit.progress, fit.book, fit.schedules, fit.plain_tensors)
    return Mark(hooks, fit.progress, parts, fit.module, fit.data.train.state_dict(), fit.subject.callbacks)


def _restore(
    fit: Fit,
    request: Request,
    resolution: Resolution | None,
    saved: Saved | None,
    override: Sequence[str],
) -> list[str]:
    """Notes on what was found, restored and moved away."""
    assert fit.saver is not None
    notes: list[str] = []
    if resolution is not None:
        notes += [f"WARNING: {finding}" for finding in resolution.findings]
        notes += [resolution.message] if request.ckpt_path is not None else []
    if saved is not None:
        notes += state.restore(fit, saved, override)
        if fit.settings.fast_dev_run:
            fit.progress.load_state_dict({})  # a rehearsal begins at nought, on the run's weights
        notes += _epoch_starts_not_called_again(fit)
        fit.saver.note_resumed(was_added=bool(saved.tree.get("added")))
        damaged, leaves = ((), False) if resolution is None else (resolution.damaged, resolution.leaves_a_branch)
        notes += fit.ranks.on_rank_zero(lambda: fit.run.set_aside_after(saved.entry, damaged, leaves))
    return notes


def _epoch_starts_not_called_again(fit: Fit) -> list[str]:
    """What a user has set in on_train_epoch_start is not set where a run goes on inside the epoch."""
    assert fit.subject is not None
    if not fit.progress.epoch_is_open:
        return []
    owners = [(callback, Callback) for callback in fit.subject.callbacks] + [(fit.module, Module)]
    names = []
    for owner, base in owners:
        start = overridden(owner, "on_train_epoch_start", base)
        if start is None or overridden(owner, "on_train_epoch_resume", base) is not None:
            continue
        if not (getattr(start, "__module__", None) or "").startswith("paddlelite_trainer."):
            names.append(f"{type(owner).__name__}.on_train_epoch_start")
    if not names:
        return []
    return [
        f"{', '.join(names)} is not called again, as the run goes on inside epoch {fit.progress.current_epoch}. "
        "What it sets on the data or the module (a curriculum, mosaic off) must be set in on_train_epoch_resume too; "
        "if there is nothing, write an empty one. A set_epoch of dataset, sampler and collate_fn is called for you."
    ]


def _begin_training(fit: Fit, *, is_fresh: bool) -> None:
    fit.hooks.call("on_fit_start")
    if not fit.module.training:  # evaluated by hand before; else each layer stays in the mode that the user has chosen
        fit.module.train()
    if is_fresh and fit.validates and fit.settings.num_sanity_val_steps:
        fit.rehearse()  # the resumed run's callbacks have had it, and remember it
    fit.stopping.start_clock()
    fit.enter("training")
    fit.call_apart("on_train_start", counts=is_fresh)  # what the resumed run has logged there it has


def announce_fit(fit: Fit, notes: Sequence[str]) -> None:
    """One block: where, on what, how precise, how large, what was restored, which schedulers step when."""
    if not fit.ranks.is_zero:
        return
    assert fit.schedules is not None
    count = sum(int(parameter.size) for parameter in fit.module.parameters())
    trained = sum(int(parameter.size) for parameter in fit.module.parameters() if not parameter.stop_gradient)
    precision = fit.precision
    processes = f", {fit.ranks.world_size} processes" if fit.ranks.world_size > 1 else ""
    lines = [
        ("run", str(fit.run.path) if fit.run.path is not None else "nothing is written"),
        ("device", fit.device.name + processes),
        ("precision", precision.effective + (f" ({precision.note})" if precision.note else "")),
        ("parameters", f"{count:,}" + (f", {trained:,} of them trained" if trained != count else "")),
        ("seed", str(fit.seed)),
        *(("schedule", config.describe()) for config in fit.schedules.configs),
        *(("note", note) for note in notes),
    ]
    fit.print(facts(lines))
