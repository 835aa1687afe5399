"""The end of a fit: the last save, errors told, everything torn down."""

from __future__ import annotations

import contextlib
import sys
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import DeviceOutOfMemoryError
from ..machine.precision import is_out_of_memory
from ..machine.signals import in_notebook
from ..reporting.summary import describe_batch

if TYPE_CHECKING:
    from .fit import Fit
    from .subject import Subject


def finish(fit: Fit) -> None:
    """After the loop: save where that is due, and call the last hooks where training is over."""
    progress, stopping, saver = fit.progress, fit.stopping, fit.saver
    assert saver is not None
    saver.await_save()  # what follows depends on whether the last save is there
    is_over = stopping.training_is_over
    if not is_over:
        fit.hooks.tell_of_exception(stopping.as_exception())
    is_saved = saver.is_saved and not (is_over and saver.lacks_its_own)
    if (progress.epoch_is_open or not is_over) and not is_saved:
        saver.save_stopped(as_of_mark=progress.validation_is_due)
    saver.await_save()
    if not is_over:
        return
    limit = f"max_steps={fit.settings.max_steps} reached" if stopping.steps_are_done else None
    limit = limit if stopping.reason is None else None
    fit.book.log_steps()
    if fit.schedules is not None:
        fit.schedules.warn_of_missing()
    if progress.epoch_is_open:
        end_open_epoch(fit)
    if limit is not None:
        stopping.request(limit, for_good=False)
    fit.call_apart("on_train_end")
    fit.print(_how_far(fit))
    fit.enter("ending")
    fit.target.expect_steps(False)
    fit.call_apart("on_fit_end")
    saver.take_requested()
    saver.await_save()
    fit.book.log_summary()


def _how_far(fit: Fit) -> str:
    """Why the fit has ended, and where."""
    progress, limit = fit.progress, fit.settings.max_epochs
    seconds = timedelta(seconds=round(fit.stopping.seconds))
    if fit.stopping.reason is not None:
        return f"Stopped at epoch {progress.current_epoch}, step {progress.global_step}: {fit.stopping.reason}"
    of = f"/{limit}" if limit is not None and limit > 0 else ""
    return f"Finished {progress.current_epoch}{of} epochs, {progress.global_step} steps, in {seconds}"


def end_open_epoch(fit: Fit) -> None:
    """The hooks and values of an epoch that is left early, as far as it came; the counters stay within it.

    A run that goes on does so from what was saved before them.
    """
    book = fit.book
    so_far = book.train.copy()  # over all ranks it is another, and what is saved from here on must be this rank's
    book.publish_epoch()
    fit.tell_of_a_bad_loss()
    fit.hooks.call("on_train_epoch_end")
    book.publish_epoch()
    fit.hooks.end_epoch()
    book.close_epoch()
    book.train.become(so_far)


def told(fit: Fit, error: BaseException) -> BaseException:
    """Tell everybody of an exception, save if asked to, and return what leaves fit."""
    fit.train_log.failed(error)
    fit.ranks.note(error)
    if is_out_of_memory(error):
        where = f"epoch {fit.progress.current_epoch}, batch {fit.progress.batches_in_epoch}"
        prefetch = fit.data.train.prefetch if fit.data is not None else None
        error = out_of_memory(fit.device.name, where, fit.batch, prefetches=bool(prefetch and prefetch.is_on))
        fit.train_log.write(str(error))
    if fit.subject is not None:
        fit.hooks.tell_of_exception(error)
    if fit.saver is not None:
        fit.saver.save_after_error()
    return error


def out_of_memory(device: str, where: str, batch: object, *, prefetches: bool) -> DeviceOutOfMemoryError:
    ahead = "prefetch_to_device=False, which has one batch less on the device, " if prefetches else ""
    return DeviceOutOfMemoryError(
        f"{device} is out of memory in {where}: {describe_batch(batch)}. What helps: {ahead}a smaller batch with "
        "accumulate_grad_batches, precision='16-mixed' or 'bf16-mixed', a smaller model or input."
    )


def tear_down(fit: Fit, outcome: str) -> None:
    """End everything, whatever happened; a teardown's own error is raised where no other is on its way."""
    on_its_way = sys.exc_info()[1]
    try:
        with contextlib.ExitStack() as stack:
            if fit.run.directory is not None:
                ended = fit.stopping.how_it_ended(outcome, on_its_way)
                stack.callback(fit.run.directory.close, ended)
                stack.callback(fit.journal.end, ended)
                if fit.run.store is not None:
                    stack.callback(fit.run.store.close)
            if fit.data is not None:
                stack.callback(fit.data.close)
            if fit.subject is not None:
                tear_down_subject(stack, fit.subject, fit, outcome)
            fit.let_go()
    except Exception as error:
        if on_its_way is None:
            raise
        warnings.warn(f"while ending after the {type(on_its_way).__name__} above: {error}", stacklevel=2)


def tear_down_subject(stack: contextlib.ExitStack, subject: Subject, fit: Fit, outcome: str) -> None:
    """In the end the hooks come first, then the datamodule, then the logs and the profile."""
    if fit.settings.profiler is not None:
        stack.callback(fit.settings.profiler.finish, fit)
    is_over = outcome == "finished" and fit.stopping.training_is_over
    for logger in fit.book.open_loggers():
        stack.callback(fit.book.finalize, logger, "finished" if is_over else "failed")
    subject.end_with(stack, "fit")


def leave_as_asked(fit: Fit) -> None:
    """After a signal: the process ends in the way that says why, except in a notebook."""
    received = fit.stopping.signals.received
    if received is None:
        return
    fit.note_interruption()
    progress = fit.progress
    where = f"{received.name}: stopped at epoch {progress.current_epoch}, step {progress.global_step}"
    newest = fit.run.where_it_stands()
    if fit.saver is not None and fit.saver.is_saved:
        fit.print(f"{where}, saved. Run the same command with ckpt_path='last' to go on.")
    elif newest is not None:
        fit.print(f"{where}; this was not saved. ckpt_path='last' goes on from {newest}.")
    else:
        fit.print(f"{where}; nothing was saved.")
    if not in_notebook():
        raise fit.stopping.as_exception()
