"""What Trainer.fit does to the weights, against loops written by hand in Paddle: bit for bit, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.optimizer import SGD, Adam, AdamW, Momentum, lr

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, TrainingError
from paddlelite_trainer.optimizers import optimizer_state, parameters_of, restore_optimizer, structured_names

BATCHES = 5
Configure = Callable[["Net"], Any]
Weights = dict[str, np.ndarray]


class Net(Module):
    """No dropout and no BatchNorm: a hand-written loop needs no seeds to draw the same numbers."""

    def __init__(self, configure: Configure | None = None) -> None:
        super().__init__()
        self.first = paddle.nn.Linear(4, 8)
        self.second = paddle.nn.Linear(8, 3)
        self._configure = configure or (lambda module: Adam(0.01, parameters=module.parameters()))

    def forward(self, x: Any) -> Any:
        return self.second(paddle.tanh(self.first(x)))

    def loss(self, batch: Any) -> Any:
        return paddle.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self._configure(self)


def net(configure: Configure | None = None, kind: type[Net] = Net) -> Net:
    seed_everything(11)
    return kind(configure)


def batches(count: int = BATCHES, seed: int = 0) -> list[Any]:
    numbers = np.random.RandomState(seed)
    return [
        (paddle.to_tensor(numbers.randn(6, 4).astype("float32")), paddle.to_tensor(numbers.randint(0, 3, [6])))
        for _ in range(count)
    ]


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        self.rates.append(optimizer.get_lr())


def trainer(callbacks: Any = (), **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "seed": 11,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def weights(module: Module) -> Weights:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def differing(one: Any, other: Any) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if not np.array_equal(one.get(name), other.get(name)))


def by_hand(
    module: Net,
    optimizer: Any,
    *,
    epochs: int = 3,
    count: int = BATCHES,
    window: int = 1,
    clip: Callable[[list[Any]], Any] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[float]:
    """The loop that a careful Paddle user would write; returns the learning rate of every step."""
    rates: list[float] = []
    module.train()
    for epoch in range(epochs):
        for index, batch in enumerate(batches(count)):
            length = min(window, count - index // window * window)
            loss = module.loss(batch)
            (loss if window == 1 else loss / length).backward()
            if (index + 1) % window == 0 or index + 1 == count:
                if clip is not None:
                    clip([parameter for parameter in parameters_of(optimizer) if parameter.grad is not None])
                rates.append(optimizer.get_lr())
                optimizer.step()
                optimizer.clear_grad(set_to_zero=False)
                after_step(len(rates))
        after_epoch(epoch + 1)
    return rates


# -- plain, accumulation, clipping -------------------------------------------------------------------------------------
OPTIMIZERS: dict[str, Configure] = {
    "SGD": lambda m: SGD(0.1, parameters=m.parameters()),
    "Momentum": lambda m: Momentum(0.1, parameters=m.parameters(), use_nesterov=True, weight_decay=1e-3),
    "Adam": lambda m: Adam(0.01, parameters=m.parameters()),
    "AdamW": lambda m: AdamW(0.01, parameters=m.parameters(), weight_decay=0.1),
    "Adamax": lambda m: paddle.optimizer.Adamax(0.01, parameters=m.parameters()),
    "Adagrad": lambda m: paddle.optimizer.Adagrad(0.1, parameters=m.parameters()),
    "Adadelta": lambda m: paddle.optimizer.Adadelta(0.1, parameters=m.parameters()),
    "RMSProp": lambda m: paddle.optimizer.RMSProp(0.01, parameters=m.parameters(), centered=True),
    "Lamb": lambda m: paddle.optimizer.Lamb(0.01, parameters=m.parameters()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_fit_is_the_hand_written_loop(name: str) -> None:
    module, expected = net(OPTIMIZERS[name]), net(OPTIMIZERS[name])
    trainer().fit(module, batches())
    by_hand(expected, expected.configure_optimizers())
    assert differing(weights(module), weights(expected)) == []


@pytest.mark.parametrize(("window", "count"), [(2, 4), (5, 5), (2, 5), (3, 5), (4, 5), (8, 5)])
def test_accumulation_averages_each_window_over_its_own_length(window: int, count: int) -> None:
    module, expected = net(), net()
    run = trainer(accumulate_grad_batches=window)
    run.fit(module, batches(count))
    rates = by_hand(expected, expected.configure_optimizers(), window=window, count=count)
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == len(rates) == 3 * -(-count // window)


def test_accumulation_over_data_of_unknown_length_gives_the_same_within_tolerance() -> None:
    class Unknown:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches())

    module, expected = net(), net()
    run = trainer(accumulate_grad_batches=3)
    run.fit(module, Unknown())
    by_hand(expected, expected.configure_optimizers(), window=3)
    for name, values in weights(expected).items():
        np.testing.assert_allclose(weights(module)[name], values, rtol=1e-5, atol=1e-6)
    assert run.global_step == 6


def test_an_accumulated_window_is_the_big_batch_within_tolerance() -> None:
    module, expected = net(OPTIMIZERS["SGD"]), net(OPTIMIZERS["SGD"])
    trainer(accumulate_grad_batches=2, max_epochs=1).fit(module, batches(4))
    small = batches(4)
    big = [tuple(paddle.concat([one[i], other[i]]) for i in (0, 1)) for one, other in zip(small[::2], small[1::2])]
    trainer(max_epochs=1).fit(expected, big)
    for name, values in weights(expected).items():
        np.testing.assert_allclose(weights(module)[name], values, rtol=1e-5, atol=1e-6)


def test_a_schedule_of_windows_changes_at_its_epochs() -> None:
    module, expected = net(), net()
    run = trainer(accumulate_grad_batches={0: 1, 1: 5, 2: 2})
    run.fit(module, batches())
    optimizer = expected.configure_optimizers()
    for window in (1, 5, 2):
        by_hand(expected, optimizer, epochs=1, window=window)
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == 5 + 1 + 3


def test_a_hook_that_ends_the_epoch_inside_a_window_steps_with_what_is_there() -> None:
    class EndsEarly(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

    module, expected = net(OPTIMIZERS["SGD"]), net(OPTIMIZERS["SGD"])
    trainer([EndsEarly()], accumulate_grad_batches=2, max_epochs=1).fit(module, batches())
    by_hand(expected, expected.configure_optimizers(), window=2, count=3, epochs=1)
    for name, values in weights(expected).items():
        np.testing.assert_allclose(weights(module)[name], values, rtol=1e-6, atol=1e-7)


CLIPS: dict[str, Callable[[list[Any]], Any]] = {
    "norm": lambda parameters: paddle.nn.utils.clip_grad_norm_(parameters, 0.1),
    "value": lambda parameters: paddle.nn.utils.clip_grad_value_(parameters, 0.02),
}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("algorithm", CLIPS)
def test_clipping_is_paddles_own_once_per_step(algorithm: Any, window: int) -> None:
    module, expected, plain = net(), net(), net()
    value = {"norm": 0.1, "value": 0.02}[algorithm]
    run = trainer(gradient_clip_val=value, gradient_clip_algorithm=algorithm, accumulate_grad_batches=window)
    run.fit(module, batches())
    by_hand(expected, expected.configure_optimizers(), clip=CLIPS[algorithm], window=window)
    assert differing(weights(module), weights(expected)) == []
    by_hand(plain, plain.configure_optimizers(), window=window)
    assert differing(weights(module), weights(plain)) != []  # it did clip


def test_the_default_algorithm_is_norm_and_the_norm_before_clipping_is_there_to_be_read() -> None:
    norms: list[float] = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
            norms.append(float(trainer.gradient_norm.item()))

    module, expected = net(), net()
    trainer([Norms()], gradient_clip_val=0.1).fit(module, batches())
    by_hand_norms: list[float] = []
    by_hand(
        expected,
        expected.configure_optimizers(),
        clip=lambda parameters: by_hand_norms.append(float(CLIPS["norm"](parameters).item())),
    )
    assert norms == by_hand_norms


def test_configure_gradient_clipping_is_called_in_place_of_ours() -> None:
    class Own(Net):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            with paddle.no_grad():
                for parameter in parameters_of(optimizer):
                    parameter.grad.scale_(0.5)

    module, expected = net(kind=Own), net()
    trainer().fit(module, batches())

    @paddle.no_grad()
    def halve(parameters: list[Any]) -> None:
        for parameter in parameters:
            parameter.grad.scale_(0.5)

    by_hand(expected, expected.configure_optimizers(), clip=halve)
    assert differing(weights(module), weights(expected)) == []


def test_clipping_by_trainer_and_by_optimizer_is_an_error_that_names_both() -> None:
    clipped = net(lambda m: Adam(0.01, parameters=m.parameters(), grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)))
    with pytest.raises(
        ConfigurationError, match=r"gradient_clip_val=0\.5\) and by Adam\(grad_clip=ClipGradByGlobalNorm\)"
    ):
        trainer(gradient_clip_val=0.5).fit(clipped, batches())


def test_the_optimizers_own_clipping_works_alone() -> None:
    def configure(m: Net) -> Any:
        return Adam(0.01, parameters=m.parameters(), grad_clip=paddle.nn.ClipGradByGlobalNorm(0.1))

    module, expected = net(configure), net(configure)
    trainer().fit(module, batches())
    by_hand(expected, expected.configure_optimizers())
    assert differing(weights(module), weights(expected)) == []


# -- schedules ---------------------------------------------------------------------------------------------------------
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


def scheduled(make: Callable[[], Any], **options: Any) -> Configure:
    def configure(m: Net) -> Any:
        schedule = make()
        return {
            "optimizer": Momentum(schedule, parameters=m.parameters()),
            "lr_scheduler": {"scheduler": schedule, **options},
        }

    return configure


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


# -- parameter groups, unused parameters -------------------------------------------------------------------------------
def grouped(m: Net) -> Any:
    return AdamW(
        0.02,
        parameters=[
            {"params": m.first.parameters(), "learning_rate": 0.1, "weight_decay": 0.5},
            {"params": m.second.parameters()},
        ],
    )


def test_parameter_groups_keep_their_own_rates_and_decay() -> None:
    module, expected, alike = net(grouped), net(grouped), net(OPTIMIZERS["AdamW"])
    trainer(gradient_clip_val=0.5).fit(module, batches())
    by_hand(
        expected,
        expected.configure_optimizers(),
        clip=lambda parameters: paddle.nn.utils.clip_grad_norm_(parameters, 0.5),
    )
    assert differing(weights(module), weights(expected)) == []
    trainer(gradient_clip_val=0.5).fit(alike, batches())
    assert differing(weights(module), weights(alike)) != []


@pytest.mark.parametrize("name", ["AdamW", "Momentum", "Lamb"])
def test_parameters_that_the_loss_does_not_use_do_not_move(name: str) -> None:
    class Unused(Net):
        def __init__(self, configure: Configure | None = None) -> None:
            super().__init__(configure)
            self.spare = paddle.nn.Linear(4, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            if self.global_step == 0:  # used once, so that the optimizer has momentum for it
                loss = loss + self.spare(batch[0]).mean()
            return loss

    module = net(OPTIMIZERS[name], kind=Unused)
    after: list[np.ndarray] = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            after.append(module.spare.weight.numpy().copy())

    trainer([Notes()]).fit(module, batches())
    assert all(np.array_equal(after[0], later) for later in after)


# -- manual optimization -----------------------------------------------------------------------------------------------
class Gan(Module):
    """The discriminator steps at every batch, the generator at every third, each with a schedule of its own."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = paddle.nn.Linear(3, 4)
        self.discriminator = paddle.nn.Sequential(paddle.nn.Linear(4, 6), paddle.nn.ReLU(), paddle.nn.Linear(6, 1))

    def losses(self, batch: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        real = batch[0]
        noise = real[:, :3] * 0.5
        entropy = paddle.nn.functional.binary_cross_entropy_with_logits
        ones, zeros = paddle.ones([real.shape[0], 1]), paddle.zeros([real.shape[0], 1])

        def of_discriminator() -> Any:
            fake = self.generator(noise).detach()
            return entropy(self.discriminator(real), ones) + entropy(self.discriminator(fake), zeros)

        return of_discriminator, lambda: entropy(self.discriminator(self.generator(noise)), ones)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        of_discriminator, of_generator = self.losses(batch)
        d, g = self.optimizers()
        d_schedule, g_schedule = self.lr_schedulers()
        self.toggle_optimizer(d)
        loss = of_discriminator()
        self.manual_backward(loss)
        self.clip_gradients(d, 0.5, "norm")
        d.step()
        d.clear_grad()
        self.untoggle_optimizer(d)
        d_schedule.step()
        self.log("d_loss", loss)
        if batch_idx % 3 == 2:
            self.toggle_optimizer(g)
            self.manual_backward(of_generator())
            g.step()
            g.clear_grad()
            self.untoggle_optimizer(g)
            g_schedule.step()

    def configure_optimizers(self) -> Any:
        d_schedule, g_schedule = lr.ExponentialDecay(0.05, 0.97), lr.CosineAnnealingDecay(0.02, 5)
        return (
            [
                Adam(d_schedule, parameters=self.discriminator.parameters()),
                AdamW(g_schedule, parameters=self.generator.parameters()),
            ],
            [d_schedule, g_schedule],
        )


def gan() -> Gan:
    seed_everything(11)
    return Gan()


def test_a_gan_with_uneven_step_counts_is_the_hand_written_loop() -> None:
    module, expected = gan(), gan()
    run = trainer()
    run.fit(module, batches())

    (d, g), (d_schedule, g_schedule) = expected.configure_optimizers()
    for _ in range(3):
        for index, batch in enumerate(batches()):
            of_discriminator, of_generator = expected.losses(batch)
            of_discriminator().backward()
            paddle.nn.utils.clip_grad_norm_(expected.discriminator.parameters(), 0.5)
            d.step()
            d.clear_grad(set_to_zero=False)
            d_schedule.step()
            if index % 3 == 2:
                of_generator().backward()
                g.step()
                g.clear_grad(set_to_zero=False)
                d.clear_grad(set_to_zero=False)  # what toggle_optimizer makes needless
                g_schedule.step()
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == 15 + 3


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_gan_resumed_at_any_step_is_the_same_run(tmp_path: Path, cut: int) -> None:
    settings: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, first, second = gan(), gan(), gan()
    complete, resumed = trainer(max_epochs=2), trainer(**settings)
    complete.fit(whole, batches())
    trainer(max_steps=cut, **settings).fit(first, batches())
    resumed.fit(second, batches(), ckpt_path="last")
    assert differing(weights(second), weights(whole)) == []
    assert [o.get_lr() for o in resumed.optimizers] == [o.get_lr() for o in complete.optimizers]
    assert resumed.global_step == complete.global_step


def test_toggle_optimizer_lets_only_its_parameters_collect_gradients_and_puts_the_rest_back() -> None:
    seen: list[tuple[list[bool], list[bool]]] = []

    class Looks(Gan):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.generator.bias.stop_gradient = True  # frozen by the user: stays frozen
            d, g = self.optimizers()
            self.toggle_optimizer(g)
            during = [p.stop_gradient for p in self.discriminator.parameters()]
            self.untoggle_optimizer(g)
            after = [p.stop_gradient for p in self.discriminator.parameters()]
            self.toggle_optimizer(d)
            self.untoggle_optimizer(d)
            seen.append((during, after))
            assert self.generator.bias.stop_gradient
            assert not self.generator.weight.stop_gradient

    seed_everything(11)
    trainer(max_steps=-1, max_epochs=1).fit(Looks(), batches(1))
    assert seen == [([True] * 4, [False] * 4)]


def test_manual_accumulation_is_the_hand_written_loop() -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch) / 2)
            if batch_idx % 2 == 1:
                optimizer.step()
                optimizer.clear_grad()

    module, expected = net(kind=Manual), net()
    run = trainer()
    run.fit(module, batches(4))
    by_hand(expected, expected.configure_optimizers(), window=2, count=4)
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == 6


