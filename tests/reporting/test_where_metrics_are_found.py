"""A paddle.metric.Metric is found wherever a module keeps it."""

from __future__ import annotations

import paddle

from paddlelite_trainer import Module
from paddlelite_trainer.reporting.metrics import paddle_metrics_of


class Keeps(Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = paddle.metric.Accuracy()
        self.listed = [paddle.metric.Auc()]
        self.named = {"val": paddle.metric.Accuracy()}
        self._hidden = {"test": paddle.metric.Accuracy()}
        self.part = paddle.nn.Linear(1, 1)
        self.part.inner = paddle.metric.Accuracy()


def test_a_metric_is_found_in_an_attribute_a_list_or_a_dict_whatever_its_name() -> None:
    module = Keeps()
    assert paddle_metrics_of(module) == {
        "plain": module.plain,
        "listed[0]": module.listed[0],
        "named['val']": module.named["val"],
        "_hidden['test']": module._hidden["test"],
        "part.inner": module.part.inner,
    }
