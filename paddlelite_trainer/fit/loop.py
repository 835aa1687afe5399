"""The loop: epochs, batches, save points, readable top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError, DataError
from ..machine.rng import derive_seed, isolated_random_states, paddle_cpu_generator_can_be_saved
from ..machine.signals import WaitingEnded
from ..machine.trees import detached
from .evaluation import EvaluationAbandoned
from .mark import BATCH, EPOCH_END

if TYPE_CHECKING:
    from .fit import Fit

_TENSOR = paddle.Tensor
_AT_EPOCH_END = -1  # a validation period that is known only when the last batch has come
_BY_TIME = -2


def train(fit: Fit) -> None:
    """Two frames from Trainer.fit to the user's training_step: this one and fit's own.

    DO NOT CHANGE THE ORDER: a resumed run repeats it. Parts are bound to names once, and conditions are written out,
    since every call here is paid for with each batch.
    """
    progress, stopping, book, hooks = fit.progress, fit.stopping, fit.book, fit.hooks
    data, optimization, schedules, saver = fit.data, fit.optimization, fit.schedules, fit.saver
    assert data is not None and optimization is not None and schedules is not None and saver is not None
    take_step, learn, autocast = fit.take_step, _learning(fit), fit.precision.autocast
    save_point, validate, catch_up = saver.save_point, fit.validate, schedules.catch_up
    assert take_step is not None
    batch_start, batch_end = hooks.of("on_train_batch_start"), hooks.of("on_train_batch_end")
    reseed = None if paddle_cpu_generator_can_be_saved() else _reseed_for_batch

    while not stopping.end_before_an_epoch():
        made_up_for = progress.batches_in_epoch if progress.validation_is_due else 0
        if not _open_epoch(fit):
            return  # a validation given up for a signal, or a stop right after it
        source, length = data.train, data.length
        prepare_batch = fit.loading.preparation(source)
        validate_every = _validation_period(fit)
        across_epochs = fit.settings.check_val_every_n_epoch is None
        skip_rest = False
        for batch in data.epoch():
            batch_idx = progress.batches_in_epoch
            if batch_idx == length:
                _refuse_long_epoch(fit)
            if reseed is not None:
                reseed(fit)
            if prepare_batch is not None:
                batch = prepare_batch(batch)
            fit.batch = batch  # not by a method, which would be a call for every batch
            for hook in batch_start:
                skip_rest |= hook(batch, batch_idx) == -1
            if skip_rest:
                break
            if autocast is None:
                outputs = take_step(batch, batch_idx)
            else:
                with autocast():
                    outputs = take_step(batch, batch_idx)
            is_last = source.is_last
            learn(outputs, is_last)
            if type(outputs) is _TENSOR:
                outputs = outputs.detach()  # what hooks keep of it does not hold the graph
            elif outputs is not None:
                outputs = detached(outputs)
            for hook in batch_end:
                hook(outputs, batch, batch_idx)
            progress.batches_in_epoch += 1  # after the hooks: only what is completely done counts
            progress.total_batches += 1
            optimization.last_loss = None if optimization.skips_step else outputs
            if validate_every and (
                is_last
                if validate_every == _AT_EPOCH_END
                else _time_has_come(fit)
                if validate_every == _BY_TIME
                else (progress.total_batches if across_epochs else progress.batches_in_epoch) % validate_every == 0
            ):
                progress.owe_validation(True)
                validate()
                if progress.validation_is_due:  # abandoned for a signal; the resumed run begins with it
                    return
            if progress.schedulers_are_due:  # after validation, whose value a plateau schedule may watch
                catch_up()
            if progress.global_step >= book.next_log:
                book.log_steps()
            if is_last or progress.batches_in_window:
                continue  # an epoch's last batch is saved with the epoch's end, and no checkpoint splits a window
            save_point("train_batch")
            if stopping.end_here():
                return
        if not skip_rest:
            _refuse_short_epoch(fit)
        ended_window = optimization.end_open_window()
        if skip_rest and _is_to_be_validated(fit, validate_every, made_up_for):
            progress.owe_validation(True)
            validate()
            if progress.validation_is_due:
                return
        if ended_window:
            catch_up()
        _close_epoch(fit)


def _learning(fit: Fit) -> Callable[[Any, bool], None]:
    """What comes after training_step, by the kind of optimization."""
    optimization, precision = fit.optimization, fit.precision
    assert optimization is not None
    if optimization.needs_closure:
        return lambda outputs, is_last: None  # the closure has learned already
    if optimization.is_automatic:
        return optimization.learn
    return lambda outputs, is_last: precision.update()


def _open_epoch(fit: Fit) -> bool:
    """Start or re-enter the epoch; whether there is something to train in it."""
    progress, optimization, saver, data = fit.progress, fit.optimization, fit.saver, fit.data
    assert optimization is not None and saver is not None and data is not None and fit.schedules is not None
    fit.target.collect(fit.book.train, on_step=True)
    if progress.epoch_is_open:
        optimization.open_window()
        with isolated_random_states():  # the undisturbed run has drawn nothing here
            data.go_on_in_epoch()
            fit.hooks.call("on_train_epoch_resume")
        validates = progress.validation_is_due
        if validates:
            fit.validate()
            if progress.validation_is_due:
                return False
        fit.schedules.catch_up()
        if validates and not (data.train.is_last or progress.batches_in_window):
            saver.save_point("validation")
            if fit.stopping.end_here():
                return False
        saver.remember(BATCH)
        return True
    data.begin_epoch()
    fit.book.begin_epoch()
    fit.target.expect_steps(False)
    reseed_where_states_are_lost(fit, "epoch start", progress.current_epoch)
    fit.hooks.call("on_train_epoch_start")
    optimization.open_window()  # what a hook has just set counts
    fit.target.expect_steps(True)
    progress.open_epoch()
    saver.remember(BATCH)
    return True


def _close_epoch(fit: Fit) -> None:
    progress, saver = fit.progress, fit.saver
    assert saver is not None and fit.schedules is not None
    progress.owe_epoch_end()
    saver.remember(EPOCH_END, for_drop=fit.schedules.may_drop_after_hooks)
    reseed_where_states_are_lost(fit, "epoch end", progress.current_epoch)
    fit.book.publish_epoch()
    fit.tell_of_a_bad_loss()
    fit.tell_of_what_does_not_learn()
    fit.schedules.step("epoch", progress.current_epoch + 1)
    fit.hooks.call("on_train_epoch_end")
    fit.book.publish_epoch()
    fit.schedules.end_epoch(progress.current_epoch + 1, will_validate=fit.validates)
    fit.hooks.end_epoch()  # what asks to stop here is in the epoch's checkpoint
    fit.book.close_epoch()
    progress.close_epoch()
    saver.save_point("train_epoch")


def validate(fit: Fit) -> None:
    """The validation that is due, with random numbers of its own: training goes on as if there had been none."""
    assert fit.saver is not None and fit.schedules is not None
    fit.book.log_steps()
    fit.saver.remember_validation()
    try:
        with isolated_random_states():
            reseed_where_states_are_lost(fit, "validation", fit.progress.total_batches)
            results = fit.evaluate()
    except (EvaluationAbandoned, WaitingEnded):
        return
    if fit.settings.val_check_seconds is not None:
        fit.progress.note_validated_at(fit.stopping.seconds)
    fit.saver.note_validation()
    fit.schedules.note_validation()
    fit.progress.owe_validation(False)
    fit.book.epoch_record.update({name: value for result in results for name, value in result.items()})


def _time_has_come(fit: Fit) -> bool:
    """Whether a validation by time is due; clocks differ between ranks, so rank 0's counts, after each batch."""
    assert fit.settings.val_check_seconds is not None
    gone = fit.stopping.seconds - fit.progress.validated_at
    return fit.ranks.broadcast_object(gone >= fit.settings.val_check_seconds)


