"""Several training loaders at once: what a step is given, where an epoch ends, and that a run resumes within it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, as_if_started_again, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import CombinedLoader
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, DataError


class Numbered(paddle.io.Dataset):
    """Sample i is i in all its four places, with its label."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        noise = np.random.rand(4).astype("float32")
        return np.full(4, self.first + index, "float32") + noise, index % 3


class Reads:
    """An iterable without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        for index in range(self.count):
            yield [paddle.full([2, 4], float(index)), paddle.zeros([2], "int64")]


class Flows(Reads):
    """Numbers that go on where they were, for good: its place is in its state alone."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Any:
        while True:
            self.next += 1
            yield [paddle.full([2, 4], float(self.next)), paddle.zeros([2], "int64")]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def loader(count: int, first: int = 0, **options: Any) -> Any:
    return paddle.io.DataLoader(Numbered(count, first), batch_size=2, shuffle=True, **options)


class Both(Classifier):
    """Trains on all of its batches, and keeps which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        parts = batch.values() if isinstance(batch, dict) else batch
        self.seen.append([tuple(part[0].numpy()[:, 0].astype(int).tolist()) for part in parts])
        return sum(self.loss(part) * 0.01 for part in parts)


def fitted(data: Any, **settings: Any) -> tuple[Any, Any]:
    trainer, module = quiet_trainer(seed=3, **settings), Both()
    trainer.fit(module, data)
    return trainer, module


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_step_is_given_a_batch_of_each_as_the_loaders_came(kind: type) -> None:
    given: list[Any] = []

    class Looks(Both):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            given.append(batch)
            return super().training_step(batch, batch_idx)

    loaders = {"a": loader(6), "b": loader(10, 100)}
    data = loaders if kind is dict else kind(loaders.values())
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(Looks(), data)
    assert trainer.num_training_batches == 3
    assert trainer.train_dataloader is data
    assert trainer.global_step == 6
    assert all(type(batch) is kind for batch in given)
    if kind is dict:
        assert list(given[0]) == ["a", "b"]
        given = [list(batch.values()) for batch in given]
    assert sorted(int(value) for a, _ in given[:3] for value in a[0].numpy()[:, 0]) == list(range(6))
    assert all((b[0].numpy() >= 100).all() for _, b in given)


def test_a_longest_loader_sees_all_of_its_samples_while_a_shorter_one_goes_round() -> None:
    trainer, module = fitted(CombinedLoader([loader(8), loader(18, 100)], mode="max_size_cycle"), max_epochs=2)
    assert trainer.global_step == 18
    orders = []
    for epoch in (module.seen[:9], module.seen[9:]):
        assert sorted(value for _, b in epoch for value in b) == list(range(100, 118))
        for one_pass in (epoch[:4], epoch[4:8]):
            assert sorted(value for a, _ in one_pass for value in a) == list(range(8))
            orders.append(str([a for a, _ in one_pass]))
    assert len(set(orders)) == 4


def test_loaders_of_the_same_data_are_not_in_the_same_order() -> None:
    _, module = fitted([loader(20), loader(20)])
    assert [a for a, _ in module.seen] != [b for _, b in module.seen]


def test_an_iterable_without_a_length_ends_the_epoch_where_it_ends() -> None:
    trainer, module = fitted({"long": loader(20), "read": Reads(4)}, max_epochs=2)
    assert (trainer.global_step, trainer.current_epoch, len(module.seen)) == (8, 2, 8)


def test_a_limit_counts_batches_of_all() -> None:
    assert fitted([loader(6), loader(10)], limit_train_batches=2)[0].global_step == 2
    assert fitted([loader(8), loader(10)], limit_train_batches=0.5)[0].global_step == 2
    assert fitted([loader(8), Reads(9)], limit_train_batches=3)[0].global_step == 3


DATA: dict[str, Callable[[], Any]] = {
    "the shortest": lambda: {"a": loader(6), "b": loader(10, 100)},
    "going round": lambda: CombinedLoader([loader(4), loader(10, 100)], mode="max_size_cycle"),
    "without a length": lambda: [loader(12), Reads(5)],
    "a state of its own": lambda: [loader(6), Flows()],
    "an end that is not known": lambda: [Reads(3), Flows()],
    "workers": lambda: CombinedLoader([loader(4, num_workers=1), loader(10, 100)], mode="max_size_cycle"),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_run_goes_on_within_an_epoch_as_if_it_had_not_stopped(tmp_path: Path, kind: str) -> None:
    whole, expected = fitted(DATA[kind](), max_epochs=2)
    for cut in [7] if kind == "workers" else range(1, whole.global_step, 2):
        settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path / str(cut), "seed": 3}
        quiet_trainer(max_steps=cut, max_epochs=2, **settings).fit(Both(), DATA[kind]())
        as_if_started_again()
        module, resumed = Both(), quiet_trainer(max_epochs=2, **settings)
        resumed.fit(module, DATA[kind](), ckpt_path="last")
        assert module.seen == expected.seen[cut:]
        assert same_weights(weights_of(module), weights_of(expected))


def test_the_epoch_s_mean_weighs_by_the_first_loader(recwarn: pytest.WarningsRecorder) -> None:
    class Logs(Both):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("index", float(batch_idx), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer()
    trainer.fit(Logs(), [loader(5), paddle.io.DataLoader(Numbered(12), batch_size=4)])
    assert trainer.callback_metrics["index"] == pytest.approx((0 * 2 + 1 * 2 + 2 * 1) / 5)
    assert not [warning for warning in recwarn if "size of a batch" in str(warning.message)]


def test_loaders_within_loaders_are_refused() -> None:
    for nested in ({"x": loader(2)}, [loader(2), loader(4)], (loader(2),), CombinedLoader([loader(2)])):
        with pytest.raises(ConfigurationTypeError) as error:
            CombinedLoader({"a": loader(2), "b": nested})
        assert str(error.value) == (
            f"CombinedLoader was given several loaders, a {type(nested).__name__}, as its loader 'b': "
            "loaders are not nested here, give all of them side by side"
        )


def test_what_cannot_be_combined_is_one_clear_error() -> None:
    for wrong, told in (({}, "no loader"), ({"a": 3}, r"train_dataloader\['a'\] must be a paddle.io.DataLoader")):
        with pytest.raises((ConfigurationError, ConfigurationTypeError), match=told):
            fitted(wrong)
    with pytest.raises(ConfigurationError, match=r"must be one of min_size, max_size_cycle, got 'sequential'"):
        CombinedLoader([loader(2)], mode="sequential")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"max_size_cycle.*train_dataloader\[1\] has no length"):
        fitted(CombinedLoader([loader(4), Reads(3)], mode="max_size_cycle"))
    with pytest.raises(ConfigurationTypeError, match="for evaluation also a list of DataLoaders; no dict"):
        quiet_trainer().validate(Both(), {"a": loader(2)})
    with pytest.raises(ConfigurationTypeError, match=r"list of DataLoaders and others.*CombinedLoader"):
        fitted([loader(4), [1, 2]])


def test_a_part_that_ends_before_it_said_is_an_error() -> None:
    class Says(Reads):
        def __len__(self) -> int:
            return 6

    for mode in ("min_size", "max_size_cycle"):
        with pytest.raises(DataError, match=r"said that .* 6 batches and ended after 4"):
            fitted(CombinedLoader([Says(4), loader(20)], mode=mode))  # type: ignore[arg-type]


def test_a_misspelt_argument_of_a_combined_loader_has_a_suggestion() -> None:
    with pytest.raises(ConfigurationTypeError, match=r"CombinedLoader has no argument 'modes'\. Did you mean 'mode'\?"):
        CombinedLoader([loader(2)], modes="min_size")  # type: ignore[call-arg]
