"""Hyper-parameters: what a checkpoint can hold comes back, and what it cannot is refused where it is given."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Logger
from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError, ConfigurationTypeError


class AttrDict(dict):
    """As the configuration objects of Paddle's tools: a missing attribute is a KeyError."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclasses.dataclass
class Optim:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


class Mode(enum.Enum):
    FAST = "fast"


class Plain(Classifier):
    """Without hyper-parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hparams.clear()
        self.hparams_initial.clear()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class Configured(Plain):
    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


def back(root: Path, module: Any) -> Any:
    trainer = quiet_trainer(default_root_dir=root, enable_checkpointing=True)
    trainer.fit(module, make_batches(2))
    return type(module).load_from_checkpoint(trainer.run_dir / "latest")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (AttrDict(rate=0.1, inner=AttrDict(a=1)), {"rate": 0.1, "inner": {"a": 1}}),
        (argparse.Namespace(rate=0.1, inner=argparse.Namespace(a=1)), {"rate": 0.1, "inner": {"a": 1}}),
        (Optim(), {"lr": 0.1, "betas": (0.9, 0.99)}),
        ({"paths": [Path("a/b")], "mode": Mode.FAST}, {"paths": ["a/b"], "mode": "fast"}),
        ({0: "猫", 1: "狗"}, {0: "猫", 1: "狗"}),
        (Path("data"), "data"),
    ],
    ids=["AttrDict", "Namespace", "dataclass", "Path and Enum", "numbers as keys", "Path"],
)
def test_configuration_objects_come_back_as_dicts_with_attributes(tmp_path: Path, given: Any, stored: Any) -> None:
    module = Configured(given)
    assert module.hparams.cfg is given
    loaded = back(tmp_path, module)
    assert loaded.hparams.cfg == stored
    if "inner" in loaded.hparams.cfg:
        assert loaded.hparams.cfg.inner.a == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"train", "val"}, "the set"),
        (paddle.nn.functional.relu, "the function"),
        ([paddle.nn.ReLU()], "the layer"),
        ({"a": [object()]}, "the object"),
        (AttrDict(f=print), "the builtin_function_or_method"),
    ],
    ids=["set", "function", "layer in a list", "object in a dict", "builtin in a config"],
)
def test_what_cannot_be_stored_is_refused_where_it_is_given(value: Any, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot store {kind} given as 'cfg'.*ignore=\['cfg'\]"):
        Configured(value)


def test_what_is_set_later_and_cannot_be_stored_is_refused_by_name_at_the_save(tmp_path: Path) -> None:
    module = Configured(1)
    module.hparams.later = {1, 2}
    with pytest.raises(ConfigurationError, match="cannot store the set given as 'later'"):
        back(tmp_path, module)


@pytest.mark.parametrize("given", [{"lr": 0.5, "depth": 3}, argparse.Namespace(lr=0.5, depth=3)])
def test_a_dict_or_namespace_may_be_given_whole(given: Any) -> None:
    class Whole(Plain):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.save_hyperparameters(config, ignore="depth")

    assert Whole(given).hparams == {"lr": 0.5}


class Base(Plain):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_a_layer_that_a_class_below_takes_is_left_out_and_told() -> None:
    class Below(Base):
        def __init__(self, backbone: Any, width: int = 4) -> None:
            super().__init__(width)

    with pytest.warns(UserWarning, match=r"Below's argument 'backbone' is not among the hyper-parameters"):
        module = Below(paddle.nn.ReLU(), width=6)
    assert module.hparams == {"width": 6}


def test_ignore_in_a_class_below_takes_away_what_the_one_above_has_kept() -> None:
    class Below(Base):
        def __init__(self, width: int = 4, secret: str = "") -> None:
            super().__init__(width)
            self.save_hyperparameters(ignore=["secret"])

    assert Below(5, "x").hparams == {"width": 5}


def test_the_initial_ones_stay_as_they_were_given() -> None:
    module = Base(5)
    module.hparams.width = 7
    assert (module.hparams_initial.width, module.hparams.width) == (5, 7)


@pytest.mark.parametrize("logs", [True, False])
def test_they_are_logged_unless_logger_is_false(logs: bool) -> None:
    class Keeps(Logger):
        params: Any = None

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            pass

        def log_hyperparams(self, params: Any) -> None:
            self.params = dict(params)

    class Own(Plain):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters(logger=logs)

    kept = Keeps()
    quiet_trainer(logger=kept).fit(Own(), make_batches(1))
    assert kept.params == ({"width": 4} if logs else {})


def test_before_super_init_it_says_so() -> None:
    class Early(Plain):
        def __init__(self, width: int = 4) -> None:
            self.save_hyperparameters()
            super().__init__()

    with pytest.raises(ConfigurationError, match=r"call super\(\).__init__\(\) in Early.__init__ before"):
        Early()


def test_ignore_in_a_class_below_takes_it_from_the_initial_ones_too() -> None:
    class Below(Base):
        def __init__(self, depth: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="width")

    assert Below().hparams == Below().hparams_initial == {"depth": 2}


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    depth: int = 2


@pytest.mark.parametrize(
    "config", [{"lr": 0.5, "depth": 3}, argparse.Namespace(lr=0.5, depth=3), Config(0.5, 3)], ids=["dict", "ns", "dc"]
)
def test_a_configuration_that_was_kept_whole_comes_back_as_the_argument_that_it_was(
    tmp_path: Path, config: Any
) -> None:
    class Whole(Plain):
        def __init__(self, config: Any, name: str = "a") -> None:
            super().__init__()
            self.save_hyperparameters(config)
            self.given, self.name = config, name

    trainer = quiet_trainer(default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(Whole(config, "b"), make_batches(2))
    path = trainer.run_dir / "latest"
    loaded = Whole.load_from_checkpoint(path)
    assert (loaded.given, loaded.given.lr, loaded.name, loaded.hparams) == (
        {"lr": 0.5, "depth": 3},
        0.5,
        "a",
        {"lr": 0.5, "depth": 3},
    )
    assert Whole.load_from_checkpoint(path, name="c", lr=0.25).given == {"lr": 0.25, "depth": 3}
    assert Whole.load_from_checkpoint(path, config={"lr": 1}).given == {"lr": 1}


def test_strict_loading_of_a_module_is_what_load_from_checkpoint_goes_by(tmp_path: Path) -> None:
    class Half(Plain):
        strict_loading = False

        def __init__(self) -> None:
            super().__init__()
            self.more = paddle.nn.Linear(2, 2)

    trainer = quiet_trainer(default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(Plain(), make_batches(2))
    path = trainer.run_dir / "latest"
    assert Half.load_from_checkpoint(path).strict_loading is False
    with pytest.raises(CheckpointMismatchError, match=r"more\.weight"):
        Half.load_from_checkpoint(path, strict=True)
    with pytest.raises(CheckpointMismatchError, match=r"more\.weight"):
        trainer.fit(Half(), make_batches(2), ckpt_path=path)


class Assigns(Plain):
    def __init__(self, hparams: Any) -> None:
        super().__init__()
        self.hparams = hparams


@pytest.mark.parametrize("given", [argparse.Namespace(lr=0.1), 3, None])
def test_hparams_that_were_assigned_and_are_no_mapping_are_refused_before_training(given: Any) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"Assigns\.hparams holds .*by self\.save_hyperparameters\("):
        quiet_trainer().fit(Assigns(given), make_batches(1))


def test_hparams_that_were_assigned_as_a_dict_are_those_of_the_module() -> None:
    quiet_trainer(max_epochs=1).fit(Assigns({"lr": 0.1}), make_batches(1))
