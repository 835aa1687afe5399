"""Token labelling: a recurrent network over lines of any length, in buckets by length, one label for each character."""

from __future__ import annotations

import argparse
import importlib.util
import io
import keyword
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import BatchSampler, DataLoader, Dataset

LABELS = ("space", "name", "keyword", "number", "string", "comment", "operator")
IGNORED = -100  # the label of what pads a line


class Lines(Dataset):
    """Lines of Python's own library: characters [length] and the label of each [length], by `tokenize`."""

    def __init__(self, modules: list[str], most: int) -> None:
        self.lines: list[tuple[np.ndarray, np.ndarray]] = []
        for module in modules:
            self.lines += self._lines_of(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
        self.lines = self.lines[:most]

    @staticmethod
    def _lines_of(source: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        text = source.splitlines()
        labels = [np.zeros(len(line), "int64") for line in text]
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if (label := label_of(token)) and token.start[0] == token.end[0]:
                labels[token.start[0] - 1][token.start[1] : token.end[1]] = label
        for line, known in zip(text, labels, strict=True):
            if 4 <= len(line) <= 80 and known.any():
                yield np.array([min(ord(letter), 127) for letter in line], "int64"), known

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.lines[index]


def label_of(token: tokenize.TokenInfo) -> int:
    if token.type == tokenize.NAME:
        return LABELS.index("keyword" if keyword.iskeyword(token.string) else "name")
    kinds = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    return LABELS.index(kinds.get(token.type, "space"))


class Buckets(BatchSampler):
    """Batches of lines of about one length, so that little is padded; drawn from NumPy, which the trainer seeds."""

    def __init__(self, lengths: list[int], batch_size: int, *, shuffle: bool) -> None:
        self.lengths, self.batch_size, self.shuffle = np.array(lengths), batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        jitter = np.random.rand(len(self.lengths)) * 6 if self.shuffle else np.zeros(len(self.lengths))
        order = np.argsort(self.lengths + jitter, kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for number in np.random.permutation(len(batches)) if self.shuffle else range(len(batches)):
            yield batches[number].tolist()


def padded(lines: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Characters and labels [batch, longest]."""
    longest = max(len(characters) for characters, _ in lines)
    characters = np.zeros((len(lines), longest), "int64")
    labels = np.full((len(lines), longest), IGNORED)
    for row, (line, known) in enumerate(lines):
        characters[row, : len(line)], labels[row, : len(line)] = line, known
    return characters, labels


class Labeller(Module):
    def __init__(self, width: int = 48, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.letters = paddle.nn.Embedding(128, width)
        self.net = paddle.nn.GRU(width, width, direction="bidirect")
        self.head = paddle.nn.Linear(2 * width, len(LABELS))

    def forward(self, characters: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, length, 7] of characters [batch, length]; 0 is padding."""
        outputs, _ = self.net(self.letters(characters), sequence_length=(characters > 0).sum(axis=1))
        return self.head(outputs)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        characters, labels = batch
        loss = F.cross_entropy(self(characters), labels, ignore_index=IGNORED)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        characters, labels = batch
        known = labels != IGNORED
        right = ((self(characters).argmax(axis=-1) == labels) & known).astype("float32").sum()
        count = int(known.sum())
        self.log("val_acc", right / count, batch_size=count, prog_bar=True)  # each character weighs the same

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Adam(self.hparams.learning_rate, parameters=self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=4)
    parser.add_argument("--root", type=Path, default=Path("runs/token_labelling"))
    options = parser.parse_args()

    seed_everything(1)
    train_lines = Lines(["argparse", "typing", "inspect", "subprocess"], most=3000)
    val_lines = Lines(["tarfile"], most=500)

    def batches(lines: Lines, *, shuffle: bool) -> DataLoader:
        sampler = Buckets([len(line) for line, _ in lines.lines], 32, shuffle=shuffle)
        return DataLoader(lines, batch_sampler=sampler, collate_fn=padded)

    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), PlotCurves()],
    )
    train_batches, val_batches = batches(train_lines, shuffle=True), batches(val_lines, shuffle=False)
    trainer.fit(Labeller(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    print(f"result  val_acc  {result['val_acc']:.4f}")


if __name__ == "__main__":
    main()
