"""An evaluation apart: what trainer.validate, test and predict do around one, outside a fit or within it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, CheckpointNotFoundError, ConfigurationError
from ..machine.precision import is_out_of_memory
from ..module import is_written
from ..reporting.terminal import from_here
from ..run.resolve import copies_of, look
from ..run.weights import MODEL, state_at
from .ending import out_of_memory
from .loading import METHODS
from .subject import the_module

if TYPE_CHECKING:
    from ..data.source import BatchSource
    from ..module import Module
    from ..reporting.book import Book
    from ..run.identity import Run
    from .evaluation import Evaluation, Stage
    from .fit import Fit
    from .subject import Subject


def module_of(stage: str, model: Any, fitted: Module | None) -> Module:
    """The module that was given, or else the one that the trainer has fitted."""
    if model is None and fitted is None:
        raise ConfigurationError(f"trainer.{stage}() needs a model: this trainer has not fitted one yet")
    return the_module(stage, fitted if model is None else model)


def refuse_other_weights_in_fit(stage: str, ckpt_path: str | Path | None, *, is_in_a_run: bool) -> None:
    """Raise ConfigurationError where a checkpoint's weights would replace those that a running fit trains."""
    if is_in_a_run and ckpt_path is not None:
        raise ConfigurationError(
            f"trainer.{stage}(ckpt_path=...) would replace the weights that the running fit trains. "
            "Evaluate another module, made for it."
        )


def sources_of(stage: Stage, dataloaders: Any, subject: Subject) -> list[BatchSource]:
    """The data that was given, or that the datamodule or module gives."""
    sources = subject.loading.sources(stage, dataloaders)
    word = {"validate": "validation"}.get(stage, stage)
    if not sources:
        if subject.loading.settings.limits[stage] == 0:
            limit = f"limit_{'val' if stage == 'validate' else stage}_batches=0"
            raise ConfigurationError(f"Trainer({limit}) leaves trainer.{stage}() no data")
        raise ConfigurationError(
            f"trainer.{stage}() needs data: pass dataloaders=, a datamodule, or write {METHODS[stage]} in the module"
        )
    step = getattr(subject.module, f"{word}_step")
    if step is None or (stage != "predict" and not is_written(subject.module, f"{word}_step")):
        raise ConfigurationError(f"trainer.{stage}() needs {type(subject.module).__name__}.{word}_step")
    return sources


def checkpoint_of(
    stage: str,
    ckpt_path: str | Path,
    run: Run,
    print_: Callable[..., None],
    has_fitted: bool,
    argument: str = "ckpt_path",
    callbacks: Sequence[object] = (),
) -> Path:
    """The checkpoint that `ckpt_path` means; "best" and "last" mean those of `run`, once its trainer has fitted.

    Where this machine has none, those of `callbacks` are asked that copy elsewhere. Every rank calls it.
    """
    asked = f"trainer.{stage}({argument}={str(ckpt_path)!r})"
    if str(ckpt_path) in ("best", "last", "latest") and has_fitted and not run.holds_checkpoints:
        leave = "Pass checkpoint=None" if argument == "checkpoint" else f"Leave {argument} out"
        raise CheckpointError(
            f"{asked}: the fit of this trainer saved nothing, so it has no such checkpoint "
            "(enable_checkpointing=False, fast_dev_run, or none was due). "
            f"{leave} for the weights that the module has, or give a path."
        )
    settings, name = run.settings, run.name
    remotes = copies_of(callbacks) if settings.enable_checkpointing and not settings.fast_dev_run else []
    try:
        resolution = run.ranks.on_rank_zero(  # each rank could find another, while a save is under way
            lambda: look(ckpt_path, remotes, default_root_dir=settings.default_root_dir, run_name=name)
        )
    except (ConfigurationError, CheckpointNotFoundError) as error:
        raise type(error)(str(error).replace("ckpt_path=", f"{argument}=")) from None
    if resolution.entry is None:
        said = resolution.message.removesuffix(": fresh run")
        raise CheckpointNotFoundError(f"{asked}: {said}")
    for finding in resolution.findings:
        print_(f"WARNING: {finding}")
    if argument == "ckpt_path":
        print_(f"Weights of {from_here(resolution.entry.path)}{resolution.came_from}")
    return resolution.entry.path


