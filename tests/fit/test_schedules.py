"""Every scheduler of Paddle steps in fit as in the hand-written loop, and goes on after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loops_by_hand import BATCHES, Configure, Net, Rates, batches, by_hand, differing, net, scheduled, trainer, weights
from paddle.optimizer import SGD, Momentum, lr

from paddlelite_trainer.errors import ConfigurationError

SCHEDULES: dict[str, Callable[[], Any]] = {
    "NoamDecay": lambda: lr.NoamDecay(16, 4, 0.5),
    "PiecewiseDecay": lambda: lr.PiecewiseDecay([2, 5], [0.1, 0.05, 0.01]),
    "NaturalExpDecay": lambda: lr.NaturalExpDecay(0.1, 0.2),
    "InverseTimeDecay": lambda: lr.InverseTimeDecay(0.1, 0.3),
    "PolynomialDecay": lambda: lr.PolynomialDecay(0.1, 7, 0.001, 2.0),
    "PolynomialDecay, cycling": lambda: lr.PolynomialDecay(0.1, 4, 0.001, cycle=True),
    "ExponentialDecay": lambda: lr.ExponentialDecay(0.1, 0.8),
    "MultiStepDecay": lambda: lr.MultiStepDecay(0.1, [2, 6], 0.3),
    "StepDecay": lambda: lr.StepDecay(0.1, 3, 0.5),
    "LambdaDecay": lambda: lr.LambdaDecay(0.1, lambda step: 0.9**step),
    "MultiplicativeDecay": lambda: lr.MultiplicativeDecay(0.1, lambda step: 0.95),
    "CosineAnnealingDecay": lambda: lr.CosineAnnealingDecay(0.1, 6, 0.001),
    "CosineAnnealingWarmRestarts": lambda: lr.CosineAnnealingWarmRestarts(0.1, 3, 2, 0.001),
    "OneCycleLR": lambda: lr.OneCycleLR(0.1, 20),
    "CyclicLR": lambda: lr.CyclicLR(0.01, 0.1, 3, mode="triangular2"),
    "LinearLR": lambda: lr.LinearLR(0.1, 5),
    "LinearWarmup": lambda: lr.LinearWarmup(0.1, 4, 0.0, 0.1),
    "LinearWarmup of cosine": lambda: lr.LinearWarmup(lr.CosineAnnealingDecay(0.1, 6), 3, 0.0, 0.1),
}
"""All of paddle.optimizer.lr but ReduceOnPlateau, which needs a metric."""


def test_every_scheduler_of_paddle_is_among_those_tried() -> None:
    known = {name for name, value in vars(lr).items() if isinstance(value, type) and issubclass(value, lr.LRScheduler)}
    assert known - {"LRScheduler"} == {name.split(",")[0].split(" ")[0] for name in SCHEDULES} | {"ReduceOnPlateau"}


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_scheduler_steps_as_in_the_hand_written_loop(name: str, interval: str, frequency: int) -> None:
    rates = Rates()
    module = net(scheduled(SCHEDULES[name], interval=interval, frequency=frequency))
    trainer([rates], accumulate_grad_batches=2).fit(module, batches())

    expected, schedule = net(), SCHEDULES[name]()

    def step_if_due(number: int) -> None:
        if number % frequency == 0:
            schedule.step()

    when = {"after_epoch" if interval == "epoch" else "after_step": step_if_due}
    expected_rates = by_hand(expected, Momentum(schedule, parameters=expected.parameters()), window=2, **when)
    assert rates.rates == expected_rates
    assert differing(weights(module), weights(expected)) == []


@pytest.mark.parametrize("cut", [2, 4, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumed_under_any_schedule_is_the_same_run(tmp_path: Path, name: str, cut: int) -> None:
    configure = scheduled(SCHEDULES[name], interval="step")
    whole, first, second = (net(configure) for _ in range(3))
    whole_rates, rates = Rates(), Rates()
    settings: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer([whole_rates], max_epochs=2).fit(whole, batches())
    trainer([rates], max_steps=cut, **settings).fit(first, batches())
    trainer([rates], **settings).fit(second, batches(), ckpt_path="last")
    assert rates.rates == whole_rates.rates
    assert differing(weights(second), weights(whole)) == []


def test_a_scheduler_inside_the_optimizer_is_found_and_steps_each_epoch() -> None:
    rates = Rates()
    trainer([rates]).fit(net(lambda m: SGD(lr.StepDecay(0.1, 1, 0.5), parameters=m.parameters())), batches(2))
    assert rates.rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_a_scheduler_beside_an_optimizer_of_fixed_rate_becomes_its_rate() -> None:
    rates = Rates()
    trainer([rates]).fit(net(lambda m: (SGD(9.0, parameters=m.parameters()), lr.StepDecay(0.1, 1, 0.5))), batches(1))
    assert rates.rates == [0.1, 0.05, 0.025]


def plateau(metric: str = "val_loss", **options: Any) -> Configure:
    return scheduled(lambda: lr.ReduceOnPlateau(0.5, patience=0, factor=0.5, threshold=0.05), monitor=metric, **options)


@pytest.mark.parametrize("metric", ["val_loss", "train_loss_epoch"])
def test_reduce_on_plateau_gets_the_metric_of_the_epoch_that_just_ended(metric: str) -> None:
    rates = Rates()
    module = net(plateau(metric))
    run = trainer([rates], max_epochs=8)
    run.fit(module, batches(), batches(2, seed=1))

    expected = net()
    schedule = lr.ReduceOnPlateau(0.5, patience=0, factor=0.5, threshold=0.05)
    history = iter(run.history)
    expected_rates = by_hand(
        expected,
        Momentum(schedule, parameters=expected.parameters()),
        epochs=8,
        after_epoch=lambda epoch: schedule.step(next(history)[metric]),
    )
    assert rates.rates == expected_rates
    assert len(set(rates.rates)) > 1
    assert differing(weights(module), weights(expected)) == []


def test_reduce_on_plateau_without_its_metric_is_an_error_that_lists_what_was_logged() -> None:
    with pytest.raises(
        ConfigurationError, match=r"watches 'val_los', which was not logged\. Logged: .*Did you mean 'val_loss'"
    ):
        trainer().fit(net(plateau("val_los")), batches(), batches(1))
    trainer().fit(net(plateau("val_los", strict=False)), batches(), batches(1))


def test_a_reduced_rate_is_in_the_checkpoint_of_the_epoch_that_reduced_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, parts = Rates(), Rates()
    trainer([whole], max_epochs=8).fit(net(plateau()), batches(), batches(1, seed=1))
    trainer([parts], max_epochs=4, **settings).fit(net(plateau()), batches(), batches(1, seed=1))
    trainer([parts], max_epochs=8, **settings).fit(net(plateau()), batches(), batches(1, seed=1), ckpt_path="last")
    assert parts.rates == whole.rates
    assert len(set(whole.rates[: 4 * BATCHES])) > 1


def test_lr_scheduler_step_is_called_in_place_of_ours() -> None:
    calls: list[Any] = []

    class Own(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            calls.append((type(scheduler).__name__, metric))

    trainer().fit(net(scheduled(lambda: lr.StepDecay(0.1, 1)), kind=Own), batches(1))
    assert calls == [("StepDecay", None)] * 3
