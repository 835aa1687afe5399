"""PaddleCallback: callbacks of paddle.Model's in a fit here."""

import numpy as np
import paddle
import pytest
from models import quiet_trainer

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.callbacks import PaddleCallback
from paddlelite_trainer.errors import ConfigurationError


def network():
    paddle.seed(0)
    return paddle.nn.Linear(4, 2)


def data():
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int64")


def module(rate=0.1):
    return Module.of(network(), "cross_entropy", "sgd", ["accuracy"], learning_rate=rate)


class Heard(paddle.callbacks.Callback):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("train_begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch_begin", epoch))

    def on_train_batch_end(self, step, logs=None):
        self.calls.append(("batch_end", step, sorted(logs)))

    def on_eval_end(self, logs=None):
        self.calls.append(("eval_end", sorted(logs)))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch_end", epoch, sorted(logs)))

    def on_train_end(self, logs=None):
        self.calls.append("train_end")


def test_a_user_s_own_is_called_as_by_paddle_model_given_as_it_is():
    mine = Heard()
    quiet_trainer(max_epochs=2, callbacks=[mine], num_sanity_val_steps=1).fit(module(), data(), data(), batch_size=8)
    theirs = Heard()
    model = paddle.Model(network())
    model.prepare(paddle.optimizer.SGD(0.1, parameters=model.parameters()), paddle.nn.CrossEntropyLoss())
    tensors = [paddle.to_tensor(one) for one in data()]
    dataset = paddle.io.TensorDataset(tensors)
    model.fit(dataset, dataset, batch_size=8, epochs=2, verbose=0, callbacks=[theirs])

    def moments(calls):
        return [call if isinstance(call, str) else call[:2] if call[0] != "eval_end" else call[0] for call in calls]

    once = [call for call in moments(mine.calls) if call != "eval_end"]
    assert once == [call for call in moments(theirs.calls) if call != "eval_end"]
    assert moments(mine.calls).count("eval_end") == moments(theirs.calls).count("eval_end") == 2
    assert {"loss", "acc", "val_loss"} <= set(next(call[1] for call in mine.calls if call[0] == "eval_end"))


def test_paddle_s_early_stopping_stops_and_goes_on_counting_after_a_resume(tmp_path):
    def run(root, epochs):
        stopper = paddle.callbacks.EarlyStopping("loss", mode="max", patience=3, verbose=0, save_best_model=False)
        trainer = quiet_trainer(
            max_epochs=epochs, callbacks=[stopper], default_root_dir=tmp_path / root, enable_checkpointing=True, seed=1
        )
        trainer.fit(module(), data(), data(), batch_size=8, ckpt_path="last")
        return trainer, stopper

    trainer, _ = run("whole", 10)
    assert (trainer.current_epoch, trainer.stop_reason) == (4, "EarlyStopping set model.stop_training")
    run("parts", 2)
    resumed, stopper = run("parts", 10)
    assert resumed.current_epoch == 4 and stopper.wait_epoch == 3


def test_paddle_s_reduce_on_plateau_lowers_a_rate_that_a_resume_keeps(tmp_path):
    def run(root, epochs):
        lower = paddle.callbacks.ReduceLROnPlateau("loss", mode="max", patience=1, factor=0.5, verbose=0)
        trainer = quiet_trainer(
            max_epochs=epochs,
            callbacks=[PaddleCallback(lower)],
            default_root_dir=tmp_path / root,
            seed=1,
            enable_checkpointing=True,
        )
        made = module(0.25)
        trainer.fit(made, data(), data(), batch_size=8, ckpt_path="last")
        return trainer.optimizers[0].get_lr(), made.net.weight.numpy()

    rate, weight = run("whole", 4)
    assert rate == 0.25 * 0.5**3
    run("parts", 2)
    again, resumed = run("parts", 4)
    assert again == rate and np.array_equal(weight, resumed)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "ModelCheckpoint",
            "paddle.callbacks.ModelCheckpoint is not used here: paddlelite_trainer.callbacks.ModelCheckpoint",
        ),
        ("ProgBarLogger", "paddlelite_trainer.callbacks.ProgressBar"),
        ("LRScheduler", "the trainer steps a schedule by itself"),
        ("VisualDL", r"Trainer\(logger=...\) takes loggers"),
    ],
)
def test_what_there_is_something_for_here_is_refused_with_its_name(name, sentence):
    arguments = {"VisualDL": ("logs",)}.get(name, ())
    with pytest.raises(ConfigurationError, match=sentence):
        Trainer(callbacks=[getattr(paddle.callbacks, name)(*arguments)])


def test_its_model_saves_as_paddle_model_does_and_names_what_it_has_not(tmp_path):
    class Saves(paddle.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.save(str(tmp_path / "final"))
            with pytest.raises(AttributeError, match=r"Saves asks for model.evaluate: under a Trainer there is no"):
                self.model.evaluate  # noqa: B018

    made = module()
    quiet_trainer(max_epochs=1, callbacks=Saves()).fit(made, data(), batch_size=8)
    saved = paddle.load(str(tmp_path / "final.pdparams"))
    assert np.array_equal(saved["weight"].numpy(), made.net.weight.numpy()) and (tmp_path / "final.pdopt").exists()