def test_several_optimizers_without_manual_optimization_are_an_error_that_shows_the_way() -> None:
    def two(m: Net) -> Any:
        return [SGD(0.1, parameters=m.first.parameters()), SGD(0.1, parameters=m.second.parameters())]

    with pytest.raises(ConfigurationError, match=r"returned 2 optimizers.*automatic_optimization = False"):
        trainer().fit(net(two), batches())


# -- LBFGS -------------------------------------------------------------------------------------------------------------
def lbfgs(m: Net) -> Any:
    return paddle.optimizer.LBFGS(
        learning_rate=0.5, max_iter=4, history_size=5, line_search_fn="strong_wolfe", parameters=m.parameters()
    )


def test_lbfgs_gets_its_closure_and_is_the_hand_written_loop() -> None:
    module, expected = net(lbfgs), net()
    run = trainer()
    run.fit(module, batches(2))
    optimizer = lbfgs(expected)
    for _ in range(3):
        for batch in batches(2):

            def closure(batch: Any = batch) -> Any:
                optimizer.clear_grad(set_to_zero=False)
                loss = expected.loss(batch)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == 6


@pytest.mark.parametrize("cut", range(1, 6))
def test_lbfgs_resumed_at_any_step_is_the_same_run(tmp_path: Path, cut: int) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, first, second = net(lbfgs), net(lbfgs), net(lbfgs)
    trainer().fit(whole, batches(2))
    trainer(max_steps=cut, **settings).fit(first, batches(2))
    trainer(**settings).fit(second, batches(2), ckpt_path="last")
    assert differing(weights(second), weights(whole)) == []


