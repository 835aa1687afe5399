"""StochasticWeightAveraging and average_checkpoints: the mean they give, and what survives a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import as_if_started_again
from small_runs import BATCHES, batches, differing, net, same, trainer, weights, whole_state

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint, StochasticWeightAveraging
from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, average_checkpoints, open_checkpoint
from paddlelite_trainer.errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigurationError


class Notes(Callback):
    """The weights at each epoch's end, and the learning rate of each batch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, np.ndarray]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        self.rates.append(optimizer.get_lr())

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self.epochs.append(weights(module))


def with_schedule(module: Module) -> Any:
    schedule = paddle.optimizer.lr.ExponentialDecay(0.1, 0.9)
    return {
        "optimizer": paddle.optimizer.SGD(schedule, parameters=module.parameters()),
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }


def test_the_module_ends_with_the_mean_of_the_last_epochs_weights(tmp_path: Path) -> None:
    notes, swa, module = Notes(), StochasticWeightAveraging(0.01, swa_epoch_start=0.4), net()
    trainer(tmp_path, [notes, swa], max_epochs=5).fit(module, batches())
    ended = weights(module)
    for name in ("backbone.0.weight", "backbone.1.weight", "head.bias"):
        expected = np.mean([epoch[name] for epoch in notes.epochs[2:]], axis=0, dtype=np.float64)
        np.testing.assert_allclose(ended[name], expected, rtol=1e-6, atol=1e-7)
    assert not same(ended, notes.epochs[-1])


def test_the_learning_rate_anneals_to_swa_lrs_whatever_the_scheduler_does(tmp_path: Path) -> None:
    notes = Notes()
    swa = StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=2)
    trainer(tmp_path, [swa, notes], max_epochs=5).fit(net(with_schedule), batches())
    before = notes.rates[BATCHES - 1] * 0.9
    half_way = before + (1 - math.cos(math.pi / 2)) / 2 * (0.02 - before)
    assert notes.rates[BATCHES:] == pytest.approx([before] * 4 + [half_way] * 4 + [0.02] * 8)


def test_batch_norm_statistics_are_the_mean_over_the_training_data_of_the_averaged_model(tmp_path: Path) -> None:
    module = net()
    run = trainer(tmp_path, [StochasticWeightAveraging(0.01, swa_epoch_start=0)])
    run.fit(module, batches())
    hidden = [module.backbone[0](x).numpy() for x, _ in batches()]
    mean = np.mean([one.mean(axis=0) for one in hidden], axis=0)
    variance = np.mean([one.var(axis=0) for one in hidden], axis=0)
    np.testing.assert_allclose(module.backbone[1]._mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.backbone[1]._variance.numpy(), variance, rtol=1e-4, atol=1e-6)
    assert module.backbone[1]._momentum == 0.9
    run.save_checkpoint("swa")
    assert same(open_checkpoint(tmp_path / "version_0/swa").tensors("swa.pdparams"), weights(module))


def test_checkpoints_hold_the_live_weights_and_the_average_apart(tmp_path: Path) -> None:
    notes = Notes()
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=0, evaluate_with_average=True)
    trainer(tmp_path, [notes, swa]).fit(net(), batches(), batches(1, seed=1))
    saved = open_checkpoint(tmp_path / "version_0/latest")
    assert same(saved.tensors("model.pdparams"), notes.epochs[-1])
    assert not same(saved.tensors("swa.pdparams"), notes.epochs[-1])


@pytest.mark.parametrize("cut", [3, 4, 6, 8, 9, 11])
def test_a_resumed_run_ends_with_the_same_average(tmp_path: Path, cut: int) -> None:
    def run(root: Path, **settings: Any) -> Trainer:
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=1, annealing_epochs=1)
        return trainer(root, [swa], max_epochs=3, **settings)

    whole = run(tmp_path / "whole")
    whole.fit(net(with_schedule), batches())
    expected = whole_state(whole)
    run(tmp_path / "parts", max_steps=cut).fit(net(with_schedule), batches())
    resumed = run(tmp_path / "parts")
    resumed.fit(net(with_schedule), batches(), ckpt_path="last")
    assert differing(expected, whole_state(resumed)) == []


