"""What of a checkpoint each rank is given where another number of ranks had saved it, or why it is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from loaders import AugmentedStream
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import CheckpointMismatchError
from paddlelite_trainer.fit import preparation, rank_state
from paddlelite_trainer.fit.saved import Saved
from paddlelite_trainer.gradients import put_gradient_back, saved_gradient
from paddlelite_trainer.machine.rng import derive_seed, seed_generators
from paddlelite_trainer.reporting.metrics import MetricCollector, counts_added_up, counts_of, dealt_again


def saved_within_an_epoch(tmp_path: Path, loader: Any, **settings: Any) -> Any:
    def trainer(**more: Any) -> Any:
        callbacks = [ModelCheckpoint(every_n_train_steps=1)]
        options = {"enable_checkpointing": True, "default_root_dir": tmp_path, "run_name": "run", "seed": 3}
        return quiet_trainer(callbacks=callbacks, **{**options, **settings, **more})

    trainer(max_steps=2).fit(Classifier(), loader)
    as_if_started_again()
    return trainer(max_epochs=2)


@pytest.fixture
def saved_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of one process look as if two had saved them."""
    monkeypatch.setattr(Saved, "ranks", property(lambda self: 2))
    own = Saved.of_rank
    monkeypatch.setattr(Saved, "of_rank", lambda self, rank: own(self, 0))


@pytest.fixture
def saved_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank looks as if there had been none of its number."""
    given = rank_state.restore_random_states

    def without_ranks(fit: Any, saved: Saved) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Saved, "ranks", property(lambda self: 0))
            given(fit, saved)

    monkeypatch.setattr(preparation, "restore_random_states", without_ranks)


@pytest.mark.usefixtures("saved_by_two")
def test_data_that_are_read_in_order_are_refused_within_an_epoch_with_the_way_out(tmp_path: Path) -> None:
    class Stream(AugmentedStream):
        def __iter__(self) -> Any:
            return iter([(x[0], y[0]) for x, y in make_batches(6, 1)])

    loader = paddle.io.DataLoader(Stream(), batch_size=2)
    trainer = saved_within_an_epoch(tmp_path, loader)
    with pytest.raises(CheckpointMismatchError) as told:
        trainer.fit(Classifier(), loader, ckpt_path="last")
    words = " ".join(str(told.value).split())
    assert (
        "number of processes: saved 2, now 1, in the middle of epoch 0, and train_dataloader is read in order" in words
    )
    assert "by each rank for itself, so what 2 had left cannot be dealt out among 1" in words
    assert "Use the saved one until the epoch ends, or pass override=('data',) to begin this epoch again" in words
    trainer = saved_within_an_epoch(tmp_path / "again", loader)
    trainer.fit(Classifier(), loader, ckpt_path="last", override=("data",))
    assert trainer.global_step == 2 + 2 * 3


@pytest.mark.usefixtures("saved_by_two")
def test_other_data_are_refused_for_another_number_of_ranks_too(tmp_path: Path) -> None:
    trainer = saved_within_an_epoch(tmp_path, make_batches(6))
    with pytest.raises(CheckpointMismatchError, match=r"batches per epoch: saved 6, now 4, in the middle of epoch 0"):
        trainer.fit(Classifier(), make_batches(7), ckpt_path="last")  # of which two ranks would have had 4 each


@pytest.mark.usefixtures("saved_by_none")
def test_a_new_rank_draws_numbers_of_its_own_by_a_stated_rule(tmp_path: Path) -> None:
    class Draws(Classifier):
        def on_train_epoch_resume(self) -> None:
            self.drawn = np.random.rand()

    drawn = []
    for directory in ("a", "b"):
        module = Draws()
        saved_within_an_epoch(tmp_path / directory, make_batches(6)).fit(module, make_batches(6), ckpt_path="last")
        drawn.append(module.drawn)
    batches_done = 2
    seed_generators(derive_seed(3, "rank", 0, batches_done))
    assert drawn == [np.random.rand()] * 2


def values(*numbers: float, **options: Any) -> dict[str, Any]:
    collector = MetricCollector()
    for number in numbers:
        collector.log("loss", number, False, True, False, False, options.get("reduce_fx", "mean"), 2)
    return collector.state_dict()


@pytest.mark.parametrize(("reduce_fx", "expected"), [("mean", 2.5), ("sum", 10.0), ("min", 1.0), ("max", 4.0)])
def test_what_ranks_have_summed_up_counts_once(reduce_fx: str, expected: float) -> None:
    states = [values(1.0, 2.0, reduce_fx=reduce_fx), values(3.0, 4.0, reduce_fx=reduce_fx)]
    for ranks in (1, 2, 3):
        collectors = [MetricCollector() for _ in range(ranks)]
        sent: list[Any] = []
        for rank, collector in enumerate(collectors):
            collector.load_state_dict(dealt_again(states, rank))
            collector.reduce_over(partial(sent_by, sent))
        assert collectors[-1].epoch_values() == {"loss": expected}


def sent_by(sent: list[Any], mine: Any) -> list[Any]:
    """A gathering, for the last of all ranks."""
    sent.append(mine)
    return sent


def test_what_was_taken_over_all_ranks_already_is_not_added_again() -> None:
    collector = MetricCollector()
    collector.load_state_dict(values(1.0, 2.0))
    collector.reduce_over(lambda mine: [mine, mine])
    state = collector.state_dict()
    for rank in range(3):
        assert dealt_again([state, state], rank) == state


def test_counts_of_paddle_s_metrics_add_up_and_others_do_not() -> None:
    metric = paddle.metric.Accuracy()
    counts = []
    for right in (3, 5):
        metric.reset()
        metric.update(paddle.to_tensor([[1.0]] * right + [[0.0]] * 2))
        counts.append(counts_of(metric))
    sums = counts_added_up(metric, counts)
    assert sums is not None and (sums["total"], sums["count"]) == ([8.0], [12])

    class Own(paddle.metric.Accuracy):
        pass

    assert counts_added_up(Own(), counts) is None


@pytest.mark.parametrize(
    ("dtype", "rounds_to"), [("float32", 1e-6), ("float64", 1e-6), ("float16", 2**-10), ("bfloat16", 2**-7)]
)
def test_waiting_gradients_become_their_mean_in_their_own_type(dtype: str, rounds_to: float) -> None:
    """As in a run of manual optimization, which may be saved before its step."""
    parameter = paddle.nn.Linear(1, 3).to(dtype=dtype).bias

    def saved(values: list[float]) -> Any:
        return saved_gradient(paddle.to_tensor(values).astype(dtype))

    everyones = [{"bias": saved([1.0, 2.5, -3.0])}, {"bias": saved([3.0, 0.5, -5.0])}, {}]
    mean = rank_state.means_over_ranks(everyones)["bias"]
    put_gradient_back(parameter, mean)
    assert parameter.grad.dtype == parameter.dtype
    assert parameter.grad.astype("float32").numpy() == pytest.approx([4 / 3, 1.0, -8 / 3], rel=rounds_to)
