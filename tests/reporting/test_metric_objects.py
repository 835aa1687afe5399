"""paddle.metric.Metric objects: one for each stage and loader, and whatever they keep is in the checkpoint."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError


class Counts(paddle.metric.Metric):
    """Counts what it has seen, in a container of the kind asked for."""

    def __init__(self, kind: str = "list of tuples") -> None:
        super().__init__()
        self.kind = kind
        self.reset()

    def reset(self) -> None:
        self.state: Any = {
            "tensor": lambda: paddle.zeros([2]),
            "list of tensors": lambda: [paddle.zeros([1]), paddle.zeros([1])],
            "list of tuples": list,
            "list of dicts": list,
            "list of arrays": list,
            "two arrays in a list": lambda: [np.zeros(1), np.zeros(1)],
            "array in a dict": lambda: {"seen": np.zeros(2)},
            "dict of lists": dict,
            "defaultdict": lambda: collections.defaultdict(list),
            "deque": collections.deque,
            "set": set,
            "Counter": collections.Counter,
            "metric within": Counts,
            "objects": list,
        }[self.kind]()

    def update(self, value: float = 1.0) -> None:
        state = self.state
        if self.kind == "tensor":
            state[0] += 1.0
        elif self.kind == "list of tensors":
            state[0] = state[0] + 1.0
        elif self.kind == "two arrays in a list":
            state[0] += 1.0
        elif self.kind == "array in a dict":
            state["seen"][0] += 1.0
        elif self.kind in ("list of tuples", "deque"):
            state.append((len(state), value))
        elif self.kind == "list of dicts":
            state.append({"score": value})
        elif self.kind == "list of arrays":
            state.append(np.full(3, value))
        elif self.kind == "dict of lists":
            state.setdefault("a", []).append(value)
        elif self.kind == "defaultdict":
            state["a"].append(value)
        elif self.kind == "set":
            state.add(len(state))
        elif self.kind == "Counter":
            state["a"] += 1
        elif self.kind == "metric within":
            state.update(value)
        else:
            state.append(object())

    def accumulate(self) -> float:
        state = self.state
        if self.kind in ("tensor", "list of tensors", "two arrays in a list"):
            return float(state[0].sum())
        if self.kind == "array in a dict":
            return float(state["seen"].sum())
        if self.kind in ("dict of lists", "defaultdict"):
            return float(sum(map(len, state.values())))
        if self.kind == "Counter":
            return float(sum(state.values()))
        return state.accumulate() if self.kind == "metric within" else float(len(state))

    def name(self) -> str:
        return "counts"


KINDS = [
    *("tensor", "list of tensors", "list of tuples", "list of dicts", "list of arrays", "two arrays in a list"),
    *("array in a dict", "dict of lists", "defaultdict", "deque", "set", "Counter", "metric within"),
]


class Counting(Classifier):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.seen = Counts(kind)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.update()
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Loader:
    def __init__(self, seed: int) -> None:
        self.batches = make_batches(2, seed=seed)

    def __iter__(self) -> Any:
        return iter(self.batches)


class Ends(Callback):
    def __init__(self, at: int, before_the_step: bool = False) -> None:
        self.at, self.before_the_step = at, before_the_step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            raise RuntimeError("planned")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if self.before_the_step and trainer.global_step == self.at - 1:
            raise RuntimeError("planned")


def trainer_in(root: Path, *callbacks: Callback) -> Trainer:
    return quiet_trainer(
        default_root_dir=root, run_name="run", enable_checkpointing=True, max_epochs=1, callbacks=[*callbacks]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_within_the_epoch_counts_all_its_batches(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path, ModelCheckpoint(every_n_train_steps=1), Ends(4)).fit(Counting(kind), make_batches(10))
    module = Counting(kind)
    trainer = trainer_in(tmp_path, ModelCheckpoint(every_n_train_steps=1))
    trainer.fit(module, make_batches(10), ckpt_path="last")
    assert trainer.history[0]["seen"] == 10
    assert type(module.seen.state) is type(Counts(kind).state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_after_an_exception_has_not_counted_the_batch_that_failed(tmp_path: Path, kind: str) -> None:
    saves = ModelCheckpoint(save_on_exception=True)
    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path, saves, Ends(5, before_the_step=True)).fit(Counting(kind), make_batches(10))
    trainer = trainer_in(tmp_path)
    trainer.fit(Counting(kind), make_batches(10), ckpt_path="last")
    assert trainer.history[0]["seen"] == 10


def test_what_a_checkpoint_cannot_hold_of_a_metric_is_told_once(tmp_path: Path, capsys: Any) -> None:
    trainer_in(tmp_path, ModelCheckpoint(every_n_train_steps=1)).fit(Counting("objects"), make_batches(4))
    out = capsys.readouterr().out
    assert out.count("'state' of the metric seen (Counts)") == 1
    assert "resumed within an epoch counts only the rest" in " ".join(out.split())
    trainer_in(tmp_path / "b", ModelCheckpoint(every_n_train_steps=1)).fit(Counting("set"), make_batches(4))
    assert "of the metric" not in capsys.readouterr().out


class OneObject(Classifier):
    """Logs one object in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = paddle.metric.Accuracy()

    def count(self, batch: Any) -> Any:
        x, y = batch
        self.accuracy.update(self.accuracy.compute(self(x), y.unsqueeze(-1)))
        return self.accuracy


class TrainsAndValidates(OneObject):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_acc", self.count(batch), on_step=False, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", self.count(batch))


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("interval", [1.0, 2])
def test_one_object_logged_in_training_and_validation_is_refused(sanity: int, interval: float) -> None:
    trainer = quiet_trainer(num_sanity_val_steps=sanity, val_check_interval=interval)
    with pytest.raises(ConfigurationError, match=r"self\.log\('\w+_acc'.*the same object.*'\w+_acc'.*one for each"):
        trainer.fit(TrainsAndValidates(), make_batches(4), make_batches(2))


