"""The errors that users meet first: each is told apart, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, DataModule, Module, Trainer
from paddlelite_trainer.errors import (
    ConfigurationError,
    ConfigurationTypeError,
    DataError,
    TrainerError,
    TrainingError,
)


def fit_fails(module: Any, data: Any, error: type[BaseException], *words: str, **settings: Any) -> None:
    with pytest.raises(error) as raised:
        quiet_trainer(**settings).fit(module, data)
    for word in words:
        assert word in str(raised.value)


def test_a_step_that_returns_nothing() -> None:
    class Forgot(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.loss(batch)

    fit_fails(Forgot(), make_batches(), TrainingError, "returned None", "all 6 batches of epoch 0", "return the loss")


def test_a_dict_without_loss() -> None:
    class NoLoss(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"los": self.loss(batch)}

    fit_fails(NoLoss(), make_batches(), TrainingError, "dict with keys ['los']", "'loss'")


def test_a_loss_that_is_no_scalar() -> None:
    class Vector(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

    fit_fails(Vector(), make_batches(), TrainingError, "shape [8, 3]", "mean()")


def test_a_loss_that_is_detached() -> None:
    class Detached(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch).detach()

    fit_fails(Detached(), make_batches(), TrainingError, "not attached")


def test_no_optimizer() -> None:
    class NoOptimizer(Classifier):
        def configure_optimizers(self) -> None:
            return None

    with pytest.warns(UserWarning, match=r"returned None: nothing is trained.*return the optimizer"):
        quiet_trainer().fit(NoOptimizer(), make_batches())


def test_no_configure_optimizers_with_a_near_miss() -> None:
    class Typo(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any: ...

        def configure_optimizer(self) -> Any: ...

    fit_fails(
        Typo(), make_batches(), ConfigurationError, "configure_optimizer ", "Did you mean 'configure_optimizers'?"
    )


def test_no_training_step() -> None:
    fit_fails(Module(), make_batches(), ConfigurationError, "Module has no training_step")


def test_no_data() -> None:
    fit_fails(Classifier(), None, ConfigurationError, "fit needs training data", "train_dataloader")


def test_an_empty_loader() -> None:
    fit_fails(Classifier(), [], DataError, "train_dataloader", "empty")


def test_a_generator_that_is_used_up_in_the_second_epoch() -> None:
    fit_fails(Classifier(), (b for b in make_batches(2)), DataError, "epoch 1", "exhausted", max_epochs=2)


def test_something_that_is_no_loader() -> None:
    fit_fails(Classifier(), 3, ConfigurationTypeError, "train_dataloader", "int")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_in_a_dataset_comes_through_with_the_sample(workers: int) -> None:
    class Broken(paddle.io.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise KeyError("no such picture")
            return np.zeros(4, "float32"), np.int64(0)

    loader = paddle.io.DataLoader(Broken(), batch_size=2, num_workers=workers)
    with pytest.raises(KeyError, match="no such picture") as raised:
        quiet_trainer().fit(Classifier(), loader)
    assert any("5" in note for note in getattr(raised.value, "__notes__", []))


def test_neither_epochs_nor_steps_nor_time() -> None:
    with pytest.raises(ConfigurationError, match="max_epochs, max_steps or max_time"):
        Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(Classifier(), make_batches())


def test_a_layer_that_is_no_module() -> None:
    fit_fails(paddle.nn.Linear(1, 1), make_batches(), ConfigurationTypeError, "derive it from Module")


def test_a_misspelt_hook_of_a_callback() -> None:
    class Typo(Callback):
        def on_train_epoch_ends(self, trainer: Any, module: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"on_train_epoch_ends.*Did you mean 'on_train_epoch_end'"):
        Trainer(max_epochs=1, callbacks=[Typo()])


def test_a_misspelt_hook_of_a_module() -> None:
    class Typo(Classifier):
        def on_validation_epoch_ends(self) -> None: ...

    fit_fails(Typo(), make_batches(), ConfigurationError, "Did you mean 'on_validation_epoch_end'?")


def test_a_misspelt_hook_beside_an_inherited_one() -> None:
    class Project(Classifier):
        def on_train_epoch_end(self) -> None: ...

    class Typo(Project):
        def on_train_epoch_ends(self) -> None: ...

    class Another(Project):
        def validaton_step(self, batch: Any, batch_idx: int) -> None: ...

    fit_fails(Typo(), make_batches(), ConfigurationError, "Did you mean 'on_train_epoch_end'?")
    fit_fails(Another(), make_batches(), ConfigurationError, "Did you mean 'validation_step'?")


def test_a_step_that_cannot_be_given_what_it_is_called_with() -> None:
    class Long(Classifier):
        def training_step(self, batch: Any, batch_idx: int, more: Any) -> Any: ...  # type: ignore[override]

    fit_fails(Long(), make_batches(), ConfigurationError, "Long.training_step", "it is given (batch, batch_idx)")
    loaders = [paddle.io.DataLoader(paddle.io.TensorDataset([paddle.randn([4, 4]), paddle.zeros([4], "int64")]))] * 2
    with pytest.raises(ConfigurationError, match=r"validation_step.* is given \(batch, batch_idx, dataloader_idx\)"):
        quiet_trainer().validate(Classifier(), loaders)
    outputs = quiet_trainer().predict(Classifier(), loaders)  # Module's own step needs no index
    assert [len(of_a_loader) for of_a_loader in outputs] == [4, 4]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("step", {}, "a metric cannot be named 'step'"),
        ("epoch", {}, "a metric cannot be named 'epoch'"),
        ("loss", {"batch_size": 0}, "batch_size=...) must be an int >= 1, got 0"),
        ("loss", {"batch_size": "x"}, "batch_size=...) must be an int >= 1, got 'x'"),
    ],
)
def test_a_log_that_would_be_lost_or_wrong(name: str, options: dict[str, Any], words: str) -> None:
    class Logs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log(name, 1.0, **options)
            return super().training_step(batch, batch_idx)

    fit_fails(Logs(), make_batches(), ConfigurationError, words)


def test_the_columns_of_a_log_are_no_names_for_log_metrics() -> None:
    class Logs(Classifier):
        def on_train_start(self) -> None:
            self.trainer.log_metrics({"epoch": 3.0})

    fit_fails(Logs(), make_batches(), ConfigurationError, "a metric cannot be named 'epoch'")


def test_helpers_of_ones_own_are_no_misspelt_hooks() -> None:
    class Helpers(Classifier):
        def train_step(self) -> None: ...

        def validate_one(self) -> None: ...

        def on_my_own_event(self) -> None: ...

    quiet_trainer().fit(Helpers(), make_batches(1))


@pytest.mark.parametrize(
    ("argument", "value", "error", "words"),
    [
        ("max_epochs", "10", ConfigurationTypeError, "max_epochs"),
        ("max_epochs", -2, ConfigurationError, "-1 for no limit"),
        ("accumulate_grad_batches", 0, ConfigurationError, "accumulate_grad_batches"),
        ("limit_train_batches", 1.5, ConfigurationError, "limit_train_batches"),
        ("val_check_interval", 0, ConfigurationError, "val_check_interval"),
        ("gradient_clip_algorithm", "nrom", ConfigurationError, "Did you mean 'norm'?"),
        ("log_every_n_steps", 0, ConfigurationError, "logger=False"),
        ("callbacks", [Callback], ConfigurationTypeError, "the class Callback; pass an object"),
        ("callbacks", ["x"], ConfigurationTypeError, "'x'"),
        ("max_time", "12:00", ConfigurationError, "DD:HH:MM:SS"),
        ("seed", -1, ConfigurationError, "seed"),
        ("deterministic", "yes", ConfigurationError, "'warn'"),
        ("enable_checkpointing", 1, ConfigurationTypeError, "True or False"),
        ("accelerator", "gpuu", TrainerError, "gpu"),
        ("precision", "16-mix", TrainerError, "16-mixed"),
    ],
)
def test_a_wrong_trainer_argument(argument: str, value: Any, error: type[BaseException], words: str) -> None:
    with pytest.raises(error) as raised:
        quiet_trainer(**{argument: value})
    assert words in str(raised.value)


def test_an_unknown_trainer_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="max_epoch"):
        Trainer(max_epoch=1)  # type: ignore[call-arg]


def test_a_validation_interval_longer_than_the_epoch() -> None:
    with pytest.raises(ConfigurationError, match="val_check_interval=9 is more than the 6 batches"):
        quiet_trainer(val_check_interval=9).fit(Classifier(), make_batches(6), make_batches(1))


def test_clipping_twice_names_both() -> None:
    class Clips(Classifier):
        def configure_optimizers(self) -> Any:
            return paddle.optimizer.SGD(
                0.1, parameters=self.parameters(), grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)
            )

    fit_fails(
        Clips(),
        make_batches(),
        ConfigurationError,
        "gradient_clip_val=1.0",
        "ClipGradByGlobalNorm",
        gradient_clip_val=1.0,
    )


def test_an_optimizer_with_parameters_that_are_not_the_modules() -> None:
    class Foreign(Classifier):
        def configure_optimizers(self) -> Any:
            return paddle.optimizer.SGD(0.1, parameters=paddle.nn.Linear(2, 2).parameters())

    fit_fails(Foreign(), make_batches(), ConfigurationError, "not part of Foreign")


def test_logging_something_that_is_no_number() -> None:
    class Logs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("logits", self(batch[0]))
            return self.loss(batch)

    fit_fails(Logs(), make_batches(), ConfigurationError, "'logits'", "shape [8, 3]")


def test_an_error_in_user_code_leaves_fit_as_it_is_and_is_told_to_callbacks() -> None:
    error = ZeroDivisionError("mine")
    told = []

    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise error

    class Watch(Callback):
        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            told.append(exception)

        def teardown(self, trainer: Any, module: Any, stage: str) -> None:
            told.append(stage)

    with pytest.raises(ZeroDivisionError) as raised:
        quiet_trainer(callbacks=[Watch()]).fit(Fails(), make_batches())
    assert raised.value is error
    assert told == [error, "fit"]


def test_using_the_trainer_outside_of_it() -> None:
    with pytest.raises(ConfigurationError, match="has no trainer"):
        _ = Classifier().trainer
    with pytest.warns(UserWarning, match="without a trainer"):
        Classifier().training_step(make_batches(1)[0], 0)


def test_reduce_on_plateau_without_its_metric() -> None:
    class Plateau(Classifier):
        def configure_optimizers(self) -> Any:
            scheduler = paddle.optimizer.lr.ReduceOnPlateau(0.1)
            optimizer = paddle.optimizer.SGD(scheduler, parameters=self.parameters())
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_los"}}

    with pytest.raises(ConfigurationError, match=r"'val_los'.*Did you mean 'val_loss'"):
        quiet_trainer().fit(Plateau(), make_batches(1), make_batches(1))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("optimizer_step", "interval 'step'"),
        ("training_epoch_end", "on_train_epoch_end"),
        ("on_epoch_end", "on_train_epoch_end"),
    ],
)
def test_an_override_that_lightning_calls_and_this_trainer_does_not(method: str, words: str) -> None:
    ported = type("Ported", (Classifier,), {method: lambda self, *arguments: None})
    fit_fails(ported(), make_batches(1), ConfigurationError, f"Ported.{method} is never called here", words)


def test_loaders_beside_a_datamodule() -> None:
    with pytest.raises(ConfigurationError, match="one of them, not both"):
        quiet_trainer().fit(Classifier(), make_batches(1), datamodule=DataModule())


def test_a_misspelt_method_of_a_datamodule() -> None:
    class Typo(DataModule):
        def train_dataloaders(self) -> Any:
            return make_batches(1)

    with pytest.raises(ConfigurationError, match="Did you mean 'train_dataloader'"):
        quiet_trainer().fit(Classifier(), datamodule=Typo())


def test_validate_without_data_names_the_method_to_write() -> None:
    with pytest.raises(ConfigurationError, match="write val_dataloader in the module"):
        quiet_trainer().validate(Classifier())


def test_a_hook_with_too_few_parameters_is_told_before_training() -> None:
    class Short(Callback):
        def on_train_end(self, trainer: Any) -> None: ...  # type: ignore[override]

    class Counts(Classifier):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return super().training_step(batch, batch_idx)

    module = Counts()
    fit_fails(
        module, make_batches(1), ConfigurationError, "Short.on_train_end", "(trainer, module)", callbacks=[Short()]
    )
    assert module.steps == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_epoch": 3}, ["Trainer has no argument 'max_epoch'", "Did you mean 'max_epochs'?"]),
        ({"gpus": 2}, ["no argument 'gpus'", "one of Lightning's", "pass accelerator='gpu', devices="]),
        ({"resume_from_checkpoint": "x"}, ["ckpt_path= to fit"]),
        ({"epochs": 3}, ["no argument 'epochs'. Here it is max_epochs."]),
        ({"wholly_unknown": 1}, ["Trainer has no argument 'wholly_unknown'."]),
    ],
)
def test_an_unknown_argument_of_trainer(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationTypeError) as raised:
        Trainer(**arguments)
    for word in words:
        assert word in str(raised.value)


def test_an_argument_of_trainer_without_its_name() -> None:
    with pytest.raises(ConfigurationTypeError, match="takes arguments by name only, got 100"):
        Trainer(100)  # type: ignore[misc]


def test_a_limit_that_leaves_no_training_data() -> None:
    fit_fails(Classifier(), make_batches(), ConfigurationError, "limit_train_batches=0", limit_train_batches=0)


def test_a_setting_without_effect_is_told_by_name() -> None:
    with pytest.warns(UserWarning, match="has no effect") as told:
        quiet_trainer(reload_dataloaders_every_n_epochs=2).fit(Classifier(), make_batches())
    (message,) = [str(warning.message) for warning in told if "has no effect" in str(warning.message)]
    assert message.startswith("Trainer(reload_dataloaders_every_n_epochs=2) has no effect: a loader was passed")


class NoForward(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


@pytest.mark.parametrize("stage", ["predict", "call", "export"])
def test_a_module_without_forward(stage: str, tmp_path: Path) -> None:
    module = NoForward()
    trainer = quiet_trainer()
    trainer.fit(module, make_batches(1))
    with pytest.raises(ConfigurationError, match=r"NoForward has no forward: write forward\(self, x\).*predict_step"):
        if stage == "predict":
            trainer.predict(module, make_batches(1))
        elif stage == "call":
            module(paddle.ones([1, 4]))
        else:
            paddle.jit.save(module, str(tmp_path / "net"), input_spec=[paddle.static.InputSpec([None, 4])])
