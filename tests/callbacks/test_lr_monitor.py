"""LRMonitor: names, steps and values of learning rates, with and without a logger."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import paddle
import pytest
from scripted import Scripted, fit

from paddlelite_trainer import Callback, CSVLogger, Logger, Module, Trainer
from paddlelite_trainer.callbacks import BackboneFinetuning, LRMonitor, ModelCheckpoint, StochasticWeightAveraging
from paddlelite_trainer.errors import ConfigurationError

SGD, AdamW, Momentum = paddle.optimizer.SGD, paddle.optimizer.AdamW, paddle.optimizer.Momentum


class Remember(Logger):
    def __init__(self) -> None:
        self.seen: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        rates = {name: value for name, value in metrics.items() if name.startswith(("lr", "warm"))}
        if rates:
            self.seen.append((step, rates))


def rates(
    tmp_path: Path, monitor: LRMonitor, optimizers: Any, **settings: Any
) -> list[tuple[int | None, dict[str, float]]]:
    logger = Remember()
    fit(tmp_path, Scripted(optimizers=optimizers), monitor, logger=logger, **settings)
    return logger.seen


def decaying(module: Module) -> Any:
    return SGD(paddle.optimizer.lr.ExponentialDecay(1.0, 0.5), parameters=module.parameters())


def by_step(name: str | None = None) -> Any:
    def configure(module: Module) -> Any:
        scheduler = paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)
        config = {"scheduler": scheduler, "interval": "step", **({"name": name} if name else {})}
        return {"optimizer": SGD(scheduler, parameters=module.parameters()), "lr_scheduler": config}

    return configure


def test_the_rate_of_each_epoch_is_logged_at_its_start_and_kept_in_the_history(tmp_path: Path) -> None:
    logger = Remember()
    trainer = fit(tmp_path, Scripted(optimizers=decaying), LRMonitor(), logger=logger)
    assert logger.seen == [(0, {"lr": 1.0}), (4, {"lr": 0.5}), (8, {"lr": 0.25})]
    assert [record["lr"] for record in trainer.history] == [1.0, 0.5, 0.25]


def test_without_a_logger_callback_metrics_and_history_have_the_rates_all_the_same(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Scripted(optimizers=decaying), LRMonitor(), logger=False)
    assert trainer.callback_metrics["lr"] == 0.25
    assert [record["lr"] for record in trainer.history] == [1.0, 0.5, 0.25]


def test_a_scheduler_of_steps_is_logged_at_logged_steps_with_the_rate_that_made_the_step(tmp_path: Path) -> None:
    seen = rates(tmp_path, LRMonitor(), by_step(), max_epochs=1, log_every_n_steps=2)
    assert seen == [(2, {"lr": 0.5}), (4, {"lr": 0.125})]


def test_logging_interval_says_otherwise_than_the_scheduler(tmp_path: Path) -> None:
    assert rates(tmp_path, LRMonitor("epoch"), by_step(), max_epochs=2) == [(0, {"lr": 1.0}), (4, {"lr": 0.0625})]
    assert rates(tmp_path, LRMonitor("step"), decaying, max_epochs=2, log_every_n_steps=3) == [
        (3, {"lr": 1.0}),
        (6, {"lr": 0.5}),
    ]


def test_the_rate_stands_in_the_row_of_the_loss_it_made(tmp_path: Path) -> None:
    trainer = fit(
        tmp_path, Scripted(optimizers=by_step()), LRMonitor(), logger=CSVLogger(), max_epochs=1, log_every_n_steps=1
    )
    with (trainer.run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    assert [(row["step"], row["lr"]) for row in rows] == [("1", "1"), ("2", "0.5"), ("3", "0.25"), ("4", "0.125")]


def test_a_named_scheduler_names_the_rate(tmp_path: Path) -> None:
    assert rates(tmp_path, LRMonitor(), by_step("warmup"), max_epochs=1, log_every_n_steps=4) == [
        (4, {"warmup": 0.125})
    ]


def test_several_optimizers_and_groups_have_one_name_each(tmp_path: Path) -> None:
    class Two(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.more = paddle.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.more(self.net(batch)).mean()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.clear_grad()
            return loss

        def configure_optimizers(self) -> Any:
            groups = [
                {"params": [self.net.weight]},
                {"params": [self.net.bias], "learning_rate": 0.1, "weight_decay": 0.5},
            ]
            return [
                AdamW(0.2, parameters=groups, weight_decay=0.25),
                SGD(0.3, parameters=[self.more.weight]),
                SGD(0.4, parameters=[self.more.bias]),
            ]

    monitor = LRMonitor(log_momentum=True, log_weight_decay=True)
    trainer = fit(tmp_path, Two(), monitor, max_epochs=1)
    expected = {
        "lr-AdamW/group_0": 0.2,
        "lr-AdamW/group_0-momentum": 0.9,
        "lr-AdamW/group_0-weight_decay": 0.25,
        "lr-AdamW/group_1": 0.02,
        "lr-AdamW/group_1-momentum": 0.9,
        "lr-AdamW/group_1-weight_decay": 0.5,
        "lr-SGD": 0.3,
        "lr-SGD-momentum": 0.0,
        "lr-SGD-weight_decay": 0.0,
        "lr-SGD-1": 0.4,
        "lr-SGD-1-momentum": 0.0,
        "lr-SGD-1-weight_decay": 0.0,
    }
    assert monitor.lrs == pytest.approx(expected)
    assert {name: trainer.history[0][name] for name in expected} == pytest.approx(expected)


class Alternating(Scripted):
    """Two optimizers that both step in each batch, with schedules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.more = paddle.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.more(self.net(batch)).mean()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.clear_grad()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [
            SGD(paddle.optimizer.lr.ExponentialDecay(1.0, 0.5), parameters=self.net.parameters()),
            AdamW(paddle.optimizer.lr.ExponentialDecay(4.0, 0.5), parameters=self.more.parameters()),
        ]


