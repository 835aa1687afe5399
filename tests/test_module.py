"""Module: hyper-parameters, loading from checkpoints, freezing, copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, DataModule, rank_zero_info, rank_zero_only
from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError


class SaveAlways(Callback):
    def on_save_point(self, trainer: Any, module: Any, save_point: Any) -> Any:
        return {"latest": [save_point.candidate.name]}


def fitted(tmp_path: Any, module: Any) -> Any:
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[SaveAlways()], default_root_dir=tmp_path)
    trainer.fit(module, make_batches(2))
    return trainer


def test_hyper_parameters_are_the_arguments_of_init() -> None:
    module = Classifier(hidden=5)
    assert module.hparams == {"hidden": 5, "lr": 0.1}
    assert module.hparams.lr == 0.1
    with pytest.raises(AttributeError, match="saved ones: hidden, lr"):
        _ = module.hparams.rate


def test_a_derived_class_saves_its_own_arguments() -> None:
    class Derived(Classifier):
        def __init__(self, depth: int = 3, **others: Any) -> None:
            super().__init__(**others)
            self.save_hyperparameters()

    assert Derived(lr=0.5).hparams == {"hidden": 8, "lr": 0.5, "depth": 3}


def test_a_layer_among_the_hyper_parameters_is_refused_with_the_remedy() -> None:
    class Wraps(Classifier):
        def __init__(self, backbone: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.raises(ConfigurationError, match=r"ignore=\['backbone'\]"):
        Wraps(paddle.nn.Linear(1, 1))


def test_load_from_checkpoint_builds_the_module_anew(tmp_path: Any) -> None:
    module = Classifier(hidden=5)
    trainer = fitted(tmp_path, module)
    loaded = Classifier.load_from_checkpoint(trainer.run_dir / "latest")
    assert loaded.hparams == {"hidden": 5, "lr": 0.1}
    assert same_weights(weights_of(loaded), weights_of(module))
    assert Classifier.load_from_checkpoint(trainer.run_dir / "latest", lr=1.0).hparams.lr == 1.0


def test_load_from_checkpoint_of_another_shape_lists_what_differs(tmp_path: Any) -> None:
    trainer = fitted(tmp_path, Classifier(hidden=5))
    with pytest.raises(CheckpointMismatchError, match=r"net\.0\.weight"):
        Classifier.load_from_checkpoint(trainer.run_dir / "latest", hidden=6)


def test_plain_paddle_opens_the_weights(tmp_path: Any) -> None:
    module = Classifier()
    trainer = fitted(tmp_path, module)
    other = Classifier()
    other.net[0].weight.set_value(paddle.zeros([4, 8]))
    other.set_state_dict(paddle.load(str(trainer.run_dir / "latest.pdparams")))
    assert same_weights(weights_of(other), weights_of(module))


def test_on_save_and_on_load_checkpoint_carry_what_the_module_adds(tmp_path: Any) -> None:
    class Extra(Classifier):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["vocabulary"] = ["a", "b"]
            checkpoint["table"] = np.arange(3)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.loaded = (checkpoint["vocabulary"], checkpoint["table"].tolist())

    fitted(tmp_path, Extra())
    module = Extra()
    trainer = quiet_trainer(
        enable_checkpointing=True, callbacks=[SaveAlways()], default_root_dir=tmp_path, max_epochs=2
    )
    trainer.fit(module, make_batches(2), ckpt_path="last")
    assert module.loaded == (["a", "b"], [0, 1, 2])


def test_unfreeze_leaves_batch_norms_statistics_alone() -> None:
    class Norm(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.norm = paddle.nn.BatchNorm1D(4)

    module = Norm()
    before = {name: parameter.stop_gradient for name, parameter in module.named_parameters()}
    module.freeze()
    assert all(parameter.stop_gradient for parameter in module.parameters())
    module.unfreeze()
    assert {name: parameter.stop_gradient for name, parameter in module.named_parameters()} == before


def test_a_copy_or_pickle_of_a_module_leaves_the_trainer_behind() -> None:
    module = Classifier()
    quiet_trainer().fit(module, make_batches(1))
    assert copy.deepcopy(module)._trainer is None
    if paddle.__version__ >= "3":  # 2.6 cannot pickle layers
        assert pickle.loads(pickle.dumps(module))._trainer is None
    assert module._trainer is not None


def test_a_data_module_gives_the_loaders_and_is_set_up_and_torn_down() -> None:
    calls = []

    class Data(DataModule):
        def prepare_data(self) -> None:
            calls.append("prepare_data")

        def setup(self, stage: str) -> None:
            calls.append(f"setup {stage}")

        def train_dataloader(self) -> Any:
            return make_batches(2)

        def val_dataloader(self) -> Any:
            return make_batches(1)

        def teardown(self, stage: str) -> None:
            calls.append(f"teardown {stage}")

    trainer = quiet_trainer()
    trainer.fit(Classifier(), Data())
    assert calls == ["prepare_data", "setup fit", "teardown fit"]
    assert trainer.num_training_batches == 2
    assert "val_loss" in trainer.callback_metrics


def test_configure_callbacks_replaces_the_trainers_of_the_same_class() -> None:
    class Counts(Callback):
        def __init__(self) -> None:
            self.epochs = 0

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.epochs += 1

    from_module, from_trainer = Counts(), Counts()

    class Brings(Classifier):
        def configure_callbacks(self) -> list[Callback]:
            return [from_module]

    quiet_trainer(callbacks=[from_trainer]).fit(Brings(), make_batches(1))
    assert (from_module.epochs, from_trainer.epochs) == (1, 0)


def test_save_checkpoint_keeps_the_state_under_a_tag(tmp_path: Any) -> None:
    trainer = fitted(tmp_path, Classifier())
    path = trainer.save_checkpoint("before-finetune")
    assert path is not None and path.is_dir()
    assert (trainer.run_dir / "before-finetune.pdparams").exists()


def test_a_module_without_a_trainer_can_be_looked_at_and_copied() -> None:
    module = Classifier()
    assert not hasattr(module, "trainer")
    assert "training_step" in dict(inspect.getmembers(module))
    assert copy.deepcopy(module).state_dict().keys() == module.state_dict().keys()
    with pytest.raises(ConfigurationError, match=r"this module has no trainer: self\.trainer exists during"):
        module.trainer  # noqa: B018
    with pytest.raises(ConfigurationError, match="this module is not being fitted"):
        module.optimizers()


def test_on_one_process_all_gather_gives_back_what_it_is_given(tmp_path: Any) -> None:
    module = Classifier()
    quiet_trainer(default_root_dir=tmp_path).fit(module, make_batches(1))
    given = {"x": paddle.ones([2]), "name": "n"}
    assert module.all_gather(given) is given


def test_rank_zero_only_does_nothing_on_other_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for rank in ("0", "1"):
        monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
        answers.append(rank_zero_only(lambda value: value + 1)(1))
        rank_zero_info("rank", rank)
    assert answers == [2, None]
    assert capsys.readouterr().out == "rank 0\n"


def test_a_rank_timeout_that_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Trainer\(rank_timeout=...\) must be longer than nothing, or None"):
        quiet_trainer(rank_timeout={"seconds": 0})
    assert quiet_trainer(rank_timeout=None).ranks.timeout_seconds == float("inf")
    assert quiet_trainer().ranks.timeout_seconds == 1800
