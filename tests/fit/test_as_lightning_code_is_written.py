"""What code written for Lightning counts on, in small: hooks' arguments, freeze, what is logged and when."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer
from paddle.io import DataLoader, TensorDataset

from paddlelite_trainer import Callback, CSVLogger
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.fit.hooks import Hooks


def loader() -> Any:
    return DataLoader(TensorDataset([paddle.ones([4, 4]), paddle.ones([4], "int64")]), batch_size=2)


class Several(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch[0])


def without_index(seen: list[Any], word: str, moment: str, *, given: int) -> Any:
    """A hook of a batch that takes its `given` arguments and no dataloader_idx."""
    takes = {
        2: lambda self, batch, batch_idx: seen.append((word, moment, batch_idx)),
        3: lambda self, outputs, batch, batch_idx: seen.append((word, moment, batch_idx)),
        4: lambda self, trainer, module, batch, batch_idx: seen.append((word, moment, batch_idx)),
        5: lambda self, trainer, module, outputs, batch, batch_idx: seen.append((word, moment, batch_idx)),
    }
    return takes[given]


@pytest.mark.parametrize("kind", [Several, Callback])
def test_hooks_of_a_batch_need_no_dataloader_idx_with_several_loaders_either(kind: type) -> None:
    seen: list[Any] = []
    words = ("validation", "test", "predict")
    hooks = {
        f"on_{word}_batch_{moment}": without_index(
            seen, word, moment, given=(2 if moment == "start" else 3) + (2 if kind is Callback else 0)
        )
        for word in words
        for moment in ("start", "end")
    }
    mine = type("Mine", (kind,), hooks)()
    trainer = quiet_trainer(callbacks=[mine] if kind is Callback else [])
    module = mine if kind is not Callback else Several()
    trainer.fit(module, make_batches(1), [loader(), loader()])
    trainer.test(module, [loader(), loader()], verbose=False)
    trainer.predict(module, [loader(), loader()])
    assert seen == [
        (word, moment, batch_idx)
        for word in words
        for _ in range(2)
        for batch_idx in range(2)
        for moment in ("start", "end")
    ]


def test_hooks_that_take_dataloader_idx_are_given_it() -> None:
    seen: list[int] = []

    class Asks(Callback):
        def on_validation_batch_end(self, *arguments: Any, dataloader_idx: int = 5) -> None:
            seen.append(arguments[-1])

    class Takes(Several):
        def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(dataloader_idx)

    quiet_trainer(callbacks=[Asks()], limit_val_batches=1).fit(Takes(), make_batches(1), [loader(), loader()])
    assert seen == [0, 0, 1, 1]


def test_freeze_and_unfreeze_return_the_module() -> None:
    module = Classifier()
    assert module.freeze() is module
    assert not module.training
    assert module.unfreeze() is module
    assert module.training


def test_log_with_neither_step_nor_epoch_is_an_error() -> None:
    class Neither(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_acc", 1.0, on_step=False, on_epoch=False)

    with pytest.raises(
        ConfigurationError, match=r"self\.log\('val_acc', on_step=False, on_epoch=False\) keeps nothing"
    ):
        quiet_trainer().fit(Neither(), make_batches(1), make_batches(1))


def told_of_interval(root: Path, module: Any = None, **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(**{"logger": CSVLogger(), "max_epochs": 3, "default_root_dir": root, **settings})
        trainer.fit(module or Classifier(), make_batches(3))
    return [str(one.message) for one in caught if "log_every_n_steps" in str(one.message)]


def test_an_interval_of_logging_that_is_longer_than_an_epoch_is_told_once(tmp_path: Path) -> None:
    (told,) = told_of_interval(tmp_path)
    assert "log_every_n_steps=50 is more than the 3 steps of an epoch: 'train_loss'" in told
    assert "Trainer(log_every_n_steps=1)" in told
    (told,) = told_of_interval(tmp_path, accumulate_grad_batches=3, log_every_n_steps=2)
    assert "log_every_n_steps=2 is more than the 1 step of an epoch" in told


def test_it_is_not_told_where_nothing_waits_to_be_logged(tmp_path: Path) -> None:
    class Silent(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("seen", 1.0, logger=False)
            self.log("mean", 1.0, on_step=False, on_epoch=True)
            return self.loss(batch)

    assert told_of_interval(tmp_path, Silent()) == []
    assert told_of_interval(tmp_path, log_every_n_steps=3) == []
    assert told_of_interval(tmp_path, logger=False) == []
    assert told_of_interval(tmp_path, fast_dev_run=True) == []


def test_metrics_answer_item_wherever_they_are_read() -> None:
    module = Classifier()
    trainer = quiet_trainer()
    trainer.fit(module, make_batches(1), make_batches(1))
    results = trainer.validate(module, make_batches(1), verbose=False)[0]
    for metrics in (trainer.callback_metrics, trainer.logged_metrics, results):
        assert {name: value.item() for name, value in metrics.items()} == metrics != {}


def test_a_hook_without_dataloader_idx_is_still_its_owner_s() -> None:
    class Short(Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            return None

    short = Short()
    (call,) = Hooks([short], None, (None, Classifier())).of("on_validation_batch_end")
    assert call.func.__self__ is short  # by which a profile names it