@pytest.mark.parametrize("every", [1, 2, 4])
def test_of_several_optimizers_each_one_s_rate_is_logged(tmp_path: Path, every: int) -> None:
    logger = Remember()
    fit(tmp_path, Alternating(), LRMonitor("step"), max_epochs=1, logger=logger, log_every_n_steps=every)
    by_batch = [{"lr-SGD": 0.5**batch, "lr-AdamW": 4 * 0.5**batch} for batch in range(4)]
    assert logger.seen == [(step, by_batch[(step - 1) // 2]) for step in range(1, 9) if step % every == 0]


def test_a_prefix_stands_before_every_name(tmp_path: Path) -> None:
    monitor = LRMonitor(log_key_prefix="optim/", log_momentum=True)
    trainer = fit(tmp_path, Scripted(optimizers=decaying), monitor, max_epochs=1)
    assert monitor.lrs == {"optim/lr": 1.0, "optim/lr-momentum": 0.0}
    assert trainer.callback_metrics["optim/lr"] == 1.0


def test_a_group_s_own_name_names_its_rate(tmp_path: Path) -> None:
    def grouped(module: Module) -> Any:
        groups = [{"params": [module.net.weight], "name": "head"}, {"params": [module.net.bias]}]
        return SGD(0.5, parameters=groups)

    monitor = LRMonitor()
    fit(tmp_path, Scripted(optimizers=grouped), monitor, max_epochs=1)
    assert monitor.lrs == {"lr/head": 0.5, "lr/group_1": 0.5}


def test_momentum_and_weight_decay_of_the_optimizer(tmp_path: Path) -> None:
    def momentum(module: Module) -> Any:
        return Momentum(0.1, momentum=0.8, parameters=module.parameters(), weight_decay=0.01)

    monitor = LRMonitor(log_momentum=True, log_weight_decay=True)
    fit(tmp_path, Scripted(optimizers=momentum), monitor, max_epochs=1)
    assert monitor.lrs == {"lr": 0.1, "lr-momentum": 0.8, "lr-weight_decay": 0.01}


def test_it_holds_no_more_after_many_steps_than_after_one(tmp_path: Path) -> None:
    monitor = LRMonitor("step")
    fit(tmp_path, Scripted(), monitor, max_epochs=20, log_every_n_steps=1)
    assert (
        sum(len(value) for value in vars(monitor).values() if hasattr(value, "__len__") and not isinstance(value, str))
        == 3
    )


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be 'step', 'epoch' or None, got 'batch'"):
        LRMonitor("batch")  # type: ignore[arg-type]


def test_rates_of_a_trainer_resumed_within_an_epoch_are_in_its_history(tmp_path: Path) -> None:
    from paddlelite_trainer.callbacks import ModelCheckpoint

    def callbacks() -> list[Any]:
        return [LRMonitor(), ModelCheckpoint(every_n_train_steps=1)]

    fit(tmp_path, Scripted(optimizers=decaying), callbacks(), max_epochs=-1, max_steps=6)
    trainer: Trainer = fit(tmp_path, Scripted(optimizers=decaying), callbacks(), max_epochs=3, ckpt_path="last")
    assert [record["lr"] for record in trainer.history] == [1.0, 0.5, 0.25]


# -- rates that are not the schedule's ---------------------------------------------------------------------------------
class Used(Callback):
    """The rates that the steps were made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        self.rates.append(float(optimizer.get_lr()))


def stepping_down(module: Module) -> Any:
    return SGD(paddle.optimizer.lr.StepDecay(1.0, step_size=1, gamma=0.5), parameters=module.parameters())


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_the_rate_of_weight_averaging_is_logged_wherever_the_monitor_stands(tmp_path: Path, interval: Any) -> None:
    used, logger = Used(), Remember()
    averaging = StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=2)
    callbacks = [LRMonitor(interval), used, averaging]
    fit(
        tmp_path,
        Scripted(optimizers=stepping_down),
        callbacks,
        max_epochs=5,
        logger=logger,
        log_every_n_steps=1,
    )
    logged = [values["lr"] for _, values in logger.seen]
    assert logged == (used.rates if interval == "step" else used.rates[::4])
    assert logged[-1] == 0.02


def test_the_rate_that_the_module_sets_as_an_epoch_starts_is_logged(tmp_path: Path) -> None:
    class Sets(Scripted):
        def on_train_epoch_start(self) -> None:
            self.trainer.optimizers[0].set_lr(0.5 ** (self.trainer.current_epoch + 1))

    trainer = fit(tmp_path, Sets(), LRMonitor(), max_epochs=3)
    assert [record["lr"] for record in trainer.history] == [0.5, 0.25, 0.125]


def test_a_schedule_that_has_no_effect_any_more_drops_nothing(tmp_path: Path) -> None:
    def drops(*more: Callback, name: str) -> list[str]:
        callbacks = [ModelCheckpoint(save_before_lr_drop=True, save_last=False, save_top_k=0), *more]
        trainer = fit(
            tmp_path, Scripted(optimizers=stepping_down), callbacks, max_epochs=5, run_name=name, logger=False
        )
        return sorted(
            pin for entry in trainer.checkpoints.entries() for pin in entry.pins if pin.startswith("before-lr-drop")
        )

    assert len(drops(name="alone")) == 5
    assert len(drops(StochasticWeightAveraging(0.02, swa_epoch_start=2), name="averaged")) == 2


def test_the_backbone_s_rate_is_logged_from_the_epoch_on_in_which_it_learns(tmp_path: Path) -> None:
    class WithBackbone(Scripted):
        def __init__(self) -> None:
            super().__init__(optimizers=decaying)
            self.backbone = paddle.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(self.backbone(batch)).mean()

    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.1)
    trainer = fit(tmp_path, WithBackbone(), [LRMonitor(), thaw], max_epochs=3)
    assert [record.get("lr-backbone") for record in trainer.history] == [None, pytest.approx(0.05), pytest.approx(0.05)]
