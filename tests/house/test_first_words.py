"""What newcomers from Paddle, Lightning and NumPy write first: it works, or one sentence names what is meant here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, TrainingError


def test_a_backward_left_in_training_step_is_named() -> None:
    class ByHand(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            loss.backward()
            return loss

    with pytest.raises(TrainingError, match=r"ByHand.training_step .* called backward .*automatic_optimization = F"):
        quiet_trainer().fit(ByHand(), make_batches(2))


# -- arrays ------------------------------------------------------------------------------------------------------------
def arrays(kind: str = "float32") -> list[Any]:
    return [(x.numpy().astype(kind), y.numpy()) for x, y in make_batches(6)]


class Readable:
    """An iterable that is no list."""

    def __iter__(self) -> Any:
        return iter(arrays())


class Lazy(list[Any]):
    """A sequence that makes its batches when it is asked."""


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("loader", [list, tuple, iter, Lazy, lambda batches: Readable()])
def test_batches_of_arrays_train_as_those_of_tensors_do(loader: Any, kind: str) -> None:
    expected, module = Classifier(), Classifier()
    quiet_trainer(seed=1).fit(expected, make_batches(6))
    quiet_trainer(seed=1).fit(module, loader(arrays(kind)), arrays())
    assert same_weights(weights_of(expected), weights_of(module))


def test_arrays_are_tensors_in_every_stage_and_keep_their_containers() -> None:
    seen: list[Any] = []

    class Looks(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(batch)

        test_step = predict_step = validation_step

    batches = [{"x": np.ones([2, 4]), "names": np.array(["a", "b"]), "deep": (np.int32([1, 2]), "text")}]
    module, trainer = Looks(), quiet_trainer()
    trainer.validate(module, batches)
    trainer.test(module, batches)
    trainer.predict(module, batches)
    assert len(seen) == 3
    for batch in seen:
        assert (str(batch["x"].dtype), str(batch["deep"][0].dtype)) == ("paddle.float32", "paddle.int32")
        assert isinstance(batch["names"], np.ndarray)
        assert isinstance(batch["deep"], tuple) and batch["deep"][1] == "text"
    assert isinstance(batches[0]["x"], np.ndarray)


def test_in_64_bits_arrays_stay_so() -> None:
    class Looks(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert str(batch[0].dtype) == "paddle.float64"
            assert float(batch[0][0, 0]) == 0.1
            return self.loss(batch)

    quiet_trainer(precision="64-true").fit(Looks(), [(np.full([8, 4], 0.1), np.zeros(8, "int64"))])


X, Y = np.random.RandomState(0).randn(64, 4).astype("float32"), np.zeros(64, "int64")


@pytest.mark.parametrize(
    "data",
    [(X, Y), [X, Y], (X, X[:, :1]), (paddle.to_tensor(X), paddle.to_tensor(Y)), X, paddle.to_tensor(X), (X, Y, Y)],
    ids=["arrays", "a list", "numbers to predict", "tensors", "one array", "one tensor", "three"],
)
def test_data_as_a_whole_are_no_batches(data: Any) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"train_dataloader is .*DataLoader\(.*Dataset\(\[.*batch_size="):
        quiet_trainer().fit(Classifier(), data)


def test_a_list_of_plain_batches_stays_one() -> None:
    class Plain(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).mean()

    lengths = [paddle.ones([8, 3, 4]), paddle.ones([8, 5, 4])]
    for batches in ([paddle.ones([8, 4])] * 2, (paddle.ones([8, 4]), paddle.ones([8, 4])), lengths):
        trainer = quiet_trainer()
        trainer.fit(Plain(), batches)
        assert trainer.global_step == 2


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("package", "name", "words"),
    [
        ("paddlelite_trainer", "LightningModule", "called Module here: from paddlelite_trainer import Module"),
        ("paddlelite_trainer", "LightningDataModule", "called DataModule here"),
        ("paddlelite_trainer", "Model", "a Module and a Trainer here"),
        ("paddlelite_trainer", "ModelCheckpoint", "from paddlelite_trainer.callbacks import ModelCheckpoint"),
        ("paddlelite_trainer.callbacks", "LearningRateMonitor", "called LRMonitor here"),
        ("paddlelite_trainer.callbacks", "RichProgressBar", "called ProgressBar here"),
        ("paddlelite_trainer.callbacks", "ReduceLROnPlateau", r"ReduceOnPlateau\(0.1\), 'monitor': 'val_loss'"),
        ("paddlelite_trainer.callbacks", "LRScheduler", "from configure_optimizers"),
    ],
)
def test_an_import_of_another_framework_s_name(package: str, name: str, words: str) -> None:
    with pytest.raises(ImportError, match=f"{package} has no {name}: .*{words}"):
        exec(f"from {package} import {name}", {})


@pytest.mark.parametrize("package", ["paddlelite_trainer", "paddlelite_trainer.callbacks"])
def test_any_other_name_is_python_s_own_error(package: str) -> None:
    with pytest.raises(ImportError, match="cannot import name 'Traner'"):
        exec(f"from {package} import Traner", {})
    assert not hasattr(__import__(package, fromlist=["Traner"]), "Traner")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluate", "trainer.validate(module, loader) or trainer.test"),
        ("prepare", "configure_optimizers"),
        ("lr_find", "Tuner(trainer).lr_find"),
        ("validat", "Did you mean 'validate'?"),
    ],
)
def test_a_method_that_a_trainer_elsewhere_has(name: str, words: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(quiet_trainer(), name)
    assert str(raised.value).startswith(f"Trainer has no {name!r}. ")
    assert words in str(raised.value)
    assert not hasattr(quiet_trainer(), name)


def test_an_attribute_error_within_a_property_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlelite_trainer import Trainer

    def fails(self: Any) -> None:
        raise AttributeError("mine")

    monkeypatch.setattr(Trainer, "history", property(fails))
    with pytest.raises(AttributeError, match=r"^mine$"):
        _ = quiet_trainer().history


@pytest.mark.parametrize(
    ("method", "argument", "words"),
    [
        ("fit", "epochs", "Here it is Trainer(max_epochs=...)."),
        ("fit", "drop_last", "Here it is paddle.io.DataLoader(dataset, drop_last=...)."),
        ("fit", "val_dataloader", "Did you mean 'val_dataloaders'?"),
        ("fit", "eval_data", "Here it is val_dataloaders."),
        ("fit", "wholly_unknown", "'wholly_unknown'."),
        ("validate", "eval_data", "Here it is dataloaders."),
        ("test", "dataloader", "Did you mean 'dataloaders'?"),
        ("predict", "drop_last", "Here it is paddle.io.DataLoader"),
    ],
)
def test_an_argument_that_belongs_elsewhere(method: str, argument: str, words: str) -> None:
    with pytest.raises(ConfigurationTypeError) as raised:
        getattr(quiet_trainer(), method)(Classifier(), **{argument: 3})
    assert str(raised.value).startswith(f"Trainer.{method} has no argument {argument!r}.")
    assert words in str(raised.value)


TAGS = ["path.ckpt", "out/path.ckpt", "/out/path", "path.pdparams", r"out\path.pt", Path("path.pth")]


@pytest.mark.parametrize("tag", TAGS, ids=str)
def test_a_file_s_name_for_save_checkpoint(tag: Any, tmp_path: Path) -> None:
    trainer = quiet_trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(1))
    with pytest.raises(ConfigurationError, match=r"takes a name and no path, got .*: .*\('path'\) keeps "):
        trainer.save_checkpoint(tag)
    assert trainer.save_checkpoint("v1.5") is not None


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("O1", "Paddle's level O1 is '16-mixed' or 'bf16-mixed' here."),
        ("O2", "Paddle's level O2 is '16-true' or 'bf16-true' here."),
        ("O0", "Paddle's level O0 is '32-true' here."),
    ],
)
def test_paddle_s_levels_of_precision(precision: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        quiet_trainer(precision=precision)
    assert str(raised.value).endswith(f"got {precision!r}. {words}")


@pytest.mark.parametrize(
    ("accelerator", "words"),
    [
        ("gpu:0", "names one device: pass accelerator='gpu', devices=[0]."),
        ("npu:3", "names one device: pass accelerator='npu', devices=[3]."),
        ("cuda", "Paddle calls it 'gpu'."),
        ("cuda:1", "names one device: pass accelerator='gpu', devices=[1]."),
    ],
)
def test_a_device_s_name_for_accelerator(accelerator: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        quiet_trainer(accelerator=accelerator)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ModelCheckpoint", "paddlelite_trainer.callbacks.ModelCheckpoint keeps checkpoints"),
        ("ProgBarLogger", "paddlelite_trainer.callbacks.ProgressBar shows"),
    ],
)
def test_a_callback_of_paddle_model(name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"is not used here: {words}"):
        quiet_trainer(callbacks=[getattr(paddle.callbacks, name)()])


# -- a class written in a hurry ----------------------------------------------------------------------------------------
def test_a_module_without_super_init() -> None:
    class Hurried(Classifier):
        def __init__(self) -> None:
            self.hidden = 3

    with pytest.raises(ConfigurationError, match=r"Hurried.__init__ does not call super\(\).__init__\(\)"):
        quiet_trainer().fit(Hurried(), make_batches(2))


def test_a_layer_whose_name_a_method_hides() -> None:
    class Hidden(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.log = paddle.nn.Linear(4, 4)  # type: ignore[assignment]
            self.blocks = paddle.nn.Sequential(("train", paddle.nn.Linear(4, 4)))

    with pytest.warns(
        UserWarning, match="Hidden has a layer or parameter 'log', which `self.log` does not reach"
    ) as told:
        quiet_trainer().validate(Hidden(), make_batches(2))
    assert not any("train" in str(one.message) for one in told)


@pytest.mark.parametrize("value", [{"backend": "nope"}, {"full_graph": "yes"}, {"layer": ["net"]}])
def test_what_compile_does_not_know(value: Any) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"'full_graph' \(True or False\), 'backend' \(None or 'CINN'\)"):
        quiet_trainer(compile=value)
