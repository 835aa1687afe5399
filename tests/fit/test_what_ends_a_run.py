"""What ends a fit and when: limits and signals at once, requests once min_epochs and min_steps are reached.

`ends_at` is the whole table; every combination of reasons and minima is compared with it.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, Timer

pytestmark = pytest.mark.timeout(60)

BATCHES = 4  # of an epoch
MAX_EPOCHS = 4  # where nothing ends the run before
PREEMPTED = 75
A_MOMENT = {"milliseconds": 40}  # of training, which is over when the first batch is


# -- the table ---------------------------------------------------------------------------------------------------------
Minima = Mapping[str, int]

# At which step each of them asks for the end. A validation comes every second batch, and time is over after one.
ASKED_AT = {"stop": 2, "should_stop": 3, "EarlyStopping": 2, "max_time": 1, "Timer": 1}
SIGNAL_AT = 3
LIMITS = {"max_epochs": 2, "max_steps": 7}
REASONS = (*ASKED_AT, "SIGTERM", *LIMITS)

MINIMA: dict[str, Minima] = {
    "none": {},
    "min_epochs": {"min_epochs": 2},
    "min_steps": {"min_steps": 6},
    "both": {"min_epochs": 1, "min_steps": 6},
    "both, steps in vain": {"min_epochs": 2, "min_steps": 3},
}

TOLD_APART = ("none", "min_epochs", "min_steps")


def ends_at(
    *,
    asked_at: int | None = None,
    signal_at: int | None = None,
    max_epochs: int = MAX_EPOCHS,
    max_steps: int = -1,
    min_epochs: int = 0,
    min_steps: int = 0,
) -> tuple[int, int]:
    """(completed epochs, optimizer steps) of the first save point at which the run is over."""
    for step in itertools.count(1):
        epoch = step // BATCHES
        if epoch >= max_epochs or 0 <= max_steps <= step:  # a limit: whatever the minima say
            break
        if signal_at is not None and step >= signal_at:  # the process has to go: whatever the minima say
            break
        is_asked = asked_at is not None and step >= asked_at  # and stays so until it is carried out
        if is_asked and epoch >= min_epochs and step >= min_steps:
            break
    return epoch, step


def expected(reasons: Sequence[str], minima: Minima) -> tuple[int, int]:
    asked_at = min((ASKED_AT[reason] for reason in reasons if reason in ASKED_AT), default=None)
    signal_at = SIGNAL_AT if "SIGTERM" in reasons else None
    limits = {reason: LIMITS[reason] for reason in reasons if reason in LIMITS}
    return ends_at(asked_at=asked_at, signal_at=signal_at, **limits, **minima)


# -- one run -----------------------------------------------------------------------------------------------------------
class At(Callback):
    """Does something at the end of the batch that makes a step."""

    def __init__(self, step: int, what: Callable[[Trainer], Any]) -> None:
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.what(trainer)


class SlowFirstBatch(Callback):
    """Takes longer than A_MOMENT, once."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            time.sleep(0.045)


class Scored(Classifier):
    """Logs `score` in validation: `scores` says which, by step; good where it says nothing."""

    def __init__(self, scores: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.scores = dict(scores or {})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.scores.get(self.global_step, 0.0))


def set_should_stop(trainer: Trainer, value: bool = True) -> None:
    trainer.should_stop = value


