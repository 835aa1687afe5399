"""Tuner: what it finds, and that it leaves no trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer
from paddle.io import DataLoader, TensorDataset

from paddlelite_trainer import DataModule, Module, Trainer, Tuner, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.tuner import LRFinderResult

SAMPLES = 48


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(4, 8), paddle.nn.BatchNorm1D(8), paddle.nn.Dropout(0.1), paddle.nn.Linear(8, 3)
        )
        self.register_buffer("seen", paddle.zeros([1]))
        self.steps = 0
        self.batch_size = 4
        self.hparams.lr = 0.1
        self.memory = 10_000
        """The largest batch that fits."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if len(x) > self.memory:
            raise MemoryError("ResourceExhaustedError: out of memory")
        self.steps += 1
        self.seen += 1
        self.last_batch = batch_idx
        return paddle.nn.functional.cross_entropy(self.net(x), y)

    def train_dataloader(self) -> Any:
        return DataLoader(samples(), batch_size=self.batch_size, shuffle=True)

    def configure_optimizers(self) -> Any:
        schedule = paddle.optimizer.lr.StepDecay(self.hparams.lr, 1, 0.5)
        return {
            "optimizer": paddle.optimizer.AdamW(
                schedule, parameters=[{"params": self.net.parameters(), "learning_rate": 0.5}]
            ),
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def samples() -> Any:
    numbers = np.random.RandomState(0)
    x = numbers.randn(SAMPLES, 4).astype("float32")
    return TensorDataset([paddle.to_tensor(x), paddle.to_tensor((x[:, :3]).argmax(1))])


def net(kind: type[Net] = Net) -> Net:
    seed_everything(2)
    return kind()


def trainer(root: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(**{"max_epochs": 1, "accelerator": "cpu", "default_root_dir": root, **quiet, **settings})


def everything_of(module: Net, run: Trainer, root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.numpy().tolist() for name, value in module.state_dict().items()}
    found["stop_gradient"] = [parameter.stop_gradient for parameter in module.parameters()]
    found["rates"] = [parameter.optimize_attr["learning_rate"] for parameter in module.parameters()]
    found["gradients"] = [None if p.grad is None else p.grad.numpy().tolist() for p in module.parameters()]
    found["modes"] = [layer.training for layer in module.sublayers(include_self=True)]
    found["plain"] = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str))}
    found["attributes"] = sorted(vars(module))
    found["hparams"] = dict(module.hparams)
    found["buffers"] = sorted(name for name, _ in module.named_buffers())
    found["trainer"] = id(module._trainer)
    found["files"] = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    found["progress"] = run.progress.state_dict()
    found["optimizers"] = [
        {key: value.numpy().tolist() for key, value in optimizer.state_dict().items() if hasattr(value, "numpy")}
        for optimizer in run.optimizers
    ]
    states = random.getstate(), np.random.get_state()[1].tolist(), paddle.get_rng_state()
    found["random"] = random.random(), np.random.rand(), float(paddle.rand([1]).item())
    random.setstate(states[0])
    np.random.seed(0)
    paddle.set_rng_state(states[2])
    return found


def prepared(root: Path, **settings: Any) -> tuple[Trainer, Net]:
    """A module that has been trained, is half frozen and has gradients waiting."""
    run, module = trainer(root, **settings), net()
    run.fit(module, DataLoader(samples(), batch_size=8))
    module.eval()
    module.net[0].weight.stop_gradient = True
    module.net(paddle.ones([2, 4])).sum().backward()
    np.random.seed(0)
    return run, module


def test_lr_find_leaves_everything_as_it_found_it(tmp_path: Path) -> None:
    run, module = prepared(tmp_path)
    before = everything_of(module, run, tmp_path)
    Tuner(run).lr_find(module, num_training=12)
    after = everything_of(module, run, tmp_path)
    assert {name for name in before if before[name] != after[name]} == set()


def test_scale_batch_size_leaves_everything_as_it_found_it(tmp_path: Path) -> None:
    run, module = prepared(tmp_path)
    module.memory = 20
    before = everything_of(module, run, tmp_path)
    Tuner(run).scale_batch_size(module)
    after = everything_of(module, run, tmp_path)
    assert {name for name in before if before[name] != after[name]} == set()


