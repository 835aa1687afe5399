"""self.log: what it keeps, how it averages, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.reporting.metrics import PENDING_LIMIT, MetricCollector


def log(collector: MetricCollector, name: str, value: Any, **options: Any) -> None:
    chosen = {
        "on_step": True,
        "on_epoch": True,
        "prog_bar": False,
        "logger": True,
        "reduce_fx": "mean",
        "batch_size": 1,
    }
    collector.log(name, value, **{**chosen, **options})


def test_an_epochs_mean_is_weighted_by_batch_size() -> None:
    class Sizes(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("size", float(len(batch[0])))

    uneven = make_batches(1, batch_size=30) + make_batches(1, batch_size=10)
    trainer = quiet_trainer()
    assert trainer.validate(Sizes(), uneven, verbose=False)[0]["size"] == (30 * 30 + 10 * 10) / 40


def test_a_given_batch_size_wins() -> None:
    collector = MetricCollector()
    log(collector, "x", 1.0, batch_size=3)
    log(collector, "x", 5.0, batch_size=1)
    assert collector.epoch_values() == {"x_epoch": 2.0}


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [("mean", 2.0), ("sum", 6.0), ("min", 1.0), ("max", 3.0), (np.prod, 6.0), (paddle.max, 3.0)],
)
def test_reductions(reduce_fx: Any, expected: float) -> None:
    collector = MetricCollector()
    for value in (1.0, 3.0, 2.0):
        log(collector, "x", value, reduce_fx=reduce_fx)
    assert collector.epoch_values() == {"x_epoch": expected}


def test_names_fork_when_logged_on_steps_and_epochs() -> None:
    collector = MetricCollector()
    log(collector, "x", 1.0)
    log(collector, "x", 2.0)
    assert collector.callback_values(epoch_end=False) == {"x_step": 2.0, "x": 2.0}
    assert collector.callback_values(epoch_end=True) == {"x_step": 2.0, "x_epoch": 1.5, "x": 1.5}


def test_the_sum_does_not_depend_on_when_values_were_read() -> None:
    numbers = np.random.RandomState(0).randn(300).astype("float32")
    seldom, often = MetricCollector(), MetricCollector()
    for number in numbers:
        for collector in (seldom, often):
            log(collector, "x", paddle.to_tensor(number), batch_size=3)
        often.read()
    assert seldom.epoch_values() == often.epoch_values()


def test_memory_is_bounded_when_nobody_reads() -> None:
    collector = MetricCollector()
    for _ in range(3 * PENDING_LIMIT):
        log(collector, "x", 1.0)
    assert len(collector._series["x"].pending) < PENDING_LIMIT


def test_of_a_name_logged_on_steps_alone_only_the_newest_value_is_kept() -> None:
    collector = MetricCollector()
    for number in range(5):
        log(collector, "x", paddle.to_tensor(float(number)), on_epoch=False)
    assert len(collector._series["x"].pending) == 1
    assert collector.step_values() == {"x": 4.0}
    assert collector.epoch_values() == {}


def test_a_running_value_that_its_owner_goes_on_changing_keeps_its_logged_value() -> None:
    collector = MetricCollector()
    running = paddle.to_tensor(1.0)
    log(collector, "x", running)
    running.add_(paddle.to_tensor(5.0))
    assert collector.step_values() == {"x_step": 1.0}


def test_a_loss_changed_in_place_after_it_was_logged_is_an_error_and_not_a_wrong_number() -> None:
    collector = MetricCollector()
    weight = paddle.to_tensor(2.0, stop_gradient=False)
    loss = weight * 3
    log(collector, "x", loss)
    with paddle.no_grad():
        loss.scale_(2.0)
    with pytest.raises(ConfigurationError, match=r"'x'.*changed in place"):
        collector.read()


def test_one_name_has_one_set_of_options() -> None:
    collector = MetricCollector()
    log(collector, "x", 1.0)
    with pytest.raises(ConfigurationError, match="other options"):
        log(collector, "x", 1.0, prog_bar=True)


def test_a_paddle_metric_accumulates_by_itself() -> None:
    class Accuracy(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = paddle.metric.Accuracy()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.accuracy.update(self.accuracy.compute(self(x), y.unsqueeze(1)))
            self.log("val_acc", self.accuracy)

    module, batches = Accuracy(), make_batches(3)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, make_batches(1), batches)
    correct = np.concatenate([(module(x).argmax(1) == y).numpy() for x, y in batches])
    assert trainer.history[-1]["val_acc"] == pytest.approx(correct.mean())


def test_state_survives_mid_epoch() -> None:
    def continued(split: int) -> dict[str, float]:
        collector = MetricCollector()
        for number in range(10):
            if number == split:
                state = collector.state_dict()
                collector = MetricCollector()
                collector.load_state_dict(state)
            log(collector, "mean", number / 3)
            log(collector, "product", 1 + number / 7, reduce_fx=np.prod)
        return collector.epoch_values()

    assert all(continued(split) == continued(-1) for split in range(10))


def test_bfloat16_and_integers_are_numbers_too() -> None:
    collector = MetricCollector()
    log(collector, "b", paddle.to_tensor(1.5).astype("bfloat16"))
    log(collector, "i", paddle.to_tensor(3))
    log(collector, "one", paddle.to_tensor([2.0]))
    assert collector.step_values() == {"b_step": 1.5, "i_step": 3.0, "one_step": 2.0}


def test_callback_metrics_answer_item_as_in_lightning() -> None:
    trainer = quiet_trainer()
    trainer.fit(Classifier(), make_batches(2), make_batches(1))
    assert trainer.callback_metrics["val_loss"].item() == trainer.callback_metrics["val_loss"]  # type: ignore[attr-defined]


# -- over ranks --------------------------------------------------------------------------------------------------------
def reduced_over_ranks(*collectors: MetricCollector) -> list[dict[str, float]]:
    """What each rank's epoch values are when all have gathered."""
    sent: list[Any] = []
    for collector in collectors:
        collector.copy().reduce_over(lambda mine: [sent.append(mine) or mine])
    for collector in collectors:
        collector.reduce_over(lambda mine: list(sent))
    return [collector.epoch_values() for collector in collectors]


