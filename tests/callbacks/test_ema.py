"""ExponentialMovingAverage: its arithmetic, where it is used, and what a checkpoint holds of it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from small_runs import BATCHES, Net, batches, differing, net, same, trainer, weights, whole_state

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import ConfigurationError


def averages(ema: ExponentialMovingAverage) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in ema.averages.items()}


class Weights(Callback):
    """Notes the weights after every batch, and those that validation sees."""

    def __init__(self) -> None:
        self.after_batch: list[dict[str, np.ndarray]] = []
        self.in_validation: list[dict[str, np.ndarray]] = []
        self.at_epoch_end: list[dict[str, np.ndarray]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after_batch.append(weights(module))

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.in_validation.append(weights(module))

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self.at_epoch_end.append(weights(module))


# -- arithmetic --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "decay_of_step"),
    [
        ({"decay": 0.9}, dict.fromkeys(range(1, 9), 0.9)),
        ({"decay": 0.9, "warmup": True}, {step: min(0.9, step / (9 + step)) for step in range(1, 9)}),
        ({"decay": 0.9, "start_step": 3}, dict.fromkeys(range(4, 9), 0.9)),
        ({"decay": 0.9, "update_every_n_steps": 3}, {3: 0.9, 6: 0.9}),
        ({"decay": 0.5, "start_step": 2, "update_every_n_steps": 4, "warmup": True}, {4: 0.1, 8: 2 / 11}),
    ],
)
def test_the_average_is_that_of_a_hand_written_loop_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any], decay_of_step: dict[int, float]
) -> None:
    ema, module = ExponentialMovingAverage(**settings), net()
    trainer(tmp_path, [ema]).fit(module, batches())

    by_hand = net()
    optimizer = by_hand.configure_optimizers()
    expected = {name: value.clone() for name, value in by_hand.named_parameters()}
    paddle.seed(3)
    step = 0
    for _ in range(2):
        for batch in batches():
            if not paddle.__version__.startswith("3"):
                from paddlelite_trainer.machine.rng import derive_seed

                paddle.seed(derive_seed(3, "step", step))
            by_hand.loss(batch).backward()
            optimizer.step()
            optimizer.clear_grad(False)
            step += 1
            for name, value in by_hand.named_parameters():
                if step == settings.get("start_step", 0):
                    expected[name] = value.clone()
                elif step in decay_of_step:
                    share = paddle.full([], 1.0 - decay_of_step[step], dtype="float32")
                    expected[name] = paddle.lerp(expected[name], value, share)
    assert same(weights(by_hand), weights(module))
    assert differing({name: value.numpy() for name, value in expected.items()}, averages(ema)) == []
    assert "backbone.1._mean" in ema.averages  # running statistics are averaged like weights


def test_with_accumulation_it_moves_once_per_optimizer_step(tmp_path: Path) -> None:
    ema = ExponentialMovingAverage(decay=0.5)
    trainer(tmp_path, [ema], max_epochs=1, accumulate_grad_batches=2).fit(net(), batches(5))
    assert ema.state_dict()["moves"] == 3


def test_it_costs_no_copy_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ema, module = ExponentialMovingAverage(), net()
    run = trainer(tmp_path, [ema])
    run.fit(module, batches())

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a copy to the host")

    for name in ("numpy", "item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(paddle.Tensor, name, refuse)
    ema.move(run, module, 0.5)
    ema.put_averages_in_place(module, ema.averages)
    ema.put_live_weights_back()


def test_a_move_takes_one_operation_a_parameter_and_no_python_beside_it(tmp_path: Path) -> None:
    def calls(count: int) -> int:
        module, ema = net(), ExponentialMovingAverage()
        module.more = paddle.nn.LayerList([paddle.nn.Linear(2, 2) for _ in range(count)])
        run = trainer(tmp_path, [ema])
        run.fit(module, batches())
        ema.move(run, module, 0.001)  # finds its pairs
        seen: list[str] = []
        sys.setprofile(lambda frame, event, argument: seen.append(event) if event == "call" else None)
        try:
            ema.move(run, module, 0.001)
        finally:
            sys.setprofile(None)
        return len(seen)

    assert calls(1) == calls(10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay=\.\.\.\) must be from 0.0 to below 1.0"),
        ({"start_step": -1}, r"start_step=\.\.\.\) must be >= 0, got -1"),
        ({"update_every_n_steps": 0}, r"update_every_n_steps=\.\.\.\) must be >= 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ExponentialMovingAverage(**settings)


def test_a_start_that_the_run_never_comes_to_is_told_at_its_begin(tmp_path: Path) -> None:
    steps = 2 * BATCHES
    with pytest.warns(UserWarning, match=rf"start_step={steps}\) averages nothing: the fit ends with step {steps}"):
        trainer(tmp_path / "a", [ExponentialMovingAverage(start_step=steps)]).fit(net(), batches())
    with warnings.catch_warnings(record=True) as told:
        trainer(tmp_path / "b", [ExponentialMovingAverage(start_step=steps - 1)]).fit(net(), batches())
    assert not [one for one in told if "averages nothing" in str(one.message)]


# -- validation inside fit ---------------------------------------------------------------------------------------------
def test_validation_sees_the_average_and_training_goes_on_as_if_there_were_none(tmp_path: Path) -> None:
    ema, notes = ExponentialMovingAverage(decay=0.5), Weights()
    run = trainer(tmp_path / "with", [ema, notes])
    run.fit(net(), batches(), batches(1, seed=1))
    with_average = whole_state(run)
    plain = trainer(tmp_path / "without")
    plain.fit(net(), batches(), batches(1, seed=1))

    assert differing(with_average, whole_state(plain)) == []
    assert same(averages(ema), {name: notes.in_validation[-1][name] for name in ema.averages})
    assert not same(notes.in_validation[-1], notes.after_batch[-1])
    assert same(notes.at_epoch_end[-1], notes.after_batch[-1])


def test_without_evaluate_with_average_validation_sees_the_live_weights(tmp_path: Path) -> None:
    notes = Weights()
    ema = ExponentialMovingAverage(decay=0.5, evaluate_with_average=False)
    trainer(tmp_path, [ema, notes], max_epochs=1).fit(net(), batches(), batches(1, seed=1))
    assert same(notes.in_validation[-1], notes.after_batch[-1])


class FailsInValidation(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 2 * BATCHES:
            raise ValueError("validation failed")
        super().validation_step(batch, batch_idx)


class SeesException(Callback):
    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self.weights = weights(module)


@pytest.mark.parametrize("ema_comes_first", [True, False])
def test_after_an_exception_in_validation_live_weights_are_in_the_module_and_in_the_checkpoint(
    tmp_path: Path, ema_comes_first: bool
) -> None:
    module, notes, ema = FailsInValidation(), Weights(), ExponentialMovingAverage(decay=0.5)
    saver, sees = ModelCheckpoint(save_on_exception=True), SeesException()
    run = trainer(tmp_path, [notes, ema, saver, sees] if ema_comes_first else [notes, saver, ema, sees])
    with pytest.raises(ValueError, match="validation failed"):
        run.fit(module, batches(), batches(1, seed=1))
    assert same(weights(module), notes.after_batch[-1])
    assert same(sees.weights, notes.after_batch[-1])
    saved = open_checkpoint(tmp_path / "version_0/latest")
    assert saved.entry.step == 2 * BATCHES
    assert same(saved.tensors("model.pdparams"), notes.after_batch[-1])
    held = averages(ema)
    assert same({name: saved.tensors("ema.pdparams")[name] for name in held}, held)


class StopsInValidation(Net):
    at = 2 * BATCHES

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.at and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        super().validation_step(batch, batch_idx)


def test_a_validation_abandoned_for_a_signal_leaves_live_weights_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    notes, ema = Weights(), ExponentialMovingAverage(decay=0.5)
    with pytest.raises(SystemExit):
        trainer(tmp_path / "cut", [ema, notes], max_epochs=3).fit(
            net(kind=StopsInValidation), batches(), batches(2, seed=1)
        )
    assert same(open_checkpoint(tmp_path / "cut/version_0/latest").tensors("model.pdparams"), notes.after_batch[-1])
    resumed_ema, whole_ema = ExponentialMovingAverage(decay=0.5), ExponentialMovingAverage(decay=0.5)
    resumed = trainer(tmp_path / "cut", [resumed_ema], max_epochs=3)
    resumed.fit(net(), batches(), batches(2, seed=1), ckpt_path="last")
    end = whole_state(resumed)
    whole = trainer(tmp_path / "whole", [whole_ema], max_epochs=3)
    whole.fit(net(), batches(), batches(2, seed=1))
    assert differing(whole_state(whole), end) == []
    assert same(averages(whole_ema), averages(resumed_ema))
    assert whole.history == resumed.history


# -- checkpoints -------------------------------------------------------------------------------------------------------
def test_every_checkpoint_holds_live_weights_and_averages_apart(tmp_path: Path) -> None:
    notes, ema = Weights(), ExponentialMovingAverage(decay=0.5)
    kept: list[dict[str, np.ndarray]] = []

    class Averages(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            kept.append(averages(ema))

    saver = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    run = trainer(tmp_path, [ema, notes, Averages(), saver])
    run.fit(net(), batches(), batches(1, seed=1))
    entries = run.checkpoints.entries()
    steps = {entry.step for entry in entries}
    assert steps == set(range(1, 2 * BATCHES + 1))
    for entry in entries:
        saved = open_checkpoint(entry.path)
        assert same(saved.tensors("model.pdparams"), notes.after_batch[entry.step - 1])
        assert same(saved.tensors("ema.pdparams"), kept[entry.step - 1])


def test_a_save_while_the_averages_are_in_place_puts_the_live_weights_back_first(tmp_path: Path) -> None:
    ema, module = ExponentialMovingAverage(decay=0.5), net()
    run = trainer(tmp_path, [ema])
    run.fit(module, batches())
    live = weights(module)
    ema.put_averages_in_place(module, ema.averages)
    checkpoint: dict[str, Any] = {"files": {}}
    ema.on_save_checkpoint(run, module, checkpoint)
    assert same(weights(module), live)
    assert same({name: value.numpy() for name, value in checkpoint["files"]["ema.pdparams"].items()}, averages(ema))


@pytest.mark.parametrize("cut", range(1, 2 * BATCHES))
def test_a_run_resumed_at_any_step_ends_with_the_same_average(tmp_path: Path, cut: int) -> None:
    def run(root: Path, **settings: Any) -> tuple[Trainer, ExponentialMovingAverage]:
        ema = ExponentialMovingAverage(decay=0.9, warmup=True, start_step=2, update_every_n_steps=2)
        return trainer(root, [ema], **settings), ema

    whole, whole_ema = run(tmp_path / "whole")
    whole.fit(net(), batches(), batches(1, seed=1))
    expected = whole_state(whole)
    first, _ = run(tmp_path / "parts", max_steps=cut)
    first.fit(net(), batches(), batches(1, seed=1))
    second, second_ema = run(tmp_path / "parts")
    second.fit(net(), batches(), batches(1, seed=1), ckpt_path="last")
    assert differing(expected, whole_state(second)) == []
    assert differing(averages(whole_ema), averages(second_ema)) == []
    assert whole_ema.state_dict() == second_ema.state_dict()
    assert whole.history == second.history  # validation with the average included


def test_a_fresh_fit_begins_a_fresh_average(tmp_path: Path) -> None:
    ema = ExponentialMovingAverage(decay=0.9)
    run = trainer(tmp_path, [ema])
    run.fit(net(), batches())
    first = averages(ema)
    run.fit(net(), batches())
    assert same(first, averages(ema))


def test_two_averages_need_two_names(tmp_path: Path) -> None:
    def fit(*callbacks: ExponentialMovingAverage) -> None:
        trainer(tmp_path, callbacks, max_epochs=1).fit(net(), batches())

    unused = ExponentialMovingAverage(evaluate_with_average=False)
    with pytest.raises(ConfigurationError, match=r"two callbacks keep averages in ema.pdparams"):
        fit(ExponentialMovingAverage(), unused)
    with pytest.raises(ConfigurationError, match=r"evaluation can use one average"):
        fit(ExponentialMovingAverage(), ExponentialMovingAverage(0.5, name="ema_fast"))
    fit(ExponentialMovingAverage(evaluate_with_average=False), ExponentialMovingAverage(0.5, name="ema_fast"))
    assert {"ema.pdparams", "ema_fast.pdparams"} <= set(open_checkpoint(tmp_path / "version_1/latest").files)


def test_tied_weights_are_averaged_once_and_saved_under_both_names(tmp_path: Path) -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other_head = paddle.nn.Linear(6, 2)
            self.other_head.weight = self.head.weight

    ema = ExponentialMovingAverage(0.5)
    trainer(tmp_path, [ema], max_epochs=1).fit(Tied(), batches())
    assert "other_head.weight" not in ema.averages
    saved = open_checkpoint(tmp_path / "version_0/latest").tensors("ema.pdparams")
    assert np.array_equal(saved["head.weight"], saved["other_head.weight"])
    assert np.array_equal(saved["head.weight"], ema.averages["head.weight"].numpy())


# -- test, predict, load -----------------------------------------------------------------------------------------------
def test_test_uses_the_averages_of_the_checkpoint_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = batches(), batches(2, seed=1)
    monitor = ModelCheckpoint(monitor="val_loss")
    trainer(tmp_path, [ExponentialMovingAverage(decay=0.5), monitor]).fit(net(), *data)
    best = monitor.best_model_score

    for evaluate_with_average in (True, False):
        ema = ExponentialMovingAverage(decay=0.5, evaluate_with_average=evaluate_with_average)
        module, tester = net(), trainer(tmp_path, [ema])
        (metrics,) = tester.test(module, data[1], ckpt_path="best", verbose=False)
        assert (metrics["test_loss"] == best) is evaluate_with_average
        raw = open_checkpoint(tmp_path / "version_0/best").tensors("model.pdparams")
        assert same(weights(module), raw)  # put back afterwards
    assert "with the averaged weights in ema.pdparams" in capsys.readouterr().out


def test_test_after_fit_uses_the_average_of_that_fit(tmp_path: Path) -> None:
    data = batches(), batches(2, seed=1)
    run = trainer(tmp_path, [ExponentialMovingAverage(decay=0.5)])
    run.fit(net(), *data)
    (metrics,) = run.test(dataloaders=data[1], verbose=False)
    assert metrics["test_loss"] == run.history[-1]["val_loss"]


def test_a_checkpoint_without_an_average_is_tested_as_it_is_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path).fit(net(), batches())
    trainer(tmp_path, [ExponentialMovingAverage()]).test(net(), batches(1), ckpt_path="last", verbose=False)
    assert "has no ema.pdparams; its plain weights are used" in capsys.readouterr().out


def test_the_averages_file_loads_as_a_model(tmp_path: Path) -> None:
    ema = ExponentialMovingAverage(decay=0.5)
    trainer(tmp_path, [ema]).fit(net(), batches())
    for module in (
        Net.load_from_checkpoint(tmp_path / "version_0/latest/ema.pdparams"),
        loaded_by_paddle(tmp_path / "version_0/latest/ema.pdparams"),
    ):
        assert same(weights(module), averages(ema))


def test_an_average_of_another_name_loads_as_a_model_too(tmp_path: Path) -> None:
    ema = ExponentialMovingAverage(decay=0.5, name="ema_fast")
    trainer(tmp_path, [ema]).fit(net(), batches())
    module = Net.load_from_checkpoint(tmp_path / "version_0/latest/ema_fast.pdparams")
    assert same(weights(module), averages(ema))


def loaded_by_paddle(path: Path) -> Net:
    module = Net()
    missing, unexpected = module.set_state_dict(paddle.load(str(path)))
    assert not missing and not unexpected
    return module
