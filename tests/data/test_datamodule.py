"""DataModule as Lightning's users know it: from datasets, with hyper-parameters, out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer
from paddle.io import IterableDataset, TensorDataset

from paddlelite_trainer import DataModule, Logger
from paddlelite_trainer.errors import CheckpointError, ConfigurationError, ConfigurationTypeError, TrainerError


def dataset(count: int, seed: int = 0) -> Any:
    numbers = np.random.RandomState(seed)
    return TensorDataset(
        [
            paddle.to_tensor(numbers.randn(count, 4).astype("float32")),
            paddle.to_tensor(numbers.randint(0, 3, count)),
        ]
    )


class Sized(DataModule):
    def __init__(self, count: int = 2, size: int = 8) -> None:
        self.save_hyperparameters()
        self.epochs_seen = 0

    def train_dataloader(self) -> Any:
        return make_batches(self.hparams.count, self.hparams.size)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_seen": self.epochs_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs_seen = state_dict["epochs_seen"]


# -- from datasets -----------------------------------------------------------------------------------------------------
def test_a_datamodule_is_made_from_datasets() -> None:
    data = DataModule.from_datasets(dataset(10), dataset(6), dataset(4), dataset(2), batch_size=4, num_workers=0)
    trainer = quiet_trainer()
    trainer.fit(Classifier(), datamodule=data)
    assert (trainer.global_step, trainer.num_val_batches) == (3, [2])
    assert len(trainer.predict(datamodule=data)) == 1
    assert trainer.test(datamodule=data, verbose=False)[0].keys() == {"test_loss"}


def test_training_data_are_shuffled_and_the_others_are_not() -> None:
    data = DataModule.from_datasets(dataset(10), val_dataset=[dataset(6), dataset(4)], batch_size=4)
    assert type(data.train_dataloader().batch_sampler.sampler).__name__ == "RandomSampler"
    both = data.val_dataloader()
    assert [len(loader) for loader in both] == [2, 1]
    assert {type(loader.batch_sampler.sampler).__name__ for loader in both} == {"SequenceSampler"}
    assert data.test_dataloader() is None


def test_a_subclass_is_made_with_its_own_arguments_and_a_stream_is_not_shuffled() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(dataset(5))

    data = Sized.from_datasets(Stream(), batch_size=2, count=7)
    assert isinstance(data, Sized)
    assert data.hparams == {"count": 7, "size": 8}
    assert sum(1 for _ in data.train_dataloader()) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"train_dataset": 3}, "from_datasets(train_dataset=...) must be a dataset, or a list or dict of them, got 3"),
        (
            {"val_dataset": [dataset(2), 3]},
            "from_datasets(val_dataset=...) must be a dataset, or a list or dict of them, got 3",
        ),
        ({"batch_size": "4"}, "from_datasets(batch_size=...) must be an int >= 1, got '4'"),
        ({"batch_size": 0}, "from_datasets(batch_size=...) must be an int >= 1, got 0"),
        ({"num_workers": -1}, "from_datasets(num_workers=...) must be an int >= 0, got -1"),
        (
            {"train_datasets": 3},
            "DataModule.from_datasets has no argument 'train_datasets'. Did you mean 'train_dataset'?",
        ),
    ],
)
def test_from_datasets_refuses_what_no_loader_can_be_made_of(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainerError) as error:
        DataModule.from_datasets(**arguments)
    assert str(error.value) == told


# -- hyper-parameters --------------------------------------------------------------------------------------------------
def test_hparams_are_there_from_the_start_and_keep_what_was_given_first() -> None:
    assert DataModule().hparams == DataModule().hparams_initial == {}
    data = Sized(3)
    data.hparams.size = 2
    assert data.hparams == {"count": 3, "size": 2}
    assert data.hparams_initial == {"count": 3, "size": 8}


def test_ignore_in_a_datamodule_below_takes_away_what_the_one_above_has_kept() -> None:
    class Below(Sized):
        def __init__(self, path: str, count: int = 2) -> None:
            super().__init__(count)
            self.save_hyperparameters(ignore="count")

    assert Below("a").hparams == Below("a").hparams_initial == {"path": "a", "size": 8}


class Remembers(Logger):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None:
        self.seen.append(dict(params))


def logged(root: Path, data: DataModule) -> dict[str, Any]:
    logger = Remembers()
    quiet_trainer(logger=logger, default_root_dir=root).fit(Classifier(), datamodule=data)
    (params,) = logger.seen
    return params


def test_a_datamodule_s_hyper_parameters_are_logged_beside_the_module_s(tmp_path: Path) -> None:
    assert logged(tmp_path, Sized(3)) == {"hidden": 8, "lr": 0.1, "count": 3, "size": 8}


def test_with_logger_false_they_are_not_logged(tmp_path: Path) -> None:
    class Silent(Sized):
        def __init__(self) -> None:
            self.save_hyperparameters({"count": 1, "size": 4}, logger=False)

    assert logged(tmp_path, Silent()) == {"hidden": 8, "lr": 0.1}


def test_a_name_that_both_have_with_different_values_is_logged_twice(tmp_path: Path) -> None:
    class Rated(Sized):
        def __init__(self, lr: float, hidden: int) -> None:
            self.save_hyperparameters({"lr": lr, "hidden": hidden, "count": 1, "size": 4})

    assert logged(tmp_path, Rated(0.5, 8)) == {"hidden": 8, "lr": 0.1, "Rated.lr": 0.5, "count": 1, "size": 4}


# -- out of a checkpoint -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_datamodule_comes_back_from_a_checkpoint(tmp_path: Path, weights_only: bool) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path, enable_checkpointing=True)
    data = Sized(3, 4)
    data.epochs_seen = 5
    trainer.fit(Classifier(), datamodule=data)
    path = trainer.save_checkpoint("mine", weights_only=weights_only)
    assert path is not None
    loaded = Sized.load_from_checkpoint(path)
    assert (loaded.hparams, loaded.epochs_seen) == ({"count": 3, "size": 4}, 5)
    assert Sized.load_from_checkpoint(path, count=9).hparams == {"count": 9, "size": 4}


def test_what_has_no_datamodule_in_it_is_an_error(tmp_path: Path) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(Classifier(), make_batches(2))

    class Needs(DataModule):
        def __init__(self, path: str) -> None:
            self.path = path

    with pytest.raises(ConfigurationTypeError, match=r"Needs\(\*\*\[\]\) failed: .*path"):
        Needs.load_from_checkpoint(trainer.run_dir / "latest")
    paddle.save(Classifier().state_dict(), str(tmp_path / "plain.pdparams"))
    with pytest.raises(CheckpointError, match="holds weights alone, no datamodule"):
        Needs.load_from_checkpoint(tmp_path / "plain.pdparams")


def test_save_hyperparameters_outside_of_init_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"must be called in DataModule\.__init__"):
        DataModule().save_hyperparameters()
