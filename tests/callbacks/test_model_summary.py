"""ModelSummary with shapes and operations: the numbers of known networks, and that nothing of the run changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of
from paddlelite_trainer.callbacks.model_summary import summarize

from paddlelite_trainer.callbacks import ModelSummary
from paddlelite_trainer.machine.rng import random_states

nn = paddle.nn


def test_resnet18_has_the_operations_that_are_published() -> None:
    summary = summarize(paddle.vision.models.resnet18(), 1, paddle.randn([2, 3, 64, 64]))
    # 1,814,073,344 products for 224 x 224, of which 512,000 in the last layer: the rest goes with the area, 49 to 4.
    convolutions = (1_814_073_344 - 512_000) * 4 // 49
    assert summary.flops == 2 * 2 * (convolutions + 512_000)
    by_name = {layer.name: layer for layer in summary.layers}
    assert by_name["conv1"].input_shape == [2, 3, 64, 64] and by_name["conv1"].output_shape == [2, 64, 32, 32]
    assert by_name["fc"].flops == 2 * 2 * 512_000
    assert sum(layer.flops or 0 for layer in summary.layers) == summary.flops


@pytest.mark.parametrize(
    ("layer", "shapes", "products"),
    [
        (lambda: nn.Linear(4, 3), [[2, 5, 4]], 2 * 5 * 4 * 3),
        (lambda: nn.Conv1D(4, 6, 3, groups=2), [[2, 4, 9]], 2 * 6 * 7 * 2 * 3),
        (lambda: nn.Conv2DTranspose(4, 6, 3), [[2, 4, 5, 5]], 2 * 4 * 25 * 6 * 9),
        (lambda: nn.LSTM(4, 6, num_layers=2, direction="bidirect"), [[2, 7, 4]], None),
        (lambda: nn.GRUCell(4, 6), [[2, 4]], 2 * 3 * 6 * (4 + 6)),
        # Four projections, then scores and their sums over 7 keys.
        (lambda: nn.MultiHeadAttention(8, 2), [[2, 5, 8], [2, 7, 8], [2, 7, 8]], None),
    ],
)
def test_operations_are_twice_the_products(layer: Any, shapes: Any, products: int | None) -> None:
    made = layer()
    if isinstance(made, nn.LSTM):  # four gates, of two directions: 4 numbers in, then 12
        products = 2 * 7 * 2 * 4 * 6 * ((4 + 6) + (12 + 6))
    elif isinstance(made, nn.MultiHeadAttention):
        products = (2 * 5 + 2 * 7 + 2 * 7 + 2 * 5) * 64 + 2 * (2 * 5 * 7 * 8)
    module = nn.Sequential(made) if len(shapes) == 1 else made
    summary = summarize(module, -1, tuple(paddle.randn(shape) for shape in shapes))
    assert products is not None and summary.flops == 2 * products


class Net(Classifier):
    """Draws numbers and counts in forward."""

    def __init__(self, example: bool = False) -> None:
        super().__init__(hidden=6)
        self.net.add_sublayer("norm", nn.BatchNorm1D(3))
        self.net.add_sublayer("dropout", nn.Dropout(0.2))
        self.register_buffer("calls", paddle.zeros([1]))
        if example:
            self.example_input_array = paddle.ones([16, 4])

    def forward(self, x: Any) -> Any:
        self.calls.add_(paddle.ones([1]))
        return super().forward(x)


def test_looking_changes_no_bit_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    ends = []
    for example, callbacks in (
        (False, []),
        (True, [ModelSummary()]),
        (False, [ModelSummary(shapes=True)]),
        (False, [ModelSummary(-1, shapes=True)]),
    ):
        module = Net(example)
        quiet_trainer(max_epochs=1, seed=5, callbacks=callbacks, num_sanity_val_steps=1).fit(
            module, make_batches(3), make_batches(1)
        )
        assert all(not layer._forward_post_hooks for layer in module.sublayers(include_self=True))
        ends.append((weights_of(module), repr(random_states()), capsys.readouterr().out))
    for weights, random, _ in ends[1:]:
        assert same_weights(weights, ends[0][0]) and random == ends[0][1]
    assert "forward of a batch of 16: 1.34k FLOPs, 84 a sample; products in layers of paddle.nn, 2 each" in ends[1][2]
    assert "forward of a batch of 8: 672 FLOPs, 84 a sample" in ends[2][2]
    assert "8x4" in ends[3][2] and ends[3][2].count("FLOPs a sample") == 0 and ends[3][2].count(" FLOPs,") == 1
    assert "FLOPs" not in ends[0][2]


def test_without_an_example_the_table_is_as_it_was_and_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(callbacks=[ModelSummary()]).fit(Net(), make_batches(1))
    said = capsys.readouterr().out
    assert " layer  type        parameters  trained" in said and "FLOPs" not in said


def test_what_is_compiled_needs_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    module = Classifier()
    quiet_trainer(callbacks=[ModelSummary(shapes=True)], compile=True).fit(module, make_batches(1))
    assert "set self.example_input_array" in capsys.readouterr().out
    module = Classifier()
    module.example_input_array = paddle.ones([2, 4])
    quiet_trainer(callbacks=[ModelSummary()], compile=True).fit(module, make_batches(1))
    assert "forward of a batch of 2" in capsys.readouterr().out
    assert np.isfinite(module(paddle.ones([2, 4])).numpy()).all()
