"""Module.of: a network without a class of the user's; and data that are no loaders, with a batch size."""

import numpy as np
import paddle
import pytest
from models import quiet_trainer

from paddlelite_trainer import Module
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError


def network():
    paddle.seed(0)
    return paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.ReLU(), paddle.nn.Linear(8, 2))


def data(rows=32):
    x = np.random.default_rng(0).normal(size=(rows, 4))
    return x, (x.sum(axis=1) > 0).astype("int64")


def weights(net):
    return [parameter.numpy() for parameter in net.parameters()]


def test_it_trains_as_a_loop_by_hand():
    x, y = data()
    net = network()
    batches = [
        (paddle.to_tensor(x[i : i + 8].astype("float32")), paddle.to_tensor(y[i : i + 8])) for i in range(0, 32, 8)
    ]
    module = Module.of(net, loss="cross_entropy", optimizer=paddle.optimizer.Adam, learning_rate=0.01)
    quiet_trainer(max_epochs=2).fit(module, batches)
    mine = network()
    optimizer = paddle.optimizer.Adam(0.01, parameters=mine.parameters())
    for _ in range(2):
        for inputs, labels in batches:
            paddle.nn.functional.cross_entropy(mine(inputs), labels).backward()
            optimizer.step()
            optimizer.clear_grad()
    assert all(np.array_equal(one, other) for one, other in zip(weights(net), weights(mine)))


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        "CrossEntropyLoss",
        paddle.nn.CrossEntropyLoss,
        paddle.nn.CrossEntropyLoss(),
        paddle.nn.functional.cross_entropy,
    ],
)
def test_a_loss_is_a_name_a_class_a_layer_or_a_function(loss):
    module = Module.of(network(), loss)
    results = quiet_trainer().validate(module, data(), batch_size=8)
    assert results[0]["val_loss"] == pytest.approx(_loss_by_hand(), rel=1e-5)


def _loss_by_hand():
    x, y = data()
    return float(
        paddle.nn.functional.cross_entropy(network()(paddle.to_tensor(x.astype("float32"))), paddle.to_tensor(y))
    )


@pytest.mark.parametrize("kind", ["name", "class", "function", "instance"])
def test_an_optimizer_is_a_name_a_class_a_function_or_an_instance(kind):
    net = network()
    made = {
        "name": lambda: {"optimizer": "sgd", "learning_rate": 0.1},
        "class": lambda: {"optimizer": paddle.optimizer.SGD, "learning_rate": 0.1},
        "function": lambda: {"optimizer": lambda parameters: paddle.optimizer.SGD(0.1, parameters=parameters)},
        "instance": lambda: {"optimizer": paddle.optimizer.SGD(0.1, parameters=net.parameters())},
    }[kind]()
    quiet_trainer(max_epochs=1, seed=3).fit(Module.of(net, "cross_entropy", **made), data(), batch_size=8)
    other = network()
    quiet_trainer(max_epochs=1, seed=3).fit(
        Module.of(other, "cross_entropy", "SGD", learning_rate=0.1), data(), batch_size=8
    )
    assert all(np.array_equal(one, two) for one, two in zip(weights(net), weights(other)))


def test_a_schedule_is_stepped_as_its_interval_says():
    schedule = paddle.optimizer.lr.StepDecay(0.1, step_size=1, gamma=0.5)
    module = Module.of(network(), "cross_entropy", "sgd", lr_scheduler={"scheduler": schedule, "interval": "step"})
    quiet_trainer(max_epochs=1).fit(module, data(), batch_size=8)
    assert schedule.get_lr() == pytest.approx(0.1 * 0.5**4)


def test_metrics_are_objects_names_and_functions_each_stage_with_its_own():
    def wrong(outputs, labels):
        return (outputs.argmax(axis=1) != labels).astype("float32").mean()

    module = Module.of(
        network(),
        "cross_entropy",
        "adam",
        ["accuracy", paddle.metric.Accuracy(topk=(1, 2), name="pair"), wrong],
        learning_rate=0.01,
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data(), data(), batch_size=8)
    metrics = trainer.callback_metrics
    assert {"train_acc", "val_acc", "val_wrong", "val_loss"} <= set(metrics)
    assert metrics["val_acc"] == pytest.approx(1 - metrics["val_wrong"])
    with pytest.raises(ConfigurationError, match="two called 'acc'"):
        Module.of(network(), metrics=["accuracy", "acc"])


def test_a_network_of_two_inputs_takes_the_first_two_parts():
    class Two(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.layer = paddle.nn.Linear(4, 2)

        def forward(self, one, other, scale=1.0):
            return self.layer(one + other) * scale

    x, y = data()
    module = Module.of(Two(), "cross_entropy", "sgd", learning_rate=0.1)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, (x, x, y), batch_size=8)
    assert trainer.predict(module, (x, x, y), batch_size=16)[0].shape == [16, 2]
    with pytest.raises(ConfigurationError, match=r"Two.forward needs 2 inputs, and a batch of train has 2 parts"):
        trainer.fit(module, (x, y), batch_size=8)


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    def run(root, steps):
        net = network()
        module = Module.of(net, "cross_entropy", "adamw", ["accuracy"], learning_rate=0.01)
        trainer = quiet_trainer(max_steps=steps, seed=5, default_root_dir=tmp_path / root, enable_checkpointing=True)
        trainer.fit(module, data(), batch_size=8, ckpt_path="last")
        return weights(net), trainer.callback_metrics["train_acc"]

    run("parts", 6)  # in the middle of an epoch
    (first, accuracy), (second, whole) = run("parts", 8), run("whole", 8)
    assert all(np.array_equal(one, other) for one, other in zip(first, second))
    assert accuracy == whole