def checkpoint_to_export(
    checkpoint: str | Path, fit: Fit, callbacks: Sequence[object], print_: Callable[..., None], *, monitors: bool
) -> Path:
    """The checkpoint whose weights are exported; the newest in place of the best, where nothing is monitored."""
    has_fitted = fit.subject is not None
    if checkpoint == "best" and has_fitted and fit.run.holds_checkpoints and not monitors:
        print_("export: nothing is monitored, so the newest checkpoint is taken")
        checkpoint = "last"
    return checkpoint_of("export", checkpoint, fit.run, print_, has_fitted, "checkpoint", callbacks)


def tell_of_weights(run: Run, step: int, print_: Callable[..., None]) -> None:
    """Say what is evaluated where neither a model nor a checkpoint was given."""
    pins = run.store.pins() if run.store is not None else {}
    best = "best" if "best" in pins else min((pin for pin in pins if pin.startswith("best_")), default=None)
    other = f"; ckpt_path={best!r} takes the best checkpoint's" if best is not None else ""
    print_(f"Weights as the fit has left them, at step {step}{other}")


def let_log(evaluation: Evaluation, run: Run, book: Book, stack: contextlib.ExitStack) -> None:
    """Before any fit: give the loggers that were asked for a directory, until the stack is unwound.

    Every rank calls it. Those that Trainer adds by itself write with a fit alone: looking at a model leaves no trace.
    """
    evaluation.target.send_media_to(book.media.apart())
    if not (run.settings.logs_evaluations and book.loggers and run.path is None) or evaluation.stage == "predict":
        return
    assert evaluation.subject is not None
    if run.open_logs(book, evaluation.subject.module.hparams_to_log):
        stack.callback(run.close_logs)
    else:
        name = run.settings.run_name
        book.print(f"not logged: {name} is a run that was trained, whose logs are the training's. Leave run_name out.")


def take_checkpoint(
    evaluation: Evaluation, ckpt_path: str | Path, run: Run, print_: Callable[..., None], has_fitted: bool
) -> None:
    """Let an evaluation have the checkpoint that `ckpt_path` means; its weights come once the data are there."""
    assert evaluation.subject is not None
    callbacks = evaluation.subject.callbacks
    path = checkpoint_of(evaluation.stage, ckpt_path, run, print_, has_fitted, callbacks=callbacks)
    evaluation.use_weights_of(path)
    averages = give_back(evaluation.subject, path)
    used = {getattr(callback, "file", None) for callback in callbacks}
    for file in averages:
        if file not in used:
            print_(
                f"WARNING: these are the live weights; {path} has averaged ones too, in {file}. To evaluate with them "
                "give this Trainer the callback that averaged them (ExponentialMovingAverage), or load that file."
            )


def give_back(subject: Subject, path: Path) -> list[str]:
    """What module and datamodule keep of their own in a checkpoint, before they are asked for loaders or weights.

    Returns the names of files that hold all weights once more, which are averages.
    """
    saved = state_at(path)
    if saved is None:
        return []
    if subject.own_datamodule is not None and saved.get("datamodule"):
        subject.own_datamodule.load_state_dict(saved["datamodule"])
    subject.module.on_load_checkpoint(saved)
    files = saved["files"]
    others = [file for file in files if file.endswith(".pdparams") and file != MODEL]
    return [file for file in others if MODEL in files and files[file].keys() == files[MODEL].keys()]


def told_of(evaluation: Evaluation, error: BaseException, device: str) -> BaseException:
    """Tell the hooks of an exception, and return what leaves the evaluation."""
    if is_out_of_memory(error):
        error = out_of_memory(device, "an evaluation", evaluation.batch, prefetches=False)
    if evaluation.subject is not None:
        evaluation.subject.loading.ranks.note(error)
        evaluation.subject.hooks.tell_of_exception(error)
    return error


def tear_down_evaluation(evaluation: Evaluation, book: Book | None) -> None:
    """Hooks and datamodule first, then the logs of `book`; None within a fit, which goes on with them.

    A teardown's own error is raised where no other is on its way.
    """
    on_its_way = sys.exc_info()[1]
    try:
        with contextlib.ExitStack() as stack:
            for logger in book.open_loggers() if book is not None else ():
                stack.callback(book.finalize, logger, "finished")  # type: ignore[union-attr]
            if evaluation.subject is not None:
                evaluation.subject.end_with(stack, evaluation.stage)
    except Exception as error:
        if on_its_way is None:
            raise
        warnings.warn(f"while ending after the {type(on_its_way).__name__} above: {error}", stacklevel=2)
