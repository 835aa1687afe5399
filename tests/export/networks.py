"""Networks that are exported in tests: one of each kind of input, output and way through forward."""

from __future__ import annotations

from typing import Any

import paddle

from paddlelite_trainer import Module

F = paddle.nn.functional
nn = paddle.nn


class Untrained(Module):
    """What a Trainer asks for, around a network."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return sum(output.astype("float32").mean() for output in self.outputs(batch))

    def outputs(self, batch: Any) -> list[Any]:
        found = self(*batch) if isinstance(batch, (list, tuple)) else self(batch)
        values = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
        return [value for value in values if value.is_floating_point()]

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class TwoInputs(Untrained):
    """Integers and floats, a keyword argument, dropout and batch norm, and two outputs, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 4), nn.Linear(4, 3)
        self.norm, self.dropout = nn.BatchNorm1D(3), nn.Dropout(0.5)

    def forward(self, ids: Any, weight: Any, *, doubled: bool = False) -> Any:
        x = self.linear((self.embedding(ids) * weight.unsqueeze(-1)).mean(axis=1))
        x = self.dropout(self.norm(x))
        return (x * 2 if doubled else x), x.argmax(-1)

    def outputs(self, batch: Any) -> list[Any]:
        return [self(batch[0], weight=batch[1], doubled=True)[0]]


class DictInput(Untrained):
    """One argument, a dict with a list in it; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["image"]
        for more in batch["more"]:
            x = x + more
        return {"logits": self.linear(x), "features": x}


class Branches(Untrained):
    """Control flow that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        x = self.linear(x)
        if x.mean() > 0:
            x = x * 2
        else:
            x = x - 1
        while x.abs().sum() > 10:
            x = x / 2
        return F.softmax(x)


class Untraceable(Untrained):
    """What Paddle cannot trace stands in a helper, as it does in users' code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.scaled(self.linear(x))

    def scaled(self, x: Any) -> Any:
        rows = x.tolist()
        return x * len(rows)


class OfOneSize(Untrained):
    """The batch's size is taken for a constant where it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.seen = 8

    def forward(self, x: Any) -> Any:
        if not paddle.in_dynamic_mode():
            return self.linear(x).reshape([self.seen, 3])
        return self.linear(x)


class OtherWhenTraced(Untrained):
    """A program that computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.linear(x) * (1.0 if paddle.in_dynamic_mode() else 1.01)


class NoForward(Module):
    """A step that calls its layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class Reader(Untrained):
    """A text reader in small: convolutions, a recurrent layer and a CTC head; [N, 1, 32, W] to [N, W / 4, classes]."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2D(1, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(), nn.MaxPool2D(2)),
            *(nn.Conv2D(8, 16, 3, padding=1), nn.BatchNorm2D(16), nn.ReLU(), nn.MaxPool2D(2)),
        )
        self.recurrent = nn.LSTM(16 * 8, 24, direction="bidirect")
        self.head = nn.Linear(48, classes)

    def forward(self, image: Any) -> Any:
        x = self.convolutions(image)
        x = x.transpose([0, 3, 1, 2]).flatten(2)
        x, _ = self.recurrent(x)
        return F.log_softmax(self.head(x), axis=-1)


class Tagger(Untrained):
    """An LSTM over embedded words; what it returns beside the scores is its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(30, 16), nn.LSTM(16, 24), nn.Linear(24, 5)

    def forward(self, words: Any) -> Any:
        x, (hidden, _) = self.lstm(self.embedding(words))
        return self.head(x), hidden


class Transformer(Untrained):
    """Two encoder layers of four heads over embedded words, with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.positions = self.create_parameter([1, 12, 16])
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, words: Any) -> Any:
        return self.head(self.encoder(self.embedding(words) + self.positions).mean(axis=1))


class Vision(Untrained):
    """A network of paddle.vision."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = getattr(paddle.vision.models, name)(num_classes=10)

    def forward(self, image: Any) -> Any:
        return self.net(image)
