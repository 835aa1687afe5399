"""Which of batch, batch_idx and dataloader_idx a step takes is its own to say."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer.errors import ConfigurationError


class Batches:
    """A loader of two batches that is no list of them."""

    def __iter__(self) -> Any:
        return iter(make_batches(2))


class OnlyBatch(Classifier):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return self.loss(batch)

    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any) -> None:  # type: ignore[override]
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any) -> Any:  # type: ignore[override]
        return float(self.loss(batch))


class Usual(OnlyBatch):
    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.log("val_loss", self.loss(batch))


def test_steps_that_take_the_batch_alone_are_as_those_with_its_index() -> None:
    trained: list[Any] = []
    for module in (OnlyBatch(), Usual()):
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(module, make_batches(3), make_batches(1))
        values = dict(trainer.callback_metrics)
        trained.append((weights_of(module), values, trainer.test(module, make_batches(1)), trainer.global_step))
        assert len(trainer.predict(module, make_batches(2))) == 2
    assert same_weights(trained[0][0], trained[1][0])
    assert trained[0][1:] == trained[1][1:]


def test_lbfgs_takes_a_step_without_an_index_too() -> None:
    class Closure(OnlyBatch):
        def configure_optimizers(self) -> Any:
            return paddle.optimizer.LBFGS(0.1, max_iter=2, parameters=self.parameters())

    trainer = quiet_trainer()
    trainer.fit(Closure(), make_batches(2))
    assert trainer.global_step == 2


def test_a_step_takes_the_loader_s_index_by_name() -> None:
    seen: list[Any] = []

    class ByName(Classifier):
        def validation_step(self, batch: Any, dataloader_idx: int) -> None:  # type: ignore[override]
            seen.append(dataloader_idx)

        def test_step(self, batch: Any, batch_idx: int, *, dataloader_idx: int = 0) -> None:
            seen.append((batch_idx, dataloader_idx))

    trainer, module = quiet_trainer(), ByName()
    trainer.validate(module, [Batches(), Batches()])
    trainer.test(module, [Batches(), Batches()])
    assert seen == [0, 0, 1, 1, (0, 0), (1, 0), (0, 1), (1, 1)]
    seen.clear()
    trainer.test(module, Batches())
    assert seen == [(0, 0), (1, 0)]


@pytest.mark.parametrize("takes", ["batch", "batch, batch_idx", "batch, batch_idx, dataloader_idx=0", "*given"])
def test_predict_step_may_leave_the_loader_s_index_out(takes: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def predict_step(self, {takes}): return 1", scope)
    module = type("Predicts", (Classifier,), {"predict_step": scope["predict_step"]})()
    assert quiet_trainer().predict(module, [Batches(), Batches()]) == [[1, 1], [1, 1]]


@pytest.mark.parametrize(("stage", "word"), [("validate", "validation"), ("test", "test")])
def test_a_step_that_lacks_the_loader_s_index_is_told_why_it_is_given_it(stage: str, word: str) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"Classifier\.{word}_step\(batch.*because there are 2 {word} loaders.*add dataloader_idx=0",
    ):
        getattr(quiet_trainer(), stage)(Classifier(), [Batches(), Batches()])


def test_a_step_that_cannot_be_called_is_refused_before_anything_runs() -> None:
    class Wants(Classifier):
        def training_step(self, batch: Any, batch_idx: int, more: Any) -> Any:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(
        ConfigurationError, match=r"Wants\.training_step\(.*cannot be called: it is given \(batch, batch_idx\)"
    ):
        quiet_trainer().fit(Wants(), make_batches(1))


# -- a step that is taken away -----------------------------------------------------------------------------------------
def test_a_validation_step_of_none_is_no_validation() -> None:
    module = Classifier()
    module.validation_step = None  # type: ignore[assignment,method-assign]
    trainer = quiet_trainer()
    trainer.fit(module, make_batches(2), make_batches(1))
    assert "val_loss" not in trainer.callback_metrics


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_by_a_step_of_none_is_an_error(stage: str) -> None:
    module, word = Classifier(), {"validate": "validation"}.get(stage, stage)
    setattr(module, f"{word}_step", None)
    with pytest.raises(ConfigurationError, match=rf"trainer\.{stage}\(\) needs Classifier\.{word}_step"):
        getattr(quiet_trainer(), stage)(module, make_batches(1))


def test_a_step_that_takes_the_loader_s_iterator_is_refused_with_the_remedy() -> None:
    class Reads(Classifier):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return self.loss(next(dataloader_iter))

    with pytest.raises(
        ConfigurationError, match=r"takes dataloader_iter.*write training_step\(self, batch, batch_idx\)"
    ):
        quiet_trainer().fit(Reads(), make_batches(2))
