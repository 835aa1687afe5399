"""What users keep of their own is back before anybody is asked for loaders, optimizers or weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, DataModule, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.checkpoint import open_checkpoint


class Grows(Classifier):
    """Knows its classes from the data, and is as wide as they are many."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = 0
        self.asked: list[int] = []
        self.grow(extra)

    def grow(self, extra: int) -> None:
        for index in range(self.extra, extra):
            self.add_sublayer(f"extra_{index}", paddle.nn.Linear(4, 4))
        self.extra = extra

    def forward(self, x: Any) -> Any:
        for index in range(self.extra):
            x = x + getattr(self, f"extra_{index}")(x)
        return super().forward(x)

    def configure_optimizers(self) -> Any:
        self.asked.append(self.extra)
        return paddle.optimizer.Adam(0.01, parameters=self.parameters())

    def train_dataloader(self) -> Any:
        self.asked.append(self.extra)
        return make_batches(4)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = self.extra

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.grow(checkpoint["extra"])


class Curriculum(DataModule):
    """Counts what it has seen; its loaders are built from that."""

    def __init__(self) -> None:
        self.stage = 0
        self.asked: list[tuple[str, int]] = []

    def _loader(self, which: str) -> Any:
        self.asked.append((which, self.stage))
        return make_batches(4)

    def train_dataloader(self) -> Any:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        return self._loader("predict")

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage = state_dict["stage"]


class Evaluated(Grows):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("t", self.forward(batch[0]).mean())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("v", self.forward(batch[0]).mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.forward(batch[0])


def trainer_in(root: Path, epochs: int, *callbacks: Callback) -> Trainer:
    return quiet_trainer(
        max_epochs=epochs, default_root_dir=root, run_name="run", enable_checkpointing=True, callbacks=[*callbacks]
    )


def saved_run(root: Path, weights_only: bool = False) -> tuple[Evaluated, Path]:
    module, data = Evaluated(extra=2), Curriculum()
    data.stage = 3
    saves = ModelCheckpoint(every_n_train_steps=4, save_weights_only=weights_only, save_top_k=-1)
    trainer = trainer_in(root, 1, saves)
    trainer.fit(module, datamodule=data)
    assert trainer.run_dir is not None
    (kept,) = (trainer.run_dir / "checkpoints").glob("step-*")
    assert open_checkpoint(kept).state("trainer.json")["weights_only"] is weights_only
    return module, kept


def test_a_resumed_datamodule_knows_its_stage_when_it_is_asked_for_loaders(tmp_path: Path) -> None:
    saved_run(tmp_path)
    data = Curriculum()
    trainer_in(tmp_path, 2).fit(Evaluated(), datamodule=data, ckpt_path="last")
    assert {stage for _, stage in data.asked} == {3}


def test_a_run_whose_module_grew_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    paddle.seed(3)
    weights = {name: value.numpy() for name, value in Evaluated(extra=2).state_dict().items()}

    def new(extra: int) -> Evaluated:
        module = Evaluated(extra=extra)
        for name, value in module.state_dict().items():
            value.set_value(weights[name])
        return module

    straight = new(2)
    trainer_in(tmp_path / "a", 2).fit(straight)
    trainer_in(tmp_path / "b", 1).fit(new(2))
    resumed = new(0)
    trainer_in(tmp_path / "b", 2).fit(resumed, ckpt_path="last")
    assert resumed.asked == [2, 2]
    for name, value in straight.state_dict().items():
        assert (value.numpy() == resumed.state_dict()[name].numpy()).all(), name


def test_a_callback_has_its_state_when_loaders_are_asked_for(tmp_path: Path) -> None:
    class Stage(Callback):
        stage = 0

        def state_dict(self) -> dict[str, Any]:
            return {"stage": self.stage}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.stage = state_dict["stage"]

    class Reads(Classifier):
        def train_dataloader(self) -> Any:
            self.saw = next(one.stage for one in self.trainer.callbacks if isinstance(one, Stage))
            return make_batches(4)

    first = Stage()
    first.stage = 5
    trainer_in(tmp_path, 1, first).fit(Reads())
    module = Reads()
    trainer_in(tmp_path, 2, Stage()).fit(module, ckpt_path="last")
    assert module.saw == 5


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_an_evaluation_of_a_checkpoint_gives_module_and_datamodule_their_state_back(
    tmp_path: Path, stage: str, weights_only: bool
) -> None:
    before, path = saved_run(tmp_path, weights_only)
    module, data = Evaluated(), Curriculum()
    getattr(quiet_trainer(), stage)(module, datamodule=data, ckpt_path=path)
    assert module.extra == 2
    assert {known for _, known in data.asked} == {3}
    for name, value in before.state_dict().items():
        assert (value.numpy() == module.state_dict()[name].numpy()).all(), name


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_from_checkpoint_gives_the_module_its_state_back(tmp_path: Path, weights_only: bool) -> None:
    before, path = saved_run(tmp_path, weights_only)
    module = Evaluated.load_from_checkpoint(path)
    assert module.extra == 2
    assert set(module.state_dict()) == set(before.state_dict())


def test_load_from_checkpoint_of_another_tool_s_weights_calls_no_hook(tmp_path: Path) -> None:
    paddle.save(Classifier().state_dict(), str(tmp_path / "plain.pdparams"))
    Evaluated.load_from_checkpoint(tmp_path / "plain.pdparams")


def test_a_validation_of_other_weights_within_a_fit_leaves_the_fits_datamodule_alone(tmp_path: Path) -> None:
    _, path = saved_run(tmp_path)
    data = Curriculum()
    seen = []

    class Looks(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.validate(Evaluated(), make_batches(2), ckpt_path=path, verbose=False)
            seen.append(data.stage)

    quiet_trainer(max_epochs=1, callbacks=[Looks()]).fit(Evaluated(), datamodule=data)
    assert seen == [0]