def test_lbfgs_with_accumulation_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="LBFGS evaluates the loss several times a step"):
        trainer(accumulate_grad_batches=2).fit(net(lbfgs), batches())


# -- groups added during a run -----------------------------------------------------------------------------------------
class Thaws(Net):
    """`first` joins the optimizer at step 3, at a tenth of the rate."""

    def __init__(self, configure: Configure | None = None) -> None:
        super().__init__(configure)
        for parameter in self.first.parameters():
            parameter.stop_gradient = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            for parameter in self.first.parameters():
                parameter.stop_gradient = False
            self.trainer.add_param_group(self.first.parameters(), learning_rate=0.1)


HALF: dict[str, Configure] = {
    "plain list": lambda m: AdamW(0.05, parameters=m.second.parameters()),
    "groups": lambda m: AdamW(0.05, parameters=[{"params": m.second.parameters(), "weight_decay": 0.2}]),
    **{
        name: (lambda kind: lambda m: kind(0.05, parameters=m.second.parameters()))(getattr(paddle.optimizer, name))
        for name in ("SGD", "Momentum", "Adam", "Adamax", "Adagrad", "Adadelta", "RMSProp", "Lamb")
    },
}


@pytest.mark.parametrize("name", HALF)
def test_a_parameter_group_added_during_the_run_trains_like_one_that_was_there_and_waited(name: str) -> None:
    if name == "groups":
        whole: Configure = lambda m: AdamW(  # noqa: E731
            0.05,
            parameters=[
                {"params": m.second.parameters(), "weight_decay": 0.2},
                {"params": m.first.parameters(), "learning_rate": 0.1},
            ],
        )
    else:
        kind = AdamW if name == "plain list" else getattr(paddle.optimizer, name)
        whole = lambda m: kind(  # noqa: E731
            0.05,
            parameters=[{"params": m.second.parameters()}, {"params": m.first.parameters(), "learning_rate": 0.1}],
        )
    module, expected = net(HALF[name], kind=Thaws), net(whole)
    trainer().fit(module, batches())
    for parameter in expected.first.parameters():
        parameter.stop_gradient = True

    def thaw(step: int) -> None:
        if step == 3:
            for parameter in expected.first.parameters():
                parameter.stop_gradient = False

    by_hand(expected, expected.configure_optimizers(), after_step=thaw)
    assert differing(weights(module), weights(expected)) == []


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("cut", [2, 3, 4, 7])
def test_a_parameter_group_added_during_the_run_survives_a_resume(tmp_path: Path, name: str, cut: int) -> None:
    settings: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, first, second = (net(HALF[name], kind=Thaws) for _ in range(3))
    trainer(max_epochs=2).fit(whole, batches())
    trainer(max_steps=cut, **settings).fit(first, batches())
    resumed = trainer(**settings)
    resumed.fit(second, batches(), ckpt_path="last")
    assert differing(weights(second), weights(whole)) == []
    assert len(list(parameters_of(resumed.optimizers[0]))) == 4


