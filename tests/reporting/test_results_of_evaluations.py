"""What validate and test return, and what callback_metrics hold of which stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback


def loaders(count: int) -> list[Any]:
    class Batches:
        def __iter__(self) -> Any:
            return iter(make_batches(2))

    return [Batches() for _ in range(count)]


class Logs(Classifier):
    """Logs `v` on steps and epochs, and one name of each loader's own."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("v", self.loss(batch), on_step=True, on_epoch=True)
        self.log("newest", float(batch_idx), on_step=True, on_epoch=False)
        self.log(f"own_{dataloader_idx}", 1.0, add_dataloader_idx=False)
        self.log("shared", float(dataloader_idx), add_dataloader_idx=False)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log("all", 3.0)

    on_test_epoch_end = on_validation_epoch_end


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_results_hold_the_epochs_values_and_no_steps(stage: str) -> None:
    trainer = quiet_trainer()
    (values,) = getattr(trainer, stage)(Logs(), loaders(1)[0])
    assert set(values) == {"v", "v_epoch", "own_0", "shared", "all"}
    assert {"v_step", "newest"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_each_loader_s_results_are_its_own(stage: str) -> None:
    first, second = getattr(quiet_trainer(), stage)(Logs(), loaders(2))
    common = {"shared", "all"}
    assert set(first) == {"v/dataloader_idx_0", "v_epoch/dataloader_idx_0", "own_0", *common}
    assert set(second) == {"v/dataloader_idx_1", "v_epoch/dataloader_idx_1", "own_1", *common}
    assert first["shared"] == second["shared"] == 0.5


def test_the_history_of_a_fit_holds_no_step_of_a_validation() -> None:
    trainer = quiet_trainer()
    trainer.fit(Logs(), make_batches(2), loaders(2))
    assert not [name for name in trainer.history[0] if "_step" in name]
    assert {"v_epoch/dataloader_idx_0", "own_0", "own_1"} <= set(trainer.history[0])


# -- callback_metrics --------------------------------------------------------------------------------------------------
def test_callback_metrics_of_a_fit_are_gone_in_a_later_evaluation_and_with_it() -> None:
    seen: list[set[str]] = []

    class Looks(Callback):
        def on_validation_start(self, trainer: Any, module: Any) -> None:
            seen.append(set(trainer.callback_metrics))

        def on_test_end(self, trainer: Any, module: Any) -> None:
            seen.append(set(trainer.callback_metrics))

    module, looks = Classifier(), Looks()
    trainer = quiet_trainer(callbacks=[looks], max_epochs=2)
    trainer.fit(module, make_batches(2), make_batches(1))
    assert set(trainer.callback_metrics) == {"train_loss", "val_loss"}
    seen.clear()
    trainer.validate(module, make_batches(1))
    assert set(trainer.callback_metrics) == {"val_loss"}
    trainer.test(module, make_batches(1))
    assert set(trainer.callback_metrics) == {"test_loss"}
    assert seen == [set(), {"test_loss"}]
    trainer.fit(module, make_batches(2))
    assert set(trainer.callback_metrics) == {"train_loss"}


# -- whose weights -----------------------------------------------------------------------------------------------------
def fitted(tmp_path: Path, **settings: Any) -> Any:
    from paddlelite_trainer.callbacks import ModelCheckpoint

    saves = ModelCheckpoint(**settings)
    trainer = quiet_trainer(callbacks=[saves], enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(Classifier(), make_batches(2), make_batches(1))
    return trainer


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_without_a_model_says_which_weights_it_takes(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fitted(tmp_path, monitor="val_loss")
    capsys.readouterr()
    getattr(trainer, stage)(dataloaders=make_batches(1))
    said = capsys.readouterr().out
    assert "Weights as the fit has left them, at step 4; ckpt_path='best' takes the best checkpoint's" in said
    getattr(trainer, stage)(dataloaders=make_batches(1), ckpt_path="best")
    getattr(trainer, stage)(trainer.model, make_batches(1))
    assert "as the fit has left them" not in capsys.readouterr().out


def test_an_evaluation_without_a_model_names_no_best_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(tmp_path).test(dataloaders=make_batches(1))
    said = capsys.readouterr().out
    assert "Weights as the fit has left them, at step 4\n" in said


def test_an_evaluation_within_a_fit_says_nothing_of_weights(capsys: pytest.CaptureFixture[str]) -> None:
    class Evaluates(Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            trainer.test(dataloaders=make_batches(1), verbose=False)

    quiet_trainer(callbacks=[Evaluates()]).fit(Classifier(), make_batches(1))
    assert "Weights" not in capsys.readouterr().out
