"""What a step of fit does to the weights, accumulated and clipped or not: bit for bit the hand-written loop's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from loops_by_hand import OPTIMIZERS, Configure, Net, batches, by_hand, differing, grouped, net, trainer, weights
from paddle.optimizer import Adam

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, TrainingError
from paddlelite_trainer.optimizers import parameters_of


# -- accumulation ------------------------------------------------------------------------------------------------------
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


class SetsTheWindow(Callback):
    """Sets it once, in a hook of the second epoch."""

    def __init__(self, hook: str, window: Any) -> None:
        self.has_set = False

        def act(trainer: Trainer, module: Module, *more: Any) -> None:
            if trainer.current_epoch == 1 and not self.has_set:
                self.has_set = True
                trainer.accumulate_grad_batches = window

        setattr(self, hook, act)


@pytest.mark.parametrize(
    ("hook", "windows"),
    [
        ("on_train_epoch_start", (2, 3, 3)),
        ("on_train_batch_start", (2, 2, 3)),
        ("on_train_batch_end", (2, 2, 3)),
    ],
)
def test_a_window_counts_in_the_epoch_whose_first_hook_sets_it_and_later_from_the_next(
    hook: str, windows: tuple[int, ...]
) -> None:
    module, expected = net(), net()
    trainer([SetsTheWindow(hook, 3)], accumulate_grad_batches=2).fit(module, batches())
    optimizer = expected.configure_optimizers()
    for window in windows:
        by_hand(expected, optimizer, epochs=1, window=window)
    assert differing(weights(module), weights(expected)) == []


@pytest.mark.parametrize(
    ("window", "error"),
    [
        (0, ConfigurationError),
        (-1, ConfigurationError),
        ({1: 2}, ConfigurationTypeError),
        ({0: 0}, ConfigurationTypeError),
        ({}, ConfigurationTypeError),
        (1.5, ConfigurationTypeError),
        (True, ConfigurationTypeError),
        (None, ConfigurationTypeError),
        ("2", ConfigurationTypeError),
    ],
)
def test_a_window_that_is_set_is_checked_as_one_that_is_passed(window: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as passed:
        trainer(accumulate_grad_batches=window)
    run = trainer(accumulate_grad_batches={0: 2, 4: 1})
    with pytest.raises(error, match="accumulate_grad_batches") as set_later:
        run.accumulate_grad_batches = window
    there, here = "Trainer(accumulate_grad_batches=...)", "trainer.accumulate_grad_batches"
    assert str(set_later.value) == str(passed.value).replace(there, here)
    assert run.accumulation_schedule == {0: 2, 4: 1}


def test_a_hook_that_ends_the_epoch_inside_a_window_steps_with_what_is_there() -> None:
    class EndsEarly(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

    module, expected = net(OPTIMIZERS["SGD"]), net(OPTIMIZERS["SGD"])
    trainer([EndsEarly()], accumulate_grad_batches=2, max_epochs=1).fit(module, batches())
    by_hand(expected, expected.configure_optimizers(), window=2, count=3, epochs=1)
    for name, values in weights(expected).items():
        np.testing.assert_allclose(weights(module)[name], values, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_run_with_accumulation_four_resumed_at_any_step_is_the_same_run(tmp_path: Path, cut: int) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.3}
    saved: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path, **settings}
    whole, first, second = net(grouped), net(grouped), net(grouped)
    trainer(**settings).fit(whole, batches(6))
    trainer([ModelCheckpoint()], max_steps=cut, **saved).fit(first, batches(6))
    trainer(**saved).fit(second, batches(6), ckpt_path="last")
    assert differing(weights(second), weights(whole)) == []


# -- clipping ----------------------------------------------------------------------------------------------------------
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


# -- steps that move nothing -------------------------------------------------------------------------------------------
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


# -- what training_step may return -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "returned None for all"),
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