def preempt(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def parts_of(reason: str) -> tuple[list[Callback], dict[str, Any]]:
    """The callbacks and settings that make up a reason."""
    if reason == "stop":
        return [At(ASKED_AT[reason], lambda trainer: trainer.stop("good enough"))], {}
    if reason == "should_stop":
        return [At(ASKED_AT[reason], set_should_stop)], {}
    if reason == "EarlyStopping":  # by a bad score, and all that follow are bad
        return [EarlyStopping("score", divergence_threshold=10.0, patience=99)], {"val_check_interval": 2}
    if reason == "max_time":
        return [SlowFirstBatch()], {"max_time": A_MOMENT}
    if reason == "Timer":
        return [SlowFirstBatch(), Timer(A_MOMENT, verbose=False)], {}
    if reason == "SIGTERM":
        return [At(SIGNAL_AT, preempt)], {}
    return [], {reason: LIMITS[reason]}


def run(reasons: Sequence[str], minima: Minima, *more: Callback, **settings: Any) -> tuple[Trainer, Classifier]:
    """A fit with these reasons to end; a signal's SystemExit has been asserted where it returns."""
    callbacks: list[Callback] = []
    options: dict[str, Any] = {"max_epochs": MAX_EPOCHS, **minima}
    for reason in reasons:
        made, needs = parts_of(reason)
        callbacks += made
        options |= needs
    trainer = quiet_trainer(callbacks=[*callbacks, *more], **{**options, **settings})
    module = Scored(dict.fromkeys(range(ASKED_AT["EarlyStopping"], MAX_EPOCHS * BATCHES + 1), 100.0))
    data = make_batches(BATCHES), make_batches(1, seed=1)
    is_preempted = "SIGTERM" in reasons and expected(reasons, minima)[1] >= SIGNAL_AT
    ckpt_path = "last" if "default_root_dir" in settings else None
    if is_preempted:
        with pytest.raises(SystemExit) as raised:
            trainer.fit(module, *data, ckpt_path=ckpt_path)
        assert raised.value.code == PREEMPTED
    else:
        trainer.fit(module, *data, ckpt_path=ckpt_path)
    return trainer, module


def position(trainer: Trainer) -> tuple[int, int]:
    return trainer.current_epoch, trainer.global_step


# -- the table, asked --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("minima", MINIMA.values(), ids=MINIMA)
@pytest.mark.parametrize("reason", REASONS)
def test_a_run_ends_where_the_table_says(reason: str, minima: Minima) -> None:
    trainer, _ = run([reason], minima)
    assert position(trainer) == expected([reason], minima)


@pytest.mark.parametrize("minima", [MINIMA[name] for name in TOLD_APART], ids=TOLD_APART)
@pytest.mark.parametrize("reasons", list(itertools.combinations(REASONS, 2)), ids=" and ".join)
def test_of_two_reasons_the_one_that_may_be_carried_out_first_ends_the_run(
    reasons: tuple[str, str], minima: Minima
) -> None:
    trainer, _ = run(reasons, minima)
    assert position(trainer) == expected(reasons, minima)


def test_a_run_that_nothing_ends_early_makes_all_its_epochs() -> None:
    trainer, _ = run([], {"min_epochs": 2, "min_steps": 6})
    assert position(trainer) == (MAX_EPOCHS, MAX_EPOCHS * BATCHES)


@pytest.mark.parametrize("request_step", range(1, 2 * BATCHES + 1))
def test_a_request_is_carried_out_at_its_own_save_point_or_when_the_minima_are_reached(request_step: int) -> None:
    at = At(request_step, lambda trainer: trainer.stop("good enough"))
    trainer, _ = run([], {"min_epochs": 1, "min_steps": 6}, at)
    assert position(trainer) == ends_at(asked_at=request_step, min_epochs=1, min_steps=6)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_a_request_before_the_first_batch_waits_for_the_minima_too(hook: str) -> None:
    ask = Callback()
    setattr(ask, hook, lambda trainer, module: trainer.stop("at once"))
    trainer, _ = run([], {"min_epochs": 1, "min_steps": 6}, ask)
    assert position(trainer) == (1, 6)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
def test_a_request_at_an_epochs_end_is_not_forgotten_with_the_epoch(hook: str) -> None:
    class AskOnce(Callback):
        asked = False

        def ask(self, trainer: Any, module: Any) -> None:
            if not self.asked:
                self.asked = True
                trainer.should_stop = True

    once = AskOnce()
    setattr(once, hook, once.ask)
    trainer, _ = run([], {"min_epochs": 3}, once)
    assert position(trainer) == (3, 3 * BATCHES)


def test_min_steps_counts_optimizer_steps_and_a_run_ends_only_where_a_window_does() -> None:
    class AskInTheFirstBatch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0 and trainer.current_epoch == 0:
                trainer.stop("good enough")

    trainer, _ = run([], {"min_steps": 3}, AskInTheFirstBatch(), accumulate_grad_batches=2)
    assert position(trainer) == (1, 3)  # two steps an epoch


def test_time_that_is_over_before_the_first_batch_waits_for_the_minima() -> None:
    trainer, _ = run([], {"min_steps": 6}, max_time={"seconds": 0})
    assert position(trainer) == (1, 6)


def test_a_timer_that_looks_at_epochs_only_waits_for_the_minima_too() -> None:
    trainer, _ = run([], {"min_steps": 6}, SlowFirstBatch(), Timer(A_MOMENT, interval="epoch", verbose=False))
    assert position(trainer) == (1, 6)


def test_a_dry_run_says_nothing_of_minima_and_is_one_batch_whatever_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = quiet_trainer(fast_dev_run=True, min_epochs=5, max_epochs=8, min_steps=40, max_steps=50)
    trainer.fit(Classifier(), make_batches(BATCHES))
    assert trainer.global_step == 1


def test_min_steps_hold_nothing_back_where_max_epochs_are_over() -> None:
    trainer, _ = run(["max_epochs"], {"min_steps": 100})
    assert position(trainer) == (2, 8)


def test_min_epochs_hold_nothing_back_where_max_steps_are_over() -> None:
    trainer, _ = run(["max_steps"], {"min_epochs": 4})
    assert position(trainer) == (1, 7)


# -- a request that waits ----------------------------------------------------------------------------------------------
def test_should_stop_says_true_until_the_request_is_carried_out() -> None:
    seen: list[bool] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(trainer.should_stop)

    run(["stop"], {"min_epochs": 2}, Look())
    assert seen == [False, False, True, True, True, True, True, True]


@pytest.mark.parametrize("withdrawn_at", [3, 4, 5, 7])
@pytest.mark.parametrize("reason", ["stop", "should_stop"])
def test_a_request_that_waits_can_be_withdrawn(reason: str, withdrawn_at: int) -> None:
    withdraw = At(withdrawn_at, lambda trainer: set_should_stop(trainer, False))
    trainer, _ = run([reason], {"min_epochs": 2}, withdraw)
    assert position(trainer) == (MAX_EPOCHS, MAX_EPOCHS * BATCHES)


def test_a_request_after_one_withdrawn_counts() -> None:
    trainer, _ = run(
        ["stop"],
        {"min_epochs": 1},
        At(3, lambda trainer: set_should_stop(trainer, False)),
        At(6, lambda trainer: trainer.stop("after all")),
    )
    assert position(trainer) == (1, 6)


def test_early_stopping_takes_its_request_back_where_the_metric_recovers_before_min_epochs() -> None:
    # Validated at each epoch's end: patience is over after the third epoch, and each one from the fourth on is better.
    module = Scored({4: 1.0, 8: 2.0, 12: 3.0, 16: 0.5, 20: 0.4, 24: 0.3, 28: 0.2, 32: 0.1})
    trainer = quiet_trainer(max_epochs=8, min_epochs=5, callbacks=[EarlyStopping("score", patience=2)])
    trainer.fit(module, make_batches(BATCHES), make_batches(1))
    assert position(trainer) == (8, 8 * BATCHES)


def test_early_stopping_before_min_steps_ends_the_run_within_the_epoch_that_reaches_them() -> None:
    module = Scored({4: 1.0, 8: 2.0, 12: 3.0, 16: 0.5})
    trainer = quiet_trainer(max_epochs=8, min_steps=14, callbacks=[EarlyStopping("score", patience=2)])
    trainer.fit(module, make_batches(BATCHES), make_batches(1))
    assert position(trainer) == (3, 14)


# -- over a resume -----------------------------------------------------------------------------------------------------
class Died(Exception):
    """What ends a process without a word; its checkpoints stay."""


def die(trainer: Trainer) -> None:
    raise Died


def every_step() -> ModelCheckpoint:
    return ModelCheckpoint(every_n_train_steps=1, save_top_k=0)


WAITING: Minima = {"min_epochs": 2, "min_steps": 10}


def kept(root: Path) -> dict[str, Any]:
    return {"default_root_dir": root, "run_name": "run", "enable_checkpointing": True, "seed": 1}


@pytest.mark.parametrize("step", [5, 8])
@pytest.mark.parametrize("reason", ASKED_AT)
def test_a_request_that_waits_outlives_a_process_that_dies(reason: str, step: int, tmp_path: Path) -> None:
    with pytest.raises(Died):
        run([reason], WAITING, every_step(), At(step, die), **kept(tmp_path))
    trainer, _ = run([reason], WAITING, every_step(), **kept(tmp_path))
    assert position(trainer) == expected([reason], WAITING) == (2, 10)


@pytest.mark.parametrize("reason", ASKED_AT)
def test_a_request_that_waits_outlives_a_signal(reason: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        run([reason], WAITING, every_step(), At(3, preempt), **kept(tmp_path))
    assert raised.value.code == PREEMPTED
    trainer, _ = run([reason], WAITING, every_step(), **kept(tmp_path))
    assert position(trainer) == expected([reason], WAITING)


def test_a_request_withdrawn_before_a_resume_stays_withdrawn(tmp_path: Path) -> None:
    withdraw = At(3, lambda trainer: set_should_stop(trainer, False))
    with pytest.raises(Died):
        run(["stop"], WAITING, every_step(), withdraw, At(6, die), **kept(tmp_path))
    trainer, _ = run(["stop"], WAITING, every_step(), **kept(tmp_path))
    assert position(trainer) == (MAX_EPOCHS, MAX_EPOCHS * BATCHES)


def test_a_request_that_waited_when_a_limit_ended_the_run_counts_when_it_goes_on_with_a_larger_one(
    tmp_path: Path,
) -> None:
    trainer, _ = run(["stop"], {"min_epochs": 2}, every_step(), max_steps=5, **kept(tmp_path))
    assert position(trainer) == (1, 5)
    trainer, _ = run(["stop"], {"min_epochs": 2}, every_step(), **kept(tmp_path))
    assert position(trainer) == (2, 8)


def test_a_request_that_was_carried_out_keeps_the_run_ended_whatever_it_waited_for(tmp_path: Path) -> None:
    for _ in range(2):
        trainer, _ = run(["stop"], {"min_steps": 6}, every_step(), **kept(tmp_path))
        assert position(trainer) == (1, 6)


def test_the_stop_override_goes_on_where_a_request_waited(tmp_path: Path) -> None:
    with pytest.raises(Died):
        run(["stop"], WAITING, every_step(), At(5, die), **kept(tmp_path))
    trainer = quiet_trainer(callbacks=[every_step()], max_epochs=MAX_EPOCHS, **WAITING, **kept(tmp_path))
    trainer.fit(Scored(), make_batches(BATCHES), make_batches(1), ckpt_path="last", override=("stop",))
    assert position(trainer) == (MAX_EPOCHS, MAX_EPOCHS * BATCHES)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("minima", [{}, {"min_epochs": 4}, {"min_steps": 16}], ids=str)
def test_a_signal_does_not_wait_for_the_minima_and_the_resumed_run_does_the_rest(
    minima: Minima, number: signal.Signals, tmp_path: Path
) -> None:
    whole, undisturbed = run([], minima)
    kill = At(5, lambda trainer: os.kill(os.getpid(), number))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as raised:
        run([], minima, every_step(), kill, **kept(tmp_path))
    assert isinstance(raised.value, SystemExit if number == signal.SIGTERM else KeyboardInterrupt)
    steps: list[int] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            steps.append(trainer.global_step)

    trainer, module = run([], minima, every_step(), Look(), **kept(tmp_path))
    assert steps == [5]
    assert position(trainer) == position(whole)
    assert same_weights(weights_of(module), weights_of(undisturbed))


@pytest.mark.parametrize("reason", ASKED_AT)
def test_a_signal_that_comes_while_a_request_may_be_carried_out_does_not_undo_it(reason: str, tmp_path: Path) -> None:
    """Both at one save point: the process ends as the signal asks, and started again the run trains no further."""
    step = ASKED_AT[reason]
    with pytest.raises(SystemExit) as raised:
        run([reason], {}, every_step(), At(step, preempt), **kept(tmp_path))
    assert raised.value.code == PREEMPTED
    trainer, _ = run([reason], {}, every_step(), **kept(tmp_path))
    assert position(trainer) == (0, step)
