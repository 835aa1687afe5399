"""Text classification: a small Transformer, groups without decay, rates by layer, warm-up by steps, clipping."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset

PACKAGES = ("asyncio", "ctypes", "email", "logging", "multiprocessing", "unittest")
LENGTH = 96  # bytes of a text


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Bytes [count, 96] of Python's own library, and which of six packages each piece comes from [count]."""
    pieces, labels = [], []
    for label, package in enumerate(PACKAGES):
        folder = Path(importlib.util.find_spec(package).origin).parent
        source = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
        source = source[: len(source) // LENGTH * LENGTH][: 1200 * LENGTH]
        piece = np.frombuffer(source, "uint8").reshape(-1, LENGTH)
        pieces.append(piece)
        labels.append(np.full(len(piece), label))
    return np.minimum(np.concatenate(pieces), 127).astype("int64"), np.concatenate(labels).astype("int64")


class Transformer(Module):
    """Patches of 4 bytes, an encoder, the mean of its outputs, six scores."""

    def __init__(self, width: int = 64, depth: int = 2, learning_rate: float = 3e-3, layer_decay: float = 0.8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bytes = paddle.nn.Embedding(128, width)
        self.patches = paddle.nn.Conv1D(width, width, 4, stride=4)
        self.places = self.create_parameter(
            [1, LENGTH // 4, width], default_initializer=paddle.nn.initializer.Normal(std=0.02)
        )
        self.encoder = paddle.nn.LayerList(
            [
                paddle.nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, normalize_before=True)
                for _ in range(depth)
            ]
        )
        self.norm = paddle.nn.LayerNorm(width)
        self.head = paddle.nn.Linear(width, len(PACKAGES))

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 6] of bytes [batch, 96]."""
        x = self.patches(self.bytes(text).transpose([0, 2, 1])).transpose([0, 2, 1]) + self.places
        for layer in self.encoder:
            x = layer(x)
        return self.head(self.norm(x.mean(axis=1)))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", paddle.metric.accuracy(scores, batch[1].unsqueeze(1)), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        steps, peak = self.trainer.estimated_stepping_batches, self.hparams.learning_rate
        decay = paddle.optimizer.lr.PolynomialDecay(peak, steps - steps // 10, end_lr=0.0)
        schedule = paddle.optimizer.lr.LinearWarmup(decay, steps // 10, 0.0, peak)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=self.groups(), weight_decay=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def groups(self) -> list[dict[str, Any]]:
        """Four to eight groups; a group's learning_rate is a factor of the schedule's rate in Paddle, not a rate."""
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        depth = len(self.encoder)
        for name, parameter in self.named_parameters():
            level = (
                int(name.split(".")[1]) + 1
                if name.startswith("encoder.")
                else depth + 1
                if name[:4] in ("norm", "head")
                else 0
            )
            decays = parameter.ndim > 1 and name != "places"
            factor = self.hparams.layer_decay ** (depth + 1 - level)
            group = {"params": [], "learning_rate": factor, "weight_decay": 0.05 if decays else 0.0}
            groups.setdefault((level, decays), group)["params"].append(parameter)
        return list(groups.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=6)
    parser.add_argument("--root", type=Path, default=Path("runs/text_classification"))
    options = parser.parse_args()

    seed_everything(1)
    text, labels = texts()
    order = np.random.RandomState(0).permutation(len(text))
    train, val = order[len(order) // 5 :], order[: len(order) // 5]

    def batches(rows: np.ndarray, size: int, *, shuffle: bool = False) -> DataLoader:
        dataset = TensorDataset([paddle.to_tensor(text[rows]), paddle.to_tensor(labels[rows])])
        return DataLoader(dataset, batch_size=size, shuffle=shuffle)

    trainer = Trainer(
        max_epochs=options.max_epochs,
        gradient_clip_val=1.0,
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), LRMonitor("step"), PlotCurves()],
    )
    trainer.fit(Transformer(), batches(train, 64, shuffle=True), batches(val, 256), ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=batches(val, 256))
    print(f"result  val_acc  {result['val_acc']:.4f}")


if __name__ == "__main__":
    main()