def test_after_an_error_everything_is_as_it_was_too(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.steps == 3:
                raise KeyError("no such key")
            return super().training_step(batch, batch_idx)

    run, module = trainer(tmp_path), net(Fails)
    run.model = module
    np.random.seed(0)
    before = everything_of(module, run, tmp_path)
    with pytest.raises(KeyError, match="no such key"):
        Tuner(run).lr_find(module)
    after = everything_of(module, run, tmp_path)
    assert {name for name in before if before[name] != after[name]} == set()


def test_a_fit_after_tuning_is_the_fit_without(tmp_path: Path) -> None:
    def fitted(tune: bool) -> dict[str, list[float]]:
        module, run = net(), trainer(tmp_path / str(tune), seed=5)
        if tune:
            Tuner(run).lr_find(module, num_training=20)
            Tuner(run).scale_batch_size(module)
        run.fit(module)
        return {name: value.numpy().tolist() for name, value in module.state_dict().items()}

    assert fitted(tune=True) == fitted(tune=False)


# -- lr_find -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["exponential", "linear"])
@pytest.mark.parametrize("window", [1, 2])
def test_the_rates_tried_run_from_the_least_to_the_largest_whatever_the_scheduler_does(
    tmp_path: Path, mode: Any, window: int
) -> None:
    used: list[float] = []

    class Watched(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            used.append(optimizer.get_lr())

    run = trainer(tmp_path, accumulate_grad_batches=window)
    found = Tuner(run).lr_find(
        net(Watched), min_lr=1e-4, max_lr=1e-1, num_training=7, mode=mode, early_stop_threshold=None
    )
    expected = np.geomspace(1e-4, 1e-1, 7) if mode == "exponential" else np.linspace(1e-4, 1e-1, 7)
    assert used == found.learning_rates == pytest.approx(expected.tolist())
    assert len(found.losses) == 7
    assert found.results == {"lr": found.learning_rates, "loss": found.losses}


def test_the_losses_are_smoothed_as_a_hand_written_loop_would(tmp_path: Path) -> None:
    raw: list[float] = []

    class Watched(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            raw.append(float(outputs))

    found = Tuner(trainer(tmp_path)).lr_find(net(Watched), num_training=9)
    average, smoothed = 0.0, []
    for step, loss in enumerate(raw, start=1):
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98**step))
    assert found.losses == pytest.approx(smoothed)


def test_it_stops_where_the_loss_diverges(tmp_path: Path) -> None:
    class Diverges(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (1.0 if self.global_step < 6 else 1e6)

    found = Tuner(trainer(tmp_path)).lr_find(net(Diverges), num_training=50)
    assert len(found.losses) == 7


def test_the_suggestion_is_the_steepest_fall() -> None:
    rates = np.geomspace(1e-5, 1.0, 51).tolist()
    losses = [1.0 / (1.0 + np.exp(4 * (np.log10(rate) + 2))) for rate in rates]  # steepest at 1e-2
    assert LRFinderResult(rates, losses).suggestion() == pytest.approx(1e-2, rel=0.3)
    assert LRFinderResult(rates[:4], losses[:4]).suggestion() is None
    assert LRFinderResult(rates, [float("nan")] * 51).suggestion() is None


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rates = np.geomspace(1e-5, 1.0, 51).tolist()
    found = LRFinderResult(rates, [1.0 / (1.0 + rate * 100) for rate in rates])
    found.plot(tmp_path / "lr.png")
    found.plot(tmp_path / "lr.svg", suggest=False)
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert "learning rate" in (tmp_path / "lr.svg").read_text() or "<svg" in (tmp_path / "lr.svg").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_lr": 0.0}, "needs 0 < min_lr < max_lr"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "needs 0 < min_lr < max_lr"),
        ({"num_training": 1}, "must be >= 2, got 1"),
        ({"mode": "log"}, "must be 'exponential' or 'linear', got 'log'"),
    ],
)
def test_wrong_settings_of_lr_find_are_errors(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Tuner(trainer(tmp_path)).lr_find(net(), **settings)


# -- scale_batch_size --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "memory", "settings", "expected"),
    [
        ("power", 20, {}, 16),
        ("binsearch", 20, {}, 20),
        ("binsearch", 7, {"init_val": 3}, 7),
        ("power", 1000, {}, 32),  # 64 would need more samples than there are
        ("power", 1000, {"max_val": 12}, 12),
        ("binsearch", 2, {}, 2),
    ],
)
def test_the_batch_size_found_is_the_largest_that_fits(
    tmp_path: Path, mode: Any, memory: int, settings: dict[str, Any], expected: int
) -> None:
    module = net()
    module.memory = memory
    assert Tuner(trainer(tmp_path)).scale_batch_size(module, mode=mode, **settings) == expected
    assert module.batch_size == 4


