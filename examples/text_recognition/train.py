"""Text recognition: CRNN with CTC on lines of Chinese and Latin text of any width, best by whole lines right."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from data import CHARACTERS, HEIGHT, Lines, together
from metric import LinesRight
from paddle.io import DataLoader
from paddle.nn import BatchNorm2D, Conv2D, MaxPool2D, ReLU, Sequential

BLANK = 0  # CTC's own label; the first character is 1
STRIDE = 4  # pixels that one step of the network's output covers


def block(before: int, after: int, pool: int | tuple[int, int]) -> Sequential:
    return Sequential(Conv2D(before, after, 3, 1, 1, bias_attr=False), BatchNorm2D(after), ReLU(), MaxPool2D(pool))


class CRNN(Module):
    """Columns of a convolutional network, read both ways by a recurrent one (arXiv 1507.05717)."""

    def __init__(self, width: int = 16, hidden: int = 64, learning_rate: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.columns = Sequential(block(1, width, 2), block(width, 2 * width, 2), block(2 * width, 4 * width, (2, 1)))
        self.reader = paddle.nn.GRU(4 * width * HEIGHT // 8, hidden, direction="bidirect")
        self.head = paddle.nn.Linear(2 * hidden, len(CHARACTERS) + 1)
        self.lines_right = LinesRight()

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Logits [batch, width // 4, characters + 1] of images [batch, 1, 24, width]."""
        columns = self.columns(images).flatten(1, 2).transpose([0, 2, 1])
        return self.head(self.reader(columns)[0])

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, widths, labels, lengths, _ = batch
        logits = self(images).transpose([1, 0, 2])  # [time, batch, classes], which ctc_loss makes log-chances of
        loss = F.ctc_loss(logits, labels, widths // STRIDE, lengths, blank=BLANK)
        self.log("train_loss", loss, batch_size=len(images), on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.lines_right.update(self.predict_step(batch), batch[-1])
        self.log("val", self.lines_right, prog_bar=True)  # val_line_acc and val_edits

    def predict_step(self, batch: Any, batch_idx: int = 0) -> list[str]:
        """What is read: the likeliest label of each column, repeated ones once, blanks left out."""
        images, widths, *_ = batch
        best = self(images).argmax(axis=-1).numpy()
        lines = []
        for row, width in zip(best, widths.numpy(), strict=True):
            labels = [label for label, _ in itertools.groupby(row[: width // STRIDE]) if label != BLANK]
            lines.append("".join(CHARACTERS[label - 1] for label in labels))
        return lines

    def configure_optimizers(self) -> dict[str, Any]:
        steps, peak = self.trainer.estimated_stepping_batches, self.hparams.learning_rate
        cosine = paddle.optimizer.lr.CosineAnnealingDecay(peak, T_max=steps - steps // 10)
        schedule = paddle.optimizer.lr.LinearWarmup(cosine, steps // 10, 0.0, peak)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=self.parameters(), weight_decay=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def draw(images: np.ndarray, said: list[str], path: Path) -> None:
    """Each line beside what was read."""
    import matplotlib

    matplotlib.use("agg")
    from data import FONT
    from matplotlib import font_manager, pyplot

    figure, axes = pyplot.subplots(len(said), 2, figsize=(5, 0.5 * len(said)))
    font = font_manager.FontProperties(fname=FONT, size=12)
    for (left, right), image, text in zip(axes, images, said, strict=True):
        left.imshow(image[0], cmap="gray_r")
        right.text(0, 0.3, text, fontproperties=font)
        left.axis("off"), right.axis("off")
    figure.savefig(path, bbox_inches="tight", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--root", type=Path, default=Path("runs/text_recognition"))
    options = parser.parse_args()

    seed_everything(1)
    train_batches = DataLoader(Lines(1600, seed=0), batch_size=32, shuffle=True, collate_fn=together)
    val_lines = Lines(200, seed=1_000_000)
    val_batches = DataLoader(val_lines, batch_size=50, collate_fn=together)
    trainer = Trainer(
        max_epochs=options.max_epochs,
        gradient_clip_val=5.0,
        default_root_dir=options.root,
        log_every_n_steps=10,
        callbacks=[ModelCheckpoint(monitor="val_line_acc", mode="max"), LRMonitor("step"), PlotCurves()],
    )
    trainer.fit(CRNN(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    shown = together([val_lines[index] for index in range(8)])
    draw(shown[0], trainer.predict(dataloaders=[shown], ckpt_path="best")[0], trainer.run_dir / "result.png")
    print(f"result  val_edits  {result['val_edits']:.4f}")
    print(f"result  val_line_acc  {result['val_line_acc']:.4f}")


if __name__ == "__main__":
    main()