def test_a_parameter_cannot_be_added_twice_and_a_decay_of_its_own_needs_groups() -> None:
    class Twice(Net):
        def on_train_start(self) -> None:
            self.trainer.add_param_group(self.second.parameters())

    class Decays(Net):
        def on_train_start(self) -> None:
            self.trainer.add_param_group(self.first.parameters(), weight_decay=0.1)

    with pytest.raises(ConfigurationError, match="AdamW trains these parameters already"):
        trainer().fit(net(HALF["plain list"], kind=Twice), batches())
    with pytest.raises(ConfigurationError, match="needs a AdamW that was built with parameter groups"):
        trainer().fit(net(HALF["plain list"], kind=Decays), batches())


# -- skipping a step ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_a_skipped_step_moves_nothing_and_counts(name: str) -> None:
    class SkipsSecond(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
            if trainer.global_step == 1:
                trainer.skip_optimizer_step()

    module, expected = net(OPTIMIZERS[name]), net(OPTIMIZERS[name])
    run = trainer([SkipsSecond()], max_epochs=1, gradient_clip_val=0.5)
    run.fit(module, batches(3))
    optimizer = expected.configure_optimizers()
    for batch in (batches(3)[0], batches(3)[2]):
        expected.loss(batch).backward()
        paddle.nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    assert differing(weights(module), weights(expected)) == []
    assert run.global_step == 3


# -- optimizer state ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "grouped"])
def test_optimizer_state_is_put_back_into_a_fresh_or_a_used_optimizer(name: str, steps_before: int) -> None:
    configure = OPTIMIZERS.get(name, grouped)
    source, target = net(configure), net(configure)
    optimizer, other = source.configure_optimizers(), target.configure_optimizers()
    by_hand(source, optimizer, epochs=1, count=3)
    if steps_before:
        by_hand(target, other, epochs=1, count=steps_before)
    tensors, rest = optimizer_state(optimizer, structured_names(source))
    restore_optimizer(other, structured_names(target), {key: value.numpy() for key, value in tensors.items()}, rest)
    target.set_state_dict(source.state_dict())
    by_hand(source, optimizer, epochs=1)
    by_hand(target, other, epochs=1)
    assert differing(weights(source), weights(target)) == []


# -- what configure_optimizers may return ------------------------------------------------------------------------------
def step_decay() -> Any:
    return lr.StepDecay(0.1, 1, 0.5)


FORMS: dict[str, Configure] = {
    "optimizer": lambda m: SGD(step_decay(), parameters=m.parameters()),
    "optimizer and scheduler": lambda m: (lambda s: (SGD(s, parameters=m.parameters()), s))(step_decay()),
    "list of one": lambda m: [SGD(step_decay(), parameters=m.parameters())],
    "two lists": lambda m: (lambda s: ([SGD(s, parameters=m.parameters())], [s]))(step_decay()),
    "two lists with a dict": lambda m: (lambda s: ([SGD(s, parameters=m.parameters())], [{"scheduler": s}]))(
        step_decay()
    ),
    "two lists, the scheduler found": lambda m: ([SGD(step_decay(), parameters=m.parameters())], []),
    "optimizer and dict": lambda m: (lambda s: (SGD(s, parameters=m.parameters()), {"scheduler": s}))(step_decay()),
    "dict": lambda m: {"optimizer": SGD(step_decay(), parameters=m.parameters())},
    "dict with scheduler": lambda m: (lambda s: {"optimizer": SGD(s, parameters=m.parameters()), "lr_scheduler": s})(
        step_decay()
    ),
    "list of dicts": lambda m: (
        lambda s: [
            {"optimizer": SGD(s, parameters=m.parameters()), "lr_scheduler": {"scheduler": s, "interval": "epoch"}}
        ]
    )(step_decay()),
    "scheduler apart": lambda m: (SGD(0.1, parameters=m.parameters()), step_decay()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_configure_optimizers_means_the_same(form: str) -> None:
    rates = Rates()
    trainer([rates], max_epochs=2).fit(net(FORMS[form]), batches(1))
    assert rates.rates == [0.1, 0.05]


def monitored_outside(m: Net) -> Any:
    schedule = lr.ReduceOnPlateau(0.1)
    return {"optimizer": SGD(schedule, parameters=m.parameters()), "lr_scheduler": schedule, "monitor": "train_loss"}


def test_a_monitor_beside_the_scheduler_is_understood() -> None:
    heard: list[float] = []

    class Listening(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: float | None) -> None:
            assert metric is not None
            heard.append(metric)

    module = net(monitored_outside, kind=Listening)
    run = trainer(max_epochs=1)
    run.fit(module, batches(1))
    assert heard == [run.callback_metrics["train_loss"]]


WRONG: dict[str, tuple[Configure, type[Exception], str]] = {
    "nothing": (lambda m: None, ConfigurationError, "returned no optimizer"),
    "a number": (lambda m: 3, ConfigurationTypeError, "must return an optimizer"),
    "not an optimizer": (lambda m: [3], ConfigurationTypeError, "got int"),
    "misspelt key": (
        lambda m: {"optimzer": SGD(0.1, parameters=m.parameters())},
        ConfigurationError,
        "Did you mean 'optimizer'",
    ),
    "unknown scheduler key": (
        lambda m: (SGD(0.1, parameters=m.parameters()), {"scheduler": step_decay(), "freqency": 1}),
        ConfigurationError,
        "Did you mean 'frequency'",
    ),
    "no scheduler key": (
        lambda m: {"optimizer": SGD(0.1, parameters=m.parameters()), "lr_scheduler": {"interval": "step"}},
        ConfigurationError,
        "needs the key 'scheduler'",
    ),
    "not a scheduler": (
        lambda m: {"optimizer": SGD(0.1, parameters=m.parameters()), "lr_scheduler": 0.1},
        ConfigurationTypeError,
        "must be a paddle.optimizer.lr.LRScheduler, got float",
    ),
    "wrong interval": (
        scheduled(step_decay, interval="batch"),
        ConfigurationError,
        "interval must be 'epoch' or 'step', got 'batch'",
    ),
    "wrong frequency": (
        scheduled(step_decay, frequency=0),
        ConfigurationError,
        "frequency must be an integer >= 1, got 0",
    ),
    "plateau without monitor": (
        lambda m: SGD(lr.ReduceOnPlateau(0.1), parameters=m.parameters()),
        ConfigurationError,
        "ReduceOnPlateau needs a metric",
    ),
    "another optimizer's scheduler": (
        lambda m: (SGD(step_decay(), parameters=m.parameters()), lr.NoamDecay(8, 4)),
        ConfigurationError,
        "whose learning rate is another scheduler",
    ),
    "too many schedulers": (
        lambda m: ([SGD(0.1, parameters=m.parameters())], [step_decay(), step_decay()]),
        ConfigurationError,
        "2 schedulers for 1 optimizers",
    ),
    "twice the same": (
        lambda m: (lambda o: [o, o])(SGD(0.1, parameters=m.parameters())),
        ConfigurationError,
        "the same optimizer twice",
    ),
    "foreign parameters": (
        lambda m: SGD(0.1, parameters=paddle.nn.Linear(2, 2).parameters()),
        ConfigurationError,
        "which is not part of Net",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_return_of_configure_optimizers_is_one_clear_error(what: str) -> None:
    configure, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        trainer().fit(net(configure), batches())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "returned None in batch 0"),
        ({"los": 1}, r"a dict with keys \['los'\]"),
        (1.0, "returned float"),
        (paddle.zeros([2]), r"a single number, got a tensor of shape \[2\]"),
        (paddle.zeros([]), "not attached to any parameter"),
    ],
)
def test_a_training_step_without_a_loss_is_one_clear_error(outputs: Any, message: str) -> None:
    class Wrong(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return outputs

    with pytest.raises(TrainingError, match=message):
        trainer().fit(net(kind=Wrong), batches())


def test_the_step_returns_the_loss_alone_or_in_a_dict() -> None:
    class InDict(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "more": 1}

    module, expected = net(kind=InDict), net()
    trainer().fit(module, batches())
    trainer().fit(expected, batches())
    assert differing(weights(module), weights(expected)) == []


# -- accumulation and resume -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cut", range(1, 6))
def test_a_run_with_accumulation_four_resumed_at_any_step_is_the_same_run(tmp_path: Path, cut: int) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.3}
    saved: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path, **settings}
    whole, first, second = net(grouped), net(grouped), net(grouped)
    trainer(**settings).fit(whole, batches(6))
    trainer([ModelCheckpoint()], max_steps=cut, **saved).fit(first, batches(6))
    trainer(**saved).fit(second, batches(6), ckpt_path="last")
    assert differing(weights(second), weights(whole)) == []
