"""What configure_optimizers may return, parameter groups, those added during a run, and an optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from loops_by_hand import (
    OPTIMIZERS,
    Configure,
    Net,
    Rates,
    batches,
    by_hand,
    differing,
    grouped,
    net,
    scheduled,
    step_decay,
    trainer,
    weights,
)
from paddle.optimizer import SGD, AdamW, lr

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.optimizers import optimizer_state, parameters_of, restore_optimizer, structured_names

# -- what it may return ------------------------------------------------------------------------------------------------
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
    "nothing": (lambda m: [[], []], ConfigurationError, "returned no optimizer"),
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


# -- parameter groups --------------------------------------------------------------------------------------------------
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


def test_an_optimizer_without_parameters_is_refused_before_training() -> None:
    with pytest.raises(ConfigurationError, match=r"returned SGD without parameters.*parameters=self\.parameters\(\)"):
        trainer(max_epochs=1).fit(net(lambda _: SGD(0.1, parameters=[])), batches(2))


# -- parameters that come too late -------------------------------------------------------------------------------------
class MadeInTheFirstStep(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not hasattr(self, "late"):
            self.late = paddle.nn.Linear(3, 3)
        return paddle.nn.functional.cross_entropy(self.late(self(batch[0])), batch[1])


class UnfrozenInEpochOne(Net):
    def setup(self, stage: str) -> None:
        self.first.weight.stop_gradient = True

    def configure_optimizers(self) -> Any:
        return SGD(0.1, parameters=[parameter for parameter in self.parameters() if not parameter.stop_gradient])

    def on_train_epoch_start(self) -> None:
        self.first.weight.stop_gradient = self.current_epoch < 1


class UnfrozenWithAGroup(UnfrozenInEpochOne):
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 1:
            self.trainer.add_param_group([self.first.weight])


class HeadAlone(Net):
    def configure_optimizers(self) -> Any:
        return SGD(0.1, parameters=self.second.parameters())


@pytest.mark.parametrize(
    "kind, told",
    [
        (MadeInTheFirstStep, "WARNING: late.bias, late.weight: made or unfrozen after configure_optimizers"),
        (UnfrozenInEpochOne, "WARNING: first.weight: made or unfrozen after configure_optimizers"),
    ],
)
def test_parameters_that_no_optimizer_has_since_they_came_late_are_told_once(
    kind: type[Net], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(max_epochs=3).fit(kind(), batches())
    assert capsys.readouterr().out.count(told) == 1


@pytest.mark.parametrize("kind", [UnfrozenWithAGroup, HeadAlone])
def test_parameters_that_have_an_optimizer_or_were_left_out_on_purpose_are_not_told(
    kind: type[Net], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(max_epochs=3).fit(kind(), batches())
    assert "after configure_optimizers" not in capsys.readouterr().out