def test_a_rank_without_batches_takes_what_the_others_logged() -> None:
    busy, idle = MetricCollector(), MetricCollector()
    for name, reduce_fx in (("loss", "mean"), ("count", "sum"), ("most", "max"), ("least", "min")):
        for value in (1.0, 4.0):
            log(busy, name, value, reduce_fx=reduce_fx, on_step=False)
    expected = {"loss": 2.5, "count": 5.0, "most": 4.0, "least": 1.0}
    assert reduced_over_ranks(busy, idle) == [expected, expected]


@pytest.mark.parametrize(
    "make", [paddle.metric.Accuracy, paddle.metric.Precision, paddle.metric.Recall, paddle.metric.Auc]
)
def test_a_metric_of_paddle_is_taken_over_the_samples_of_all_ranks(make: Any) -> None:
    numbers = np.random.RandomState(0)
    predictions, labels = numbers.rand(90, 1).astype("float32"), numbers.randint(0, 2, [90, 1])

    def counted(rows: slice) -> Any:
        metric = make()
        p, y = predictions[rows], labels[rows]
        if make is paddle.metric.Accuracy:
            both = paddle.to_tensor(np.concatenate([1 - p, p], 1))
            metric.update(metric.compute(both, paddle.to_tensor(y)))
        else:
            metric.update(np.concatenate([1 - p, p], 1) if make is paddle.metric.Auc else p, y)
        return metric

    collectors = [MetricCollector(), MetricCollector()]
    parts = [counted(slice(0, 23)), counted(slice(23, 90))]
    for collector, part in zip(collectors, parts):
        log(collector, "m", part, on_step=False)
    alone = [part.accumulate() for part in parts]
    whole = counted(slice(0, 90)).accumulate()
    assert alone[0] != alone[1]
    assert reduced_over_ranks(*collectors) == [{"m": whole}, {"m": whole}]
    assert [part.accumulate() for part in parts] == alone  # each goes on with its own counts
