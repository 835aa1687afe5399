"""The loop: its order, its counters, and its arithmetic against a loop written by hand."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, F, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, DataModule, Module
from paddlelite_trainer.callback import HOOKS
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.fit.hooks import Hooks


class Recorder(Callback):
    """Writes down every hook that is called."""

    def __init__(self, names: list[str] | None = None) -> None:
        self.calls: list[str] = []
        for name in HOOKS - {"on_save_point", "on_save_checkpoint", "on_load_checkpoint"} if names is None else names:
            setattr(self, name, self._recorder(name))

    def _recorder(self, name: str) -> Any:
        def record(*arguments: Any) -> None:
            self.calls.append(name)

        return record


def test_weights_equal_those_of_a_hand_written_loop_bit_for_bit() -> None:
    batches = make_batches()
    by_hand = Classifier()
    optimizer = by_hand.configure_optimizers()
    for _ in range(3):
        for batch in batches:
            by_hand.loss(batch).backward()
            optimizer.step()
            optimizer.clear_grad()
    module = Classifier()
    quiet_trainer(max_epochs=3).fit(module, batches)
    assert same_weights(weights_of(by_hand), weights_of(module))


def test_hooks_run_in_the_documented_order() -> None:
    recorder = Recorder()
    trainer = quiet_trainer(callbacks=[recorder], num_sanity_val_steps=1)
    trainer.fit(Classifier(), make_batches(2), make_batches(1))
    validation = [
        "on_validation_start",
        "on_validation_epoch_start",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_validation_epoch_end",
        "on_validation_end",
    ]
    batch = [
        "on_train_batch_start",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_before_zero_grad",
        "on_train_batch_end",
    ]
    assert recorder.calls == [
        "setup",
        "on_fit_start",
        "on_sanity_check_start",
        *validation,
        "on_sanity_check_end",
        "on_train_start",
        "on_train_epoch_start",
        *batch,
        *batch,
        *validation,
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
        "teardown",
    ]


def test_callbacks_are_called_in_list_order_and_the_module_last() -> None:
    order = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            order.append(self.name)

    class Last(Classifier):
        def on_train_epoch_end(self) -> None:
            order.append("module")

    quiet_trainer(callbacks=[Named("first"), Named("second")]).fit(Last(), make_batches(1))
    assert order == ["first", "second", "module"]


def test_training_step_is_two_library_frames_below_fit() -> None:
    depths = []

    class Deep(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            depths.append(len(inspect.stack()))
            return super().training_step(batch, batch_idx)

    here = len(inspect.stack())
    quiet_trainer().fit(Deep(), make_batches(1))
    assert depths == [here + 3]  # fit, the loop, training_step


def test_what_nobody_overrides_is_in_no_hook_list() -> None:
    module = Classifier()
    assert Hooks([Callback()], module, (None, module)).calls == {}


def test_counters_count_steps_epochs_and_batches() -> None:
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append((trainer.current_epoch, batch_idx, trainer.global_step, trainer.is_last_batch))

    trainer = quiet_trainer(max_epochs=2, callbacks=[Watch()])
    trainer.fit(Classifier(), make_batches(2))
    assert seen == [(0, 0, 1, False), (0, 1, 2, True), (1, 0, 3, False), (1, 1, 4, True)]
    assert (trainer.current_epoch, trainer.global_step, trainer.num_training_batches) == (2, 4, 2)


def test_max_steps_ends_the_fit_within_an_epoch() -> None:
    trainer = quiet_trainer(max_steps=4)
    trainer.fit(Classifier(), make_batches(3))
    assert (trainer.global_step, trainer.current_epoch, trainer.progress.batches_in_epoch) == (4, 1, 1)


def test_max_time_ends_the_fit() -> None:
    trainer = quiet_trainer(max_time={"seconds": 0})
    trainer.fit(Classifier(), make_batches(3))
    assert trainer.global_step == 0


def test_should_stop_ends_the_fit_at_the_next_save_point() -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.should_stop = True

    trainer = quiet_trainer(max_epochs=5, callbacks=[Stop()])
    trainer.fit(Classifier(), make_batches(3))
    assert trainer.global_step == 2


def test_a_stop_before_min_epochs_waits_for_them() -> None:
    class StopOnce(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.stop("too early")

    trainer = quiet_trainer(max_epochs=4, min_epochs=3, callbacks=[StopOnce()])
    trainer.fit(Classifier(), make_batches(1))
    assert trainer.current_epoch == 3


def test_returning_minus_one_from_on_train_batch_start_ends_the_epoch() -> None:
    class Skip(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 1 else None

    trainer = quiet_trainer(max_epochs=2, callbacks=[Skip()])
    trainer.fit(Classifier(), make_batches(3))
    assert (trainer.global_step, trainer.current_epoch) == (2, 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [6, 12]),
        ({"val_check_interval": 2}, [2, 4, 6, 8, 10, 12]),
        ({"val_check_interval": 0.5}, [3, 6, 9, 12]),
        ({"check_val_every_n_epoch": 2}, [12]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 5}, [5, 10]),
    ],
)
def test_validation_runs_when_it_is_due(settings: dict[str, Any], expected: list[int]) -> None:
    steps = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            steps.append(trainer.global_step)

    quiet_trainer(max_epochs=2, callbacks=[Watch()], **settings).fit(Classifier(), make_batches(6), make_batches(1))
    assert steps == expected


def test_sanity_validation_leaves_no_trace() -> None:
    def train(**settings: Any) -> tuple[Any, Any]:
        module = Classifier()
        trainer = quiet_trainer(max_epochs=1, seed=3, **settings)
        trainer.fit(module, make_batches(), make_batches(2))
        return weights_of(module), (trainer.history, np.random.rand(), paddle.rand([1]).item())

    with_check, without = train(num_sanity_val_steps=2), train(num_sanity_val_steps=0)
    assert same_weights(with_check[0], without[0])
    assert with_check[1] == without[1]


def test_validation_draws_random_numbers_of_its_own() -> None:
    class Noisy(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.drawn.append((np.random.rand(), paddle.rand([1]).item()))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            np.random.rand()
            paddle.rand([1])

    def drawn(val: Any) -> list[Any]:
        module = Noisy()
        module.drawn = []
        quiet_trainer(max_epochs=2, seed=5).fit(module, make_batches(3), val)
        return module.drawn

    assert drawn(make_batches(2)) == drawn(None)


def test_train_and_eval_modes_are_as_the_user_set_them() -> None:
    modes = []

    class FrozenPart(Classifier):
        def on_train_start(self) -> None:
            self.net[0].eval()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            modes.append((self.net[0].training, self.net[2].training))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            modes.append((self.net[0].training, self.net[2].training))

    quiet_trainer(max_epochs=2).fit(FrozenPart(), make_batches(1), make_batches(1))
    assert modes == [(False, True), (False, False), (False, True), (False, False)]


def test_accumulation_averages_over_the_window_and_the_short_last_one_over_its_own_length() -> None:
    batches = make_batches(5)
    by_hand = Classifier()
    optimizer = by_hand.configure_optimizers()
    for window in (batches[0:2], batches[2:4], batches[4:5]):
        for batch in window:
            (by_hand.loss(batch) / len(window)).backward()
        optimizer.step()
        optimizer.clear_grad()
    module = Classifier()
    trainer = quiet_trainer(accumulate_grad_batches=2)
    trainer.fit(module, batches)
    assert trainer.global_step == 3
    assert same_weights(weights_of(by_hand), weights_of(module))


def test_a_loader_of_unknown_length_closes_its_last_window_too() -> None:
    batches = make_batches(5)
    known, unknown = Classifier(), Classifier()
    quiet_trainer(accumulate_grad_batches=2).fit(known, batches)
    trainer = quiet_trainer(accumulate_grad_batches=2)
    trainer.fit(unknown, (batch for batch in batches))
    assert trainer.global_step == 3
    for name, value in weights_of(known).items():
        np.testing.assert_allclose(weights_of(unknown)[name], value, rtol=1e-6)


def test_the_window_can_change_with_the_epoch() -> None:
    trainer = quiet_trainer(max_epochs=3, accumulate_grad_batches={0: 1, 1: 3, 2: 2})
    trainer.fit(Classifier(), make_batches(6))
    assert trainer.global_step == 6 + 2 + 3
    assert trainer.estimated_stepping_batches == 11


def test_unused_parameters_do_not_move() -> None:
    class Half(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.unused = paddle.nn.Linear(2, 2)

        def configure_optimizers(self) -> Any:
            return paddle.optimizer.AdamW(0.1, parameters=self.parameters(), weight_decay=0.1)

    module = Half()
    before = weights_of(module.unused)
    quiet_trainer(max_epochs=2).fit(module, make_batches())
    assert same_weights(before, weights_of(module.unused))


def test_fit_can_be_called_many_times_in_one_process() -> None:
    trainer = quiet_trainer(max_epochs=2)
    results = []
    for _ in range(3):
        module = Classifier()
        trainer.fit(module, make_batches())
        results.append((weights_of(module), trainer.history))
    assert all(same_weights(results[0][0], weights) and history == results[0][1] for weights, history in results)


def test_history_has_one_record_per_epoch() -> None:
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(Classifier(), make_batches(2), make_batches(1))
    assert [(record["epoch"], record["step"]) for record in trainer.history] == [(0, 2), (1, 4), (2, 6)]
    assert all({"train_loss", "val_loss"} <= record.keys() for record in trainer.history)


def test_fast_dev_run_touches_one_batch_of_everything_and_writes_nothing(tmp_path: Any) -> None:
    recorder = Recorder(["on_train_batch_end", "on_validation_batch_end"])
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[recorder], default_root_dir=tmp_path, logger=None)
    trainer.fit(Classifier(), make_batches(), make_batches())
    assert recorder.calls == ["on_train_batch_end", "on_validation_batch_end"]
    assert list(tmp_path.iterdir()) == []


def test_overfit_batches_gives_the_same_few_batches_every_epoch() -> None:
    seen = []

    class Watch(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch[0].numpy().tobytes())
            return super().training_step(batch, batch_idx)

    data = paddle.io.TensorDataset([paddle.randn([32, 4]), paddle.randint(0, 3, [32])])
    loader = paddle.io.DataLoader(data, batch_size=4, shuffle=True)
    quiet_trainer(max_epochs=2, overfit_batches=2).fit(Watch(), loader)
    assert seen[:2] == seen[2:]


def test_limits_are_counts_or_shares() -> None:
    recorder = Recorder(["on_train_batch_end", "on_validation_batch_end"])
    quiet_trainer(limit_train_batches=0.5, limit_val_batches=1, callbacks=[recorder]).fit(
        Classifier(), make_batches(6), make_batches(6)
    )
    assert recorder.calls == ["on_train_batch_end"] * 3 + ["on_validation_batch_end"]


def test_reload_dataloaders_every_n_epochs_asks_the_module_again() -> None:
    asked = []

    class OwnData(Classifier):
        def train_dataloader(self) -> Any:
            asked.append(self.current_epoch)
            return make_batches(1)

    quiet_trainer(max_epochs=4, reload_dataloaders_every_n_epochs=2).fit(OwnData())
    assert asked == [0, 2]


def test_detect_anomaly_names_the_operation() -> None:
    class Bad(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return paddle.log(self.loss(batch) * 0 - 1)

    with pytest.raises(RuntimeError, match="log"):
        quiet_trainer(detect_anomaly=True).fit(Bad(), make_batches(1))
    assert not any(paddle.get_flags("FLAGS_check_nan_inf").values())


def test_batches_pass_through_the_transfer_hooks() -> None:
    class Doubled(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 2, batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 1, batch[1]]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen = batch[0].numpy()
            return super().training_step(batch, batch_idx)

    batches = make_batches(1)
    module = Doubled()
    quiet_trainer().fit(module, batches)
    np.testing.assert_array_equal(module.seen, batches[0][0].numpy() * 2 + 1)


def test_a_step_may_return_a_dict_with_the_loss() -> None:
    class Dict(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "extra": 1}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.extra = outputs["extra"]

    watch, module, plain = Watch(), Dict(), Classifier()
    quiet_trainer(callbacks=[watch]).fit(module, make_batches())
    quiet_trainer().fit(plain, make_batches())
    assert watch.extra == 1
    assert same_weights(weights_of(module), weights_of(plain))


def test_two_optimizers_need_manual_optimization() -> None:
    class Two(Classifier):
        def configure_optimizers(self) -> Any:
            return [paddle.optimizer.SGD(0.1, parameters=layer.parameters()) for layer in (self.net[0], self.net[2])]

    with pytest.raises(ConfigurationError, match="automatic_optimization = False"):
        quiet_trainer().fit(Two(), make_batches())


def test_manual_optimization_counts_every_optimizer_step() -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [paddle.optimizer.SGD(0.1, parameters=layer.parameters()) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                self.manual_backward(self.loss(batch))
                optimizer.step()
                optimizer.clear_grad()

    trainer = quiet_trainer()
    trainer.fit(Manual(), make_batches(3))
    assert trainer.global_step == 6


def test_the_loop_computes_what_forward_says_in_every_stage() -> None:
    module = Classifier()
    trainer = quiet_trainer(max_epochs=1)
    batches = make_batches(3)
    trainer.fit(module, batches)
    expected = np.mean([F.cross_entropy(module(x), y).item() for x, y in batches])
    assert trainer.validate(module, batches, verbose=False)[0]["val_loss"] == pytest.approx(expected)
    assert trainer.test(module, batches, verbose=False)[0]["test_loss"] == pytest.approx(expected)
    np.testing.assert_array_equal(trainer.predict(module, batches)[1].numpy(), module(batches[1][0]).numpy())


def test_several_validation_loaders_have_metrics_of_their_own() -> None:
    class Several(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = paddle.nn.Linear(1, 1)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("value", batch)

    first, second = (paddle.io.DataLoader(values, batch_size=None) for values in ([1.0, 2.0], [10.0]))
    results = quiet_trainer().validate(Several(), [first, second], verbose=False)
    assert results == [{"value/dataloader_idx_0": 1.5}, {"value/dataloader_idx_1": 10.0}]


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_hooks_at_an_evaluations_end_find_its_own_values(stage: str) -> None:
    class Counts(Classifier):
        value = 0.0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.value += 1.0
            self.log("value", self.value)

        test_step = validation_step

    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def look(self, trainer: Any, module: Any) -> None:
            self.seen.append(trainer.callback_metrics["value"])

        on_validation_epoch_end = on_test_epoch_end = look

    watch, module = Watch(), Counts()
    trainer = quiet_trainer(callbacks=[watch])
    for _ in range(2):
        (trainer.validate if stage == "validation" else trainer.test)(module, make_batches(1), verbose=False)
    assert watch.seen == [1.0, 2.0]


def test_a_values_of_an_evaluation_apart_from_fit_is_not_part_of_what_the_fit_saves(tmp_path: Any) -> None:
    from paddlelite_trainer.callbacks import ModelCheckpoint

    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint()], default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(1), make_batches(1))
    trainer.test(dataloaders=make_batches(1), verbose=False)
    assert "test_loss" in trainer.callback_metrics
    trainer.save_checkpoint("after-test")
    entry = trainer.checkpoints.by_pin("after-test")[0]
    assert "val_loss" in entry.metrics
    assert "test_loss" not in entry.metrics
    assert "test_loss" not in trainer.checkpoints.read(entry).state("trainer.json")["callback_metrics"]


@pytest.mark.parametrize("case", ["module", "module with a loader given", "datamodule"])
def test_validation_loaders_are_asked_for_again_too(case: str) -> None:
    asked: list[tuple[str, int]] = []

    class Loaders:
        trainer: Any = None

        def train_dataloader(self) -> Any:
            asked.append(("train", self.trainer.current_epoch))
            return make_batches(2)

        def val_dataloader(self) -> Any:
            asked.append(("val", self.trainer.current_epoch))
            return make_batches(2, seed=self.trainer.current_epoch)

    trainer = quiet_trainer(max_epochs=4, reload_dataloaders_every_n_epochs=2)
    given = make_batches(2) if case == "module with a loader given" else None
    if case == "datamodule":
        trainer.fit(Classifier(), datamodule=type("Data", (Loaders, DataModule), {})())
    else:
        trainer.fit(type("Own", (Loaders, Classifier), {"trainer": Module.trainer})(), given)
    assert [epoch for name, epoch in asked if name == "val"] == [0, 2]
    assert [epoch for name, epoch in asked if name == "train"] == ([0, 2] if given is None else [])