def test_one_object_that_training_logs_at_the_epoch_s_end_only_is_refused_too() -> None:
    class Late(TrainsAndValidates):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.count(batch)
            return self.loss(batch)

        def on_train_epoch_end(self) -> None:
            self.log("train_acc", self.accuracy)

    with pytest.raises(ConfigurationError, match=r"self\.log\('train_acc'.*one for each"):
        quiet_trainer().fit(Late(), make_batches(4), make_batches(2))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_in_a_hook_does_not_take_the_fit_s_object(stage: str) -> None:
    class Tests(TrainsAndValidates):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_acc", self.count(batch))

    class Evaluates(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            getattr(trainer, stage)(module, make_batches(1), verbose=False)

    with pytest.raises(ConfigurationError, match="one for each"):
        quiet_trainer(callbacks=[Evaluates()]).fit(Tests(), make_batches(4))


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_one_object_for_two_loaders_is_refused(stage: str) -> None:
    class Several(OneObject):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("acc", self.count(batch))

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("acc", self.count(batch))

    data = [Loader(0), Loader(1)]
    with pytest.raises(ConfigurationError, match=r"acc/dataloader_idx_0.*one for each"):
        if stage == "fit":
            quiet_trainer().fit(Several(), make_batches(2), data)
        else:
            getattr(quiet_trainer(), stage)(Several(), data)


def test_one_object_may_count_over_all_loaders_or_go_by_two_names() -> None:
    class Whole(OneObject):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("all", self.count(batch), add_dataloader_idx=False)
            self.log("alias", self.accuracy, add_dataloader_idx=False)

    module = Whole()
    results = quiet_trainer().validate(module, [Loader(0), Loader(1)], verbose=False)
    (both,) = quiet_trainer().validate(module, [*make_batches(2), *make_batches(2, seed=1)], verbose=False)
    assert results[-1]["all"] == both["all"] == both["alias"]


def test_fits_and_evaluations_one_after_another_may_use_one_object() -> None:
    class Tests(OneObject):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_acc", self.count(batch), on_step=False, on_epoch=True)
            return self.loss(batch)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_acc", self.count(batch))

    module, trainer = Tests(), quiet_trainer()
    trainer.fit(module, make_batches(4))
    (first,) = trainer.test(module, make_batches(2), verbose=False)
    trainer.fit(module, make_batches(1))
    (alone,) = quiet_trainer().test(module, make_batches(2), verbose=False)
    assert 0 <= first["test_acc"] <= 1
    assert 0 <= alone["test_acc"] <= 1


class TopTwo(Classifier):
    def __init__(self, name: str = "acc") -> None:
        super().__init__()
        self.accuracy, self.of_training = paddle.metric.Accuracy(topk=(1, 2)), paddle.metric.Accuracy(topk=(1, 2))
        self.name = name

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.count(batch, self.of_training, "train_acc")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.count(batch, self.accuracy, self.name)

    def count(self, batch: Any, metric: Any, name: str) -> None:
        x, y = batch
        metric.update(metric.compute(self(x), y.unsqueeze(-1)))
        self.log(name, metric, on_step=False, on_epoch=True)


def share_right(module: Any, batches: list[Any], k: int) -> float:
    best = [(paddle.topk(module(x), k)[1].numpy(), y.numpy()) for x, y in batches]
    return float(np.mean(np.concatenate([(found == y[:, None]).any(-1) for found, y in best])))


@pytest.mark.parametrize("name", ["acc", "val_acc"])
def test_each_number_of_an_object_that_has_several_is_logged_by_its_name_and_exact(name: str) -> None:
    batches = [*make_batches(2), *make_batches(1, batch_size=2, seed=5)]
    module = TopTwo(name)
    for _ in range(2):  # each evaluation counts anew
        (results,) = quiet_trainer().validate(module, batches, verbose=False)
        module.eval()
        expected = {f"{name}_top{k}": pytest.approx(share_right(module, batches, k)) for k in (1, 2)}
        assert results == expected


def test_they_are_told_apart_by_loader_too() -> None:
    class OfEach(TopTwo):
        def __init__(self) -> None:
            super().__init__()
            self.each = [paddle.metric.Accuracy(topk=(1, 2)) for _ in range(2)]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.count(batch, self.each[dataloader_idx], "acc")

    loaders = [paddle.io.DataLoader(paddle.io.TensorDataset([x, y]), batch_size=4) for x, y in make_batches(2)]
    results = quiet_trainer().validate(OfEach(), loaders, verbose=False)
    names = [[f"acc_top{k}/dataloader_idx_{index}" for k in (1, 2)] for index in range(2)]
    assert [list(of_loader) for of_loader in results] == names


def test_a_run_resumed_within_an_epoch_has_the_same_numbers(tmp_path: Path) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            self.seen.append({name: trainer.callback_metrics[f"train_acc_top{name}"] for name in ("1", "2")})

    def run(root: Path, max_steps: int, ckpt_path: str | None = None) -> list[dict[str, float]]:
        watch = Watch()
        trainer = quiet_trainer(
            callbacks=[watch, ModelCheckpoint(every_n_train_steps=1)],
            enable_checkpointing=True,
            default_root_dir=root,
            max_epochs=2,
            max_steps=max_steps,
            seed=1,
        )
        trainer.fit(TopTwo(), make_batches(4), ckpt_path=ckpt_path)
        return watch.seen

    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "cut", 2)
    assert run(tmp_path / "cut", 8, "last") == whole
