"""One training run twice: as Paddle's documentation writes an AMP loop by hand, and through `Precision`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from paddlelite_trainer.machine.precision import Precision

SCALER_OPTIONS = {"init_loss_scaling": 256.0, "incr_every_n_steps": 2}
HALF = {"16-mixed": "float16", "16-true": "float16", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16"}
LEVEL = {"16-mixed": "O1", "bf16-mixed": "O1", "16-true": "O2", "bf16-true": "O2"}


@dataclass(frozen=True)
class Run:
    """What a run does: `windows` optimizer steps of `accumulate` batches each, an infinite loss in window `inf_at`."""

    precision: str
    optimizer: str = "AdamW"
    windows: int = 5
    accumulate: int = 1
    clip: float | None = None
    clip_by: str = "optimizer"  # the optimizer's own grad_clip, or "norm": by hand before the step
    inf_at: int | None = None
    dropout: float = 0.2

    def batches(self, window: int) -> Iterator[tuple[paddle.Tensor, paddle.Tensor, float]]:
        """Images, labels and a factor for the loss."""
        for micro in range(self.accumulate):
            random = np.random.RandomState(100 * window + micro)
            last = micro == self.accumulate - 1
            factor = float("inf") if window == self.inf_at and last else 1.0
            images = paddle.to_tensor(random.randn(8, 1, 8, 8).astype("float32"))
            yield images, paddle.to_tensor(random.randint(0, 4, 8)), factor / self.accumulate


class Network(nn.Layer):
    """Layers that O2 converts and layers that it leaves in float32, and dropout, which draws from the generator."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2D(1, 4, 3, stride=2, padding=1), nn.BatchNorm2D(4)
        self.hidden, self.layer_norm, self.dropout = nn.Linear(64, 16), nn.LayerNorm(16), nn.Dropout(dropout)
        self.head = nn.Linear(16, 4)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        x = paddle.flatten(F.relu(self.norm(self.convolution(images))), 1)
        return self.head(self.dropout(F.gelu(self.layer_norm(self.hidden(x)))))


def start(run: Run, *, float64: bool = False) -> tuple[Network, Any]:
    paddle.seed(7)
    network = Network(run.dropout)
    random = np.random.RandomState(0)
    for name, value in network.state_dict().items():
        array = np.ones(value.shape) if name.endswith("_variance") else random.randn(*value.shape) * 0.2
        value.set_value(array.astype("float32"))
    if float64:
        network.to(dtype="float64")  # before the optimizer exists: Paddle fixes the learning rate's type there
    clip = None if run.clip is None or run.clip_by == "norm" else nn.ClipGradByGlobalNorm(run.clip)
    optimizer = getattr(paddle.optimizer, run.optimizer)(2e-2, parameters=network.parameters(), grad_clip=clip)
    return network, optimizer


def bits(network: nn.Layer, optimizer: Any, scaler: Any, loss: paddle.Tensor) -> dict[str, bytes]:
    """Everything that a step may change, as bytes, by names that do not depend on how Paddle counts parameters."""
    found = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    state = optimizer.state_dict()
    state |= {f"{name}_master": value for name, value in state.pop("master_weights", {}).items()}
    by_length = sorted(network.named_parameters(), key=lambda pair: -len(pair[1].name))
    for key, value in state.items():
        if isinstance(value, paddle.Tensor):
            name, parameter = next(pair for pair in by_length if key.startswith(pair[1].name))
            found[f"{name}/{key[len(parameter.name) :]}"] = value.numpy().tobytes()
    found["loss"] = loss.astype("float32").numpy().tobytes()
    if scaler is not None:
        found["scale"] = scaler.state_dict()["scale"].tobytes()
        found["counts"] = repr((scaler._incr_count, scaler._decr_count)).encode()
    return found


def by_hand(run: Run) -> list[dict[str, bytes]]:
    network, optimizer = start(run, float64=run.precision == "64-true")
    half, level = HALF.get(run.precision), LEVEL.get(run.precision)
    scaler = paddle.amp.GradScaler(**SCALER_OPTIONS) if half == "float16" else None
    if level == "O2":
        network, optimizer = paddle.amp.decorate(network, optimizer, level="O2", dtype=half, master_weight=True)
    seen = []
    for window in range(run.windows):
        for images, labels, factor in run.batches(window):
            if run.precision == "64-true":
                images = images.astype("float64")
            with contextlib.ExitStack() as stack:
                if half:
                    stack.enter_context(paddle.amp.auto_cast(level=level, dtype=half))
                loss = F.cross_entropy(network(images), labels) * factor
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None and run.clip:
            scaler.unscale_(optimizer)
        if run.clip_by == "norm":
            _clip_by_norm(network, run.clip)
        if scaler is None:
            optimizer.step()
        else:
            with _float_of_one_element_tensors():
                scaler.step(optimizer)
                scaler.update()
        optimizer.clear_grad(set_to_zero=False)
        seen.append(bits(network, optimizer, scaler, loss))
    return seen


def _clip_by_norm(network: nn.Layer, max_norm: Any) -> None:
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters]
    if len({gradient.dtype for gradient in gradients}) == 1:
        paddle.nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    wide = [gradient.astype("float32") for gradient in gradients]
    norm = paddle.linalg.norm(paddle.stack([paddle.linalg.norm(gradient) for gradient in wide]))
    factor = paddle.clip(max_norm / (norm + 1e-6), max=1.0)
    for gradient, value in zip(gradients, wide):
        paddle.assign((value * factor).astype(gradient.dtype), gradient)


def by_precision(run: Run) -> list[dict[str, bytes]]:
    network, optimizer = start(run)
    options = {"scaler_options": SCALER_OPTIONS} if HALF.get(run.precision) == "float16" else {}
    precision = Precision(run.precision, **options)  # type: ignore[arg-type]
    assert precision.effective == run.precision
    precision.prepare(network, [optimizer])
    seen = []
    for window in range(run.windows):
        for images, labels, factor in run.batches(window):
            if precision.convert_input:
                images = precision.convert_input(images)
            with precision.autocast() if precision.autocast else contextlib.nullcontext():
                loss = F.cross_entropy(network(images), labels) * factor
            precision.backward(loss)
        if run.clip:
            precision.unscale(optimizer)
        stepped = precision.step(optimizer)
        precision.update()
        assert stepped == (precision.scaler is None or window != run.inf_at)
        optimizer.clear_grad(set_to_zero=False)
        seen.append(bits(network, optimizer, precision.scaler, loss))
    return seen


@contextlib.contextmanager
def _float_of_one_element_tensors() -> Iterator[None]:
    """Paddle 3.3's own update() calls float() on a tensor of shape [1], which NumPy 2.4 made an error."""
    original = paddle.Tensor.__float__
    paddle.Tensor.__float__ = lambda tensor: float(tensor.numpy().reshape(-1)[0])
    try:
        yield
    finally:
        paddle.Tensor.__float__ = original