def test_a_run_resumed_at_the_rates_of_the_average_is_not_told_that_its_own_rate_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, ckpt_path in (({"max_steps": 6}, None), ({}, "last")):
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=1, annealing_epochs=0)
        trainer(tmp_path, [swa], max_epochs=3, **settings).fit(net(), batches(), ckpt_path=ckpt_path)
    told = capsys.readouterr().out
    assert "Resumed from" in told and "learning rate: saved" not in told


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_finished_run_has_its_average_when_it_is_started_again(tmp_path: Path, shuffle: bool) -> None:
    def run() -> dict[str, np.ndarray]:
        as_if_started_again()
        module = net()
        data: Any = batches()
        if shuffle:
            samples = [sample for x, y in data for sample in zip(x.numpy(), y.numpy())]
            data = paddle.io.DataLoader(samples, batch_size=8, shuffle=True)
        swa = StochasticWeightAveraging(0.01, swa_epoch_start=0)
        trainer(tmp_path, [swa, ModelCheckpoint()]).fit(module, data, ckpt_path="last")
        return weights(module)

    first = run()
    assert not same(first, open_checkpoint(tmp_path / "version_0/latest").tensors("model.pdparams"))
    assert differing(first, run()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swa_lrs": 0.0}, "must be > 0, got 0.0"),
        ({"swa_lrs": 0.1, "swa_epoch_start": 1.5}, "a share of max_epochs"),
        ({"swa_lrs": 0.1, "annealing_epochs": -1}, "must be >= 0, got -1"),
        ({"swa_lrs": 0.1, "annealing_strategy": "linaer"}, "Did you mean 'linear'"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StochasticWeightAveraging(**settings)


def test_a_share_of_max_epochs_without_max_epochs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give the epoch as an int"):
        trainer(tmp_path, [StochasticWeightAveraging(0.1)], max_epochs=-1, max_steps=4).fit(net(), batches())


@pytest.mark.parametrize("start", [2, 7, 1.0])
def test_a_start_that_the_run_never_comes_to_is_told_at_its_begin(tmp_path: Path, start: float) -> None:
    swa = StochasticWeightAveraging(0.1, swa_epoch_start=start)
    with pytest.warns(UserWarning, match=rf"swa_epoch_start={start}\) averages nothing: .* max_epochs=2"):
        trainer(tmp_path, [swa]).fit(net(), batches())
    assert swa.n_averaged == 0


def test_evaluation_cannot_use_two_averages(tmp_path: Path) -> None:
    both = [StochasticWeightAveraging(0.1, evaluate_with_average=True), ExponentialMovingAverage()]
    with pytest.raises(ConfigurationError, match="evaluation can use one average"):
        trainer(tmp_path, both).fit(net(), batches())


# -- average_checkpoints -----------------------------------------------------------------------------------------------
def test_the_last_checkpoints_average_is_a_model_file(tmp_path: Path) -> None:
    notes = Notes()
    trainer(tmp_path, [notes, ModelCheckpoint(keep_last_n=3)], max_epochs=4).fit(net(), batches())
    path = average_checkpoints(tmp_path / "version_0", last_k=3)
    assert path == tmp_path / "version_0/average_last_3.pdparams"
    loaded = paddle.load(str(path))
    for name, values in notes.epochs[-1].items():
        expected = np.mean([epoch[name].astype("float64") for epoch in notes.epochs[-3:]], axis=0).astype(values.dtype)
        assert np.array_equal(loaded[name].numpy(), expected)
    module = type(net()).load_from_checkpoint(path)
    assert same(weights(module), {name: value.numpy() for name, value in loaded.items()})


def test_averages_can_be_averaged_and_go_where_they_are_told(tmp_path: Path) -> None:
    callbacks = [ExponentialMovingAverage(0.5), ModelCheckpoint(keep_last_n=2)]
    trainer(tmp_path, callbacks).fit(net(), batches())
    entries = CheckpointReader(tmp_path / "version_0").entries()
    path = average_checkpoints(tmp_path / "version_0", 2, to=tmp_path / "mean.pdparams", file="ema.pdparams")
    parts = [open_checkpoint(entry.path).tensors("ema.pdparams")["head.bias"] for entry in entries]
    expected = np.mean(parts, axis=0, dtype=np.float64).astype("float32")
    assert np.array_equal(paddle.load(str(path))["head.bias"].numpy(), expected)


def test_integers_are_the_newest_ones_and_bfloat16_is_averaged_as_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, (number, count) in enumerate([(1.0, 3), (2.0, 5), (6.0, 8)]):
        half = paddle.full([2, 3], number).astype("bfloat16")
        store.save(
            step=step,
            epoch=0,
            files={"model.pdparams": {"half": half, "count": np.array(count), "scalar": np.array(number)}},
            states={"trainer.json": {}},
            pins={f"p{step}": [store.candidate(step, 0).name]},
        )
    store.close()
    loaded = paddle.load(str(average_checkpoints(tmp_path, 3)))
    assert loaded["half"].dtype == paddle.bfloat16
    assert loaded["half"].astype("float32").numpy().tolist() == [[3.0] * 3] * 2
    assert int(loaded["count"]) == 8
    assert float(loaded["scalar"]) == 3.0


def test_too_few_or_different_checkpoints_are_errors(tmp_path: Path) -> None:
    trainer(tmp_path).fit(net(), batches())
    with pytest.raises(CheckpointNotFoundError, match="has 1 checkpoints, 2 are to be averaged"):
        average_checkpoints(tmp_path / "version_0", last_k=2)
    with pytest.raises(ConfigurationError, match="must be >= 1, got 0"):
        average_checkpoints(tmp_path / "version_0", last_k=0)
    store = CheckpointStore(tmp_path / "other")
    for step, shape in enumerate([[2], [3]]):
        store.save(
            step=step,
            epoch=0,
            files={"model.pdparams": {"w": np.zeros(shape)}},
            states={"trainer.json": {}},
            pins={f"p{step}": [store.candidate(step, 0).name]},
        )
    store.close()
    with pytest.raises(CheckpointMismatchError, match=r"w: float64\[2\] in step-000000000, float64\[3\]"):
        average_checkpoints(tmp_path / "other", last_k=2)


# -- what the statistics are computed from -----------------------------------------------------------------------------
class Normed(Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.norm, self.out = paddle.nn.BatchNorm1D(4), paddle.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        return self.out(self.norm(x)).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class TakesX(Normed):
    def forward(self, x: Any) -> Any:
        return self.out(self.norm(x))


class TakesTwo(Normed):
    def forward(self, x: Any, mask: Any) -> Any:
        return self.out(self.norm(x * mask))


class Predicts(Normed):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.out(self.norm(batch["x"]))


X = paddle.arange(32, dtype="float32").reshape([8, 4])


@pytest.mark.parametrize(
    ("make", "batch", "problem"),
    [
        (TakesX, {"x": X}, "would be given a dict"),
        (Normed, [X, X], "has no forward"),
        (TakesTwo, [X, X], "cannot be called with the batch's first entry"),
    ],
)
def test_a_batch_that_predict_step_cannot_take_is_refused_before_training(
    tmp_path: Path, make: Any, batch: Any, problem: str
) -> None:
    module = make()
    with pytest.raises(ConfigurationError, match=rf"{problem}.*write predict_step"):
        trainer(tmp_path, [StochasticWeightAveraging(0.01, swa_epoch_start=0)]).fit(module, [batch] * 3)
    assert module.steps == 0


def test_a_predict_step_of_one_s_own_takes_any_batch(tmp_path: Path) -> None:
    module = Predicts()
    trainer(tmp_path, [StochasticWeightAveraging(0.01, swa_epoch_start=0)]).fit(module, [{"x": X}] * 3)
    assert module.norm._mean.numpy() == pytest.approx(X.numpy().mean(0), rel=1e-5)