def test_it_looks_in_hparams_and_in_the_datamodule(tmp_path: Path) -> None:
    class InHparams(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=self.hparams.size)

    class Data(DataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=self.batch_size, drop_last=True)

    module = net(InHparams)
    module.hparams.size = 2
    tuner = Tuner(trainer(tmp_path))
    module.memory = 9
    assert tuner.scale_batch_size(module, batch_arg_name="size") == 8
    assert module.hparams.size == 2
    data = Data()
    assert tuner.scale_batch_size(net(), data) == 32
    assert data.batch_size == 2


def test_what_it_cannot_scale_is_an_error(tmp_path: Path) -> None:
    class Deaf(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=8)

    tuner = Tuner(trainer(tmp_path))
    with pytest.raises(ConfigurationError, match="found no 'size'"):
        tuner.scale_batch_size(net(), batch_arg_name="size")
    with pytest.raises(ConfigurationError, match="gave a batch of 8 although batch_size was 2: it does not read it"):
        tuner.scale_batch_size(net(Deaf))
    module = net()
    module.memory = 1
    with pytest.raises(ConfigurationError, match="init_val=2 already runs out of memory"):
        tuner.scale_batch_size(module)
    with pytest.raises(ConfigurationError, match="must be 'power' or 'binsearch'"):
        tuner.scale_batch_size(net(), mode="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"init_val=\.\.\.\) must be >= 1, got 0"):
        tuner.scale_batch_size(net(), init_val=0)


def test_it_looks_in_the_hparams_of_the_datamodule_too(tmp_path: Path) -> None:
    class Data(DataModule):
        def __init__(self, batch_size: int = 2) -> None:
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            self.hparams.left_behind = True
            return DataLoader(samples(), batch_size=self.hparams.batch_size, drop_last=True)

    tuner, data, module = Tuner(trainer(tmp_path)), Data(), net()
    assert tuner.scale_batch_size(module, data) == 32
    assert data.hparams == {"batch_size": 2}
    tuner.scale_batch_size(module, data, update_attr=True)
    assert data.hparams == {"batch_size": 32}
    assert module.batch_size == 4


# -- what a module brings along ----------------------------------------------------------------------------------------
class Watches(Classifier):
    """A plateau schedule on a validation metric, which never comes in a try."""

    def configure_optimizers(self) -> Any:
        schedule = paddle.optimizer.lr.ReduceOnPlateau(0.1, patience=1)
        optimizer = paddle.optimizer.SGD(schedule, parameters=self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class BringsCallbacks(Classifier):
    def configure_callbacks(self) -> list[Any]:
        return [ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss")]


class ReadsMaxEpochs(Classifier):
    def configure_optimizers(self) -> Any:
        epochs = self.trainer.max_epochs
        assert epochs == 3
        return paddle.optimizer.SGD(
            paddle.optimizer.lr.CosineAnnealingDecay(0.1, T_max=epochs), parameters=self.parameters()
        )


@pytest.mark.parametrize("make", [Watches, BringsCallbacks, ReadsMaxEpochs])
def test_lr_find_runs_past_an_epoch_s_end_with_what_the_module_brings(make: Any) -> None:
    found = Tuner(quiet_trainer(max_epochs=3)).lr_find(make(), make_batches(3), num_training=20)
    assert len(found.losses) == 20


@pytest.mark.parametrize("make", [Watches, BringsCallbacks, ReadsMaxEpochs])
def test_scale_batch_size_runs_with_what_the_module_brings(make: Any) -> None:
    class Sized(make):  # type: ignore[misc]
        batch_size = 2

        def train_dataloader(self) -> Any:
            return make_batches(2, batch_size=self.batch_size)

    assert Tuner(quiet_trainer(max_epochs=3)).scale_batch_size(Sized(), max_val=8) == 8


def test_a_module_that_never_steps_is_told_instead_of_hanging() -> None:
    class Idle(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ConfigurationError, match=r"Idle\.training_step takes no optimizer step"):
        Tuner(quiet_trainer(max_epochs=3)).lr_find(Idle(), make_batches(3), num_training=5)


# -- as Lightning's users call it --------------------------------------------------------------------------------------
def test_lr_find_sets_what_it_suggests_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = net()
    tuner = Tuner(trainer(tmp_path))
    found = tuner.lr_find(module, num_training=20, update_attr=True)
    assert found.suggestion() == module.hparams.lr != 0.1
    assert f"hparams.lr is now {module.hparams.lr:.6g}" in capsys.readouterr().out
    module.rate = 0.5
    found = tuner.lr_find(module, num_training=20, update_attr=True, attr_name="rate")
    assert found.suggestion() == module.rate
    assert "lr_find suggests" not in capsys.readouterr().out


def test_lr_find_says_that_it_sets_nothing_where_there_is_something_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Tuner(trainer(tmp_path)).lr_find(net(), num_training=20)
    told = capsys.readouterr().out
    assert f"lr_find suggests {found.suggestion():.6g}" in told
    assert "nothing is set; lr_find(update_attr=True) sets hparams.lr" in told


@pytest.mark.parametrize("update_attr", [False, True])
def test_lr_find_says_where_it_has_nothing_to_suggest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], update_attr: bool
) -> None:
    module = net()
    found = Tuner(trainer(tmp_path)).lr_find(module, num_training=5, update_attr=update_attr)
    assert (found.suggestion(), module.hparams.lr) == (None, 0.1)
    told = capsys.readouterr().out
    assert "Tuner: lr_find has nothing to suggest: 5 rates were tried, 5 with a finite loss" in told
    assert "first 10 and the last are left out and 3 must be left; hparams.lr stays 0.1" in told


