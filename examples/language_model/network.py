"""A GPT of bytes, and thin matrices beside its frozen layers."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle.nn import LayerNorm, Linear


class Block(paddle.nn.Layer):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape([batch, length, 3, self.heads, width // self.heads])
        q, k, v = (part.squeeze(0) for part in heads.transpose([2, 0, 3, 1, 4]).split(3))
        scores = q @ k.transpose([0, 1, 3, 2]) * (width // self.heads) ** -0.5
        scores = scores + paddle.triu(paddle.full([length, length], -1e9), 1)
        x = x + self.out((F.softmax(scores) @ v).transpose([0, 2, 1, 3]).reshape([batch, length, width]))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LoRA(paddle.nn.Layer):
    """`linear` plus a product of two thin matrices, which alone are trained (arXiv 2106.09685)."""

    def __init__(self, linear: Linear, rank: int = 4) -> None:
        super().__init__()
        self.beside = [linear]  # in a list it is no sublayer
        before, after = linear.weight.shape
        self.down, self.up = Linear(before, rank, bias_attr=False), Linear(rank, after, bias_attr=False)
        self.up.weight.set_value(paddle.zeros_like(self.up.weight))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.beside[0](x) + self.up(self.down(x))
