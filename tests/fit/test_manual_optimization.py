"""Optimization by the user's training_step, or by a closure as LBFGS wants it: bit for bit the hand-written loop's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from loops_by_hand import Net, batches, by_hand, differing, net, trainer, weights
from paddle.optimizer import SGD, Adam, AdamW, lr

from paddlelite_trainer import Callback, Module, seed_everything
from paddlelite_trainer.callbacks import GradientAccumulationScheduler
from paddlelite_trainer.errors import ConfigurationError


# -- manual ------------------------------------------------------------------------------------------------------------
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


def without_effect(setting: str) -> dict[str, Any]:
    class Sets(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.accumulate_grad_batches = 2

    return {
        "clip": {"gradient_clip_val": 0.5},
        "accumulate": {"accumulate_grad_batches": {0: 1, 1: 2}},
        "callback": {"callbacks": [GradientAccumulationScheduler({1: 2})]},
        "hook": {"callbacks": [Sets()]},
    }[setting]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("clip", r"gradient_clip_val=0\.5.*call self\.clip_gradients\(optimizer, 0\.5\) before optimizer\.step\(\)"),
        ("accumulate", r"accumulate_grad_batches.*call optimizer\.step\(\) after as many batches as you want"),
        ("callback", r"GradientAccumulationScheduler.*call optimizer\.step\(\) after as many batches as you want"),
        ("hook", r"accumulate_grad_batches.*call optimizer\.step\(\) after as many batches as you want"),
    ],
)
def test_what_the_trainer_does_between_steps_is_an_error_where_the_steps_are_the_user_s(
    setting: str, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        trainer(**without_effect(setting)).fit(gan(), batches(2))


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


def test_lbfgs_in_float64_is_the_hand_written_loop_and_resumes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path, "precision": "64-true"}
    whole, first, second, expected = net(lbfgs), net(lbfgs), net(lbfgs), net()
    trainer(precision="64-true").fit(whole, batches(2))
    trainer(max_steps=3, **settings).fit(first, batches(2))
    trainer(**settings).fit(second, batches(2), ckpt_path="last")
    expected.to(dtype="float64")
    optimizer = lbfgs(expected)
    for _ in range(3):
        for batch in batches(2):

            def closure(batch: Any = batch) -> Any:
                optimizer.clear_grad(set_to_zero=False)
                loss = expected.loss([batch[0].astype("float64"), *batch[1:]])
                loss.backward()
                return loss

            optimizer.step(closure)
    assert next(iter(weights(whole).values())).dtype == np.float64
    assert differing(weights(whole), weights(expected)) == []
    assert differing(weights(second), weights(whole)) == []


def test_lbfgs_with_clipping_or_a_skipped_step_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"LBFGS.*gradients cannot be clipped"):
        trainer(gradient_clip_val=1.0).fit(net(lbfgs), batches())

    class Skips(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            trainer.skip_optimizer_step()

    with pytest.raises(ConfigurationError, match="cannot hold back LBFGS"):
        trainer(callbacks=[Skips()]).fit(net(lbfgs), batches())


def test_lbfgs_with_accumulation_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="LBFGS evaluates the loss several times a step"):
        trainer(accumulate_grad_batches=2).fit(net(lbfgs), batches())


class StepsInEpochs(Net):
    """Steps by hand, in the epochs that are given."""

    automatic_optimization = False

    def __init__(self, *epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if self.current_epoch in self.epochs:
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            optimizer.clear_grad()

    def configure_optimizers(self) -> Any:
        return SGD(0.1, parameters=self.parameters())


@pytest.mark.parametrize("epochs, told", [((), 1), ((0,), 1), ((0, 1, 2), 0)])
def test_an_epoch_without_a_step_by_hand_is_told_once(
    epochs: tuple[int, ...], told: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(max_epochs=3).fit(StepsInEpochs(*epochs), batches())
    assert capsys.readouterr().out.count("StepsInEpochs.training_step made no optimizer step in a whole epoch") == told