def test_lr_find_refuses_to_set_what_is_not_there_before_it_tries(tmp_path: Path) -> None:
    module = net()
    tuner = Tuner(trainer(tmp_path))
    with pytest.raises(ConfigurationError, match=r"lr_find\(attr_name='learning'\): neither Net nor its hparams"):
        tuner.lr_find(module, attr_name="learning", update_attr=True)
    del module.hparams["lr"]
    with pytest.raises(ConfigurationError, match=r"found no 'lr' or 'learning_rate'.*pass attr_name"):
        tuner.lr_find(module, update_attr=True)
    assert module.steps == 0


def test_the_tuner_takes_what_lightning_s_takes(tmp_path: Path) -> None:
    class Data(DataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=self.batch_size, drop_last=True)

    tuner = Tuner(trainer(tmp_path))
    loader = DataLoader(samples(), batch_size=8)
    assert len(tuner.lr_find(net(), loader, loader, method="fit", num_training=3).losses) == 3
    assert len(tuner.lr_find(net(), Data(), num_training=3).losses) == 3
    assert tuner.scale_batch_size(net(), datamodule=Data(), method="fit") == 32
    with pytest.raises(ConfigurationError, match=r"lr_find\(method='validate'\): it tries by training, .* 'fit'"):
        tuner.lr_find(net(), loader, method="validate")
    with pytest.raises(ConfigurationError, match=r"scale_batch_size\(method='test'\)"):
        tuner.scale_batch_size(net(), method="test")
    with pytest.raises(ConfigurationError, match=r"a loader has its batch size already.*train_dataloader"):
        tuner.scale_batch_size(net(), loader)


@pytest.mark.parametrize(
    ("mode", "settings", "expected"),
    [
        ("power", {"max_trials": 2}, 4),
        ("binsearch", {"max_trials": 5}, 16),  # 2, 4, 8, 16, and 32 is too large
        ("binsearch", {"margin": 0.25}, 15),
        ("binsearch", {"margin": 0.99}, 1),
    ],
)
def test_the_search_for_a_batch_size_ends_after_max_trials_and_leaves_a_margin(
    tmp_path: Path, mode: Any, settings: dict[str, Any], expected: int
) -> None:
    module = net()
    module.memory = 20
    assert Tuner(trainer(tmp_path)).scale_batch_size(module, mode=mode, **settings) == expected


def test_scale_batch_size_sets_what_it_finds_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = net()
    module.memory = 20
    tuner = Tuner(trainer(tmp_path))
    tuner.scale_batch_size(module)
    assert "scale_batch_size found 16: nothing is set" in capsys.readouterr().out
    assert module.batch_size == 4
    tuner.scale_batch_size(module, update_attr=True)
    assert module.batch_size == 16


def test_wrong_settings_of_scale_batch_size_are_errors(tmp_path: Path) -> None:
    tuner = Tuner(trainer(tmp_path))
    with pytest.raises(ConfigurationError, match=r"max_trials=\.\.\.\) must be >= 1, got 0"):
        tuner.scale_batch_size(net(), max_trials=0)
    with pytest.raises(ConfigurationError, match=r"margin=\.\.\.\) must be from 0.0 to below 1.0, got 1.0"):
        tuner.scale_batch_size(net(), margin=1.0, mode="binsearch")
    with pytest.raises(ConfigurationError, match=r"margin=0.1\) is for mode='binsearch'"):
        tuner.scale_batch_size(net(), margin=0.1)