def _validation_period(fit: Fit) -> int:
    """Batches between validations in this epoch: 0 for none, _AT_EPOCH_END where the length is unknown, _BY_TIME."""
    assert fit.data is not None
    settings, length = fit.settings, fit.data.length
    if not fit.validates:
        return 0
    if settings.val_check_seconds is not None:
        return _BY_TIME
    every_n, interval = settings.check_val_every_n_epoch, settings.val_check_interval
    if every_n is None:
        return int(interval)
    if (fit.progress.current_epoch + 1) % every_n:
        return 0
    if isinstance(interval, int):
        if length is not None and interval > length:
            raise ConfigurationError(
                f"val_check_interval={interval} is more than the {length} batches of an epoch, so validation would "
                "never run. Lower it, or pass check_val_every_n_epoch=None to count over epochs."
            )
        return interval
    if length is None:
        if interval != 1.0:
            raise ConfigurationError(
                f"val_check_interval={interval} is a share of an epoch, and the training data has no length. "
                "Give a number of batches."
            )
        return _AT_EPOCH_END
    return max(1, int(length * interval))


def _refuse_long_epoch(fit: Fit) -> None:
    assert fit.data is not None
    source = fit.data.train
    raise DataError(
        f"{source.name} said that an epoch has {source.length} batches, and batch {fit.progress.batches_in_epoch + 1} "
        f"came: validation, schedules and resume go by the length. Correct its __len__, leave it out, or pass "
        f"limit_train_batches={source.length}, which ends each epoch there."
    )


def _is_to_be_validated(fit: Fit, validate_every: int, made_up_for: int) -> bool:
    """Whether a hook ended an epoch before the last batch, with which a validation was due.

    `made_up_for`: after how many batches of it a resumed run has already run the one that a signal had cut off.
    """
    assert fit.data is not None
    by_epoch = fit.settings.check_val_every_n_epoch is not None
    at_its_end = validate_every == _AT_EPOCH_END or (by_epoch and validate_every == fit.data.length)
    return at_its_end and fit.progress.batches_in_epoch not in (0, made_up_for)


def _refuse_short_epoch(fit: Fit) -> None:
    assert fit.data is not None
    source, done = fit.data.train, fit.progress.batches_in_epoch
    if source.length is not None and done < source.length:
        raise DataError(
            f"{source.name} said that an epoch has {source.length} batches and ended after {done}: "
            "validation, schedules and resume go by the length. Correct its __len__, or leave it out."
        )


def _reseed_for_batch(fit: Fit) -> None:
    # Paddle 2.6 cannot save its CPU generator: the stream of every batch then starts from a seed of its own.
    assert fit.seed is not None
    paddle.seed(derive_seed(fit.seed, "step", fit.progress.total_batches))


def reseed_where_states_are_lost(fit: Fit, where: str, number: int) -> None:
    if not paddle_cpu_generator_can_be_saved():
        assert fit.seed is not None
        paddle.seed(derive_seed(fit.seed, where, number))