def test_load_from_checkpoint_takes_the_network_and_says_so_without(tmp_path):
    net = network()
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(Module.of(net, "cross_entropy", "sgd", ["accuracy"], learning_rate=0.1), data(), batch_size=8)
    path = tmp_path / "version_0/latest"
    with pytest.raises(ConfigurationError, match=r"made by Module.of.*holds weights and no network.*net=net"):
        Module.load_from_checkpoint(path)
    again = Module.load_from_checkpoint(path, net=network())
    assert all(np.array_equal(one, other) for one, other in zip(weights(net), weights(again)))
    assert again.hparams["learning_rate"] == 0.1
    assert "val_acc" in quiet_trainer().validate(again, data(), batch_size=8)[0]


def test_it_is_exported(tmp_path):
    net = network()
    module = Module.of(net)
    path = str(tmp_path / "net")
    paddle.jit.save(module, path, input_spec=[paddle.static.InputSpec([None, 4], "float32")])
    x = paddle.to_tensor(data()[0].astype("float32"))
    assert np.allclose(paddle.jit.load(path)(x).numpy(), net(x).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Module.of(paddle.nn.Linear), "got the class Linear; pass an object: Linear"),
        (lambda: Module.of("net"), "takes a paddle.nn.Layer, got a str"),
        (lambda: Module.of(network(), "cross_entropi"), "Did you mean 'cross_entropy'"),
        (lambda: Module.of(network(), 3), "takes a function, a layer or a name, got 3"),
        (lambda: Module.of(network(), None, "adamv"), "'adamv' is none of paddle.optimizer's: .*Did you mean 'adam"),
        (lambda: Module.of(network(), None, 3), "takes an optimizer, its class or name, or a function"),
        (lambda: Module.of(network(), None, None, ["acuracy"]), "Did you mean 'accuracy'"),
        (lambda: Module.of(network(), None, None, [3]), "takes metrics of paddle.metric, names or functions, got 3"),
        (lambda: Module.of(network(), None, lambda p: None, learning_rate=1.0), "has its own rate: leave it out"),
        (
            lambda: Module.of(network(), None, paddle.optimizer.SGD(parameters=network().parameters())),
            "which are no parameters of the network",
        ),
        (lambda: Module.of(network(), lr_scheduler={"schedule": 1}), "needs the key 'scheduler', got schedule"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make, sentence):
    with pytest.raises((ConfigurationError, ConfigurationTypeError), match=sentence):
        make()


def test_a_fit_without_loss_or_optimizer_and_a_loss_that_is_no_number_are_refused():
    with pytest.raises(ConfigurationError, match="was given no loss, which fit needs"):
        quiet_trainer(max_epochs=1).fit(Module.of(network()), data(), batch_size=8)
    with pytest.raises(ConfigurationError, match="was given no optimizer"):
        quiet_trainer(max_epochs=1).fit(Module.of(network(), "mse"), data(), batch_size=8)
    with pytest.raises(ConfigurationError, match=r"must be one number, and is a tensor of shape .*8, 2"):
        module = Module.of(network(), lambda outputs, labels: outputs, "sgd", learning_rate=0.1)
        quiet_trainer(max_epochs=1).fit(module, data(), batch_size=8)
    with pytest.raises(ConfigurationError, match=r"is .inputs, ..., labels., and this one of train is a dict"):
        module = Module.of(network(), "cross_entropy", "sgd", learning_rate=0.1)
        quiet_trainer(max_epochs=1).fit(module, [{"x": 1}], batch_size=1)


# -- data with a batch size --------------------------------------------------------------------------------------------


class Seen(Module):
    """Remembers the first column of what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = paddle.nn.Linear(1, 1)
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].numpy()[:, 0].tolist())
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0].numpy()[:, 0].tolist())

    def configure_optimizers(self):
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


ROWS = np.arange(10, dtype="float64").reshape(10, 1)


class Rows(paddle.io.Dataset):
    def __getitem__(self, index):
        return (ROWS[index].astype("float32"),)

    def __len__(self):
        return 10


@pytest.mark.parametrize(
    "given", [(ROWS,), (paddle.to_tensor(ROWS),), [(row.astype("float32"),) for row in ROWS], Rows()]
)
def test_data_become_batches_shuffled_for_training_alone(given):
    module = Seen()
    quiet_trainer(max_epochs=1, seed=1, num_sanity_val_steps=0).fit(module, given, given, batch_size=4)
    assert module.seen["val"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    order = [number for batch in module.seen["train"] for number in batch]
    assert sorted(order) == list(range(10)) and order != list(range(10))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"train_dataloaders": paddle.io.DataLoader(Rows()), "batch_size": 4}, "a loader has its own batch size"),
        ({"train_dataloaders": (ROWS, ROWS[:3]), "batch_size": 4}, "must have as many rows each, got shapes"),
        ({"train_dataloaders": iter([1]), "batch_size": 4}, "takes a paddle.io.Dataset, arrays as .X, Y., or a list"),
        ({"train_dataloaders": Rows(), "batch_size": 0}, "batch_size=...\\) must be an int >= 1, got 0"),
        ({"train_dataloaders": Rows(), "num_workers": 2}, "needs batch_size= beside it"),
        ({"train_dataloaders": [], "batch_size": 2}, "has no samples"),
    ],
)
def test_what_no_batches_can_be_made_of_is_refused(arguments, sentence):
    with pytest.raises((ConfigurationError, ConfigurationTypeError), match=sentence):
        quiet_trainer(max_epochs=1).fit(Seen(), **arguments)


def test_a_dataset_without_a_batch_size_is_one_sentence():
    with pytest.raises((ConfigurationError, ConfigurationTypeError), match="batch_size="):
        quiet_trainer(max_epochs=1).fit(Seen(), Rows())
