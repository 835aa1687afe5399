"""The fake accelerator itself: it must behave like a device, and compute what the CPU computes."""

from __future__ import annotations

import fake_gpu
import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

OPTIMIZERS = ["SGD", "Momentum", "Adam", "AdamW"]


class Network(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.pool = nn.Conv2D(1, 8, 3, padding=1), nn.BatchNorm2D(8), nn.MaxPool2D(2)
        self.hidden, self.layer_norm, self.embedding = nn.Linear(128, 32), nn.LayerNorm(32), nn.Embedding(10, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: paddle.Tensor, tokens: paddle.Tensor) -> paddle.Tensor:
        x = paddle.flatten(self.pool(F.relu(self.norm(self.convolution(images)))), 1)
        return self.head(F.gelu(self.layer_norm(self.hidden(x))) + self.embedding(tokens))


def filled(layer: nn.Layer) -> nn.Layer:
    random = np.random.RandomState(0)
    for name, value in layer.state_dict().items():
        array = np.ones(value.shape) if name.endswith("_variance") else random.randn(*value.shape) * 0.1
        value.set_value(array.astype("float32"))
    return layer


def batch(seed: int) -> list[paddle.Tensor]:
    random = np.random.RandomState(seed)
    arrays = random.randn(16, 1, 8, 8).astype("float32"), random.randint(0, 10, 16), random.randint(0, 10, 16)
    return [paddle.to_tensor(array) for array in arrays]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_training_has_the_bits_of_the_cpu(name: str) -> None:
    def trained(device: str) -> dict[str, np.ndarray]:
        paddle.set_device(device)
        network = filled(Network())
        clip = nn.ClipGradByGlobalNorm(1.0)
        optimizer = getattr(paddle.optimizer, name)(1e-2, parameters=network.parameters(), grad_clip=clip)
        for step in range(4):
            images, tokens, labels = batch(step)
            F.cross_entropy(network(images, tokens), labels).backward()
            optimizer.step()
            optimizer.clear_grad()
        return {key: value.numpy() for key, value in network.state_dict().items()}

    expected, actual = trained("cpu"), trained("fake_gpu:0")
    assert [key for key in expected if not np.array_equal(expected[key], actual[key])] == []


def test_a_transformer_and_an_lstm_have_the_bits_of_the_cpu() -> None:
    def computed(device: str) -> list[np.ndarray]:
        paddle.set_device(device)
        encoder = filled(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0), 2))
        lstm = filled(nn.LSTM(16, 8))
        x = paddle.to_tensor(np.random.RandomState(3).randn(2, 5, 16).astype("float32"), stop_gradient=False)
        output, _ = lstm(encoder(x))
        (output**2).mean().backward()
        gradients = [p.grad.numpy() for p in [*encoder.parameters(), *lstm.parameters()] if p.grad is not None]
        return [output.numpy(), x.grad.numpy(), *gradients]

    expected, actual = computed("cpu"), computed("fake_gpu:0")
    assert len(expected) > 20
    assert all(np.array_equal(a, b) for a, b in zip(expected, actual))


def test_autocast_computes_in_float16_and_overflows() -> None:
    x, weight = paddle.randn([4, 8]), paddle.randn([8, 8])
    with paddle.amp.auto_cast(dtype="float16"):
        product = paddle.matmul(x, weight)
        overflow = paddle.matmul(x * 0 + 1e4, weight * 0 + 1)
        assert F.softmax(product).dtype == paddle.float32
    halves = x.numpy().astype("float16").astype("float32") @ weight.numpy().astype("float16").astype("float32")
    assert product.dtype == paddle.float16
    # Not bit for bit: Paddle's own conversion to float16 on the CPU rounds in 3.x and truncates in 2.6.
    np.testing.assert_allclose(product.numpy(), halves, rtol=4e-3, atol=4e-3)
    assert np.isinf(overflow.numpy()).all()


def test_autocast_computes_in_bfloat16(bfloat16: None) -> None:
    with paddle.amp.auto_cast(dtype="bfloat16"):
        product = paddle.matmul(paddle.full([2, 2], 1.001), paddle.ones([2, 2]))
    assert product.dtype == paddle.bfloat16
    assert product.astype("float32").numpy().tolist() == [[2.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float16_parameters_are_their_rounded_float32_masters(name: str) -> None:
    network = filled(Network())
    optimizer = getattr(paddle.optimizer, name)(1e-2, parameters=network.parameters())
    network, optimizer = paddle.amp.decorate(network, optimizer, level="O2", dtype="float16", master_weight=True)
    before = network.hidden.weight.numpy()
    images, tokens, labels = batch(0)
    with paddle.amp.auto_cast(dtype="float16", level="O2"):
        loss = F.cross_entropy(network(images, tokens), labels)
    loss.backward()
    optimizer.step()
    masters = optimizer.state_dict()["master_weights"]
    halves = {p.name: p.numpy() for p in network.parameters() if p.dtype == paddle.float16}
    assert len(halves) > 4 and masters.keys() == halves.keys()
    assert all(np.array_equal(masters[key].numpy().astype("float16"), halves[key]) for key in halves)
    assert not np.array_equal(before, network.hidden.weight.numpy())


def test_the_devices_generator_is_not_the_cpus() -> None:
    def drawn_on_the_cpu(after: int) -> list[float]:
        paddle.seed(9)
        for _ in range(after):
            paddle.randn([8])
        paddle.set_device("cpu")
        values = paddle.randn([4]).tolist()
        paddle.set_device("fake_gpu:0")
        return values

    assert drawn_on_the_cpu(after=0) == drawn_on_the_cpu(after=3)


def test_a_copy_to_the_host_is_counted() -> None:
    loss = paddle.ones([4]).sum()
    before = fake_gpu.device_to_host_copies()
    loss + 1
    assert fake_gpu.device_to_host_copies() == before
    loss.item()
    assert fake_gpu.device_to_host_copies() == before + 1


def test_memory_runs_out_at_the_limit_and_only_there() -> None:
    with fake_gpu.memory_limit(fake_gpu.memory_used() + (8 << 20)), pytest.raises(OSError, match="error code is : 2"):
        paddle.zeros([64 << 20])
    assert paddle.zeros([4]).sum().item() == 0
