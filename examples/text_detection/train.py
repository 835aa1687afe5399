"""Text detection by maps: differentiable binarization, several losses, boxes cut out of the map, F-score."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from data import Pages, boxes_of, together
from metric import FScore
from paddle.io import DataLoader
from paddle.nn import BatchNorm2D, Conv2D, Conv2DTranspose, ReLU, Sequential


def block(before: int, after: int, stride: int = 1) -> Sequential:
    return Sequential(Conv2D(before, after, 3, stride, 1, bias_attr=False), BatchNorm2D(after), ReLU())


class Detector(Module):
    """A map of how likely each pixel is the core of a text, and a threshold map (DB, arXiv 1911.08947)."""

    def __init__(self, width: int = 16, steepness: float = 50.0, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.at_half, self.at_quarter, self.at_eighth = (
            block(1, width, 2),
            block(width, 2 * width, 2),
            block(2 * width, 4 * width, 2),
        )
        self.context = block(4 * width, 4 * width)
        self.to_quarter = Conv2DTranspose(4 * width, 2 * width, 2, 2)
        self.neck = block(2 * width, 2 * width)
        self.heads = paddle.nn.LayerList(
            [
                Sequential(
                    Conv2DTranspose(2 * width, width, 2, 2), BatchNorm2D(width), ReLU(), Conv2DTranspose(width, 1, 2, 2)
                )
                for _ in range(2)
            ]
        )
        self.f_score = FScore()

    def forward(self, pages: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Logits of cores and of thresholds, each [batch, 96, 96], of pages [batch, 1, 96, 96]."""
        quarter = self.at_quarter(self.at_half(pages))
        features = self.neck(quarter + self.to_quarter(self.context(self.at_eighth(quarter))))
        cores, thresholds = (head(features).squeeze(1) for head in self.heads)
        return cores, thresholds

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        pages, cores, borders, border_masks, _ = batch
        core_logits, threshold_logits = self(pages)
        chances, thresholds = F.sigmoid(core_logits), F.sigmoid(threshold_logits)
        binary = F.sigmoid(self.hparams.steepness * (chances - thresholds))
        losses = {
            "core_loss": balanced(core_logits, cores),
            "binary_loss": 1 - 2 * (binary * cores).sum() / (binary.sum() + cores.sum() + 1),
            "threshold_loss": ((thresholds - borders).abs() * border_masks).sum() / (border_masks.sum() + 1),
        }
        self.log_dict(losses, batch_size=len(pages), on_epoch=True)
        return losses["core_loss"] + losses["binary_loss"] + 2 * losses["threshold_loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pages, _, _, _, known = batch
        chances = F.sigmoid(self(pages)[0]).numpy()
        for chance, boxes in zip(chances, known, strict=True):
            self.f_score.update(boxes_of(chance > 0.4), np.asarray(boxes))
        self.log("val", self.f_score, prog_bar=True)  # val_precision, val_recall, val_f_score

    def predict_step(self, batch: Any, batch_idx: int) -> list[np.ndarray]:
        return [boxes_of(chance > 0.4) for chance in F.sigmoid(self(batch[0])[0]).numpy()]

    def configure_optimizers(self) -> dict[str, Any]:
        steps = self.trainer.estimated_stepping_batches
        schedule = paddle.optimizer.lr.PolynomialDecay(self.hparams.learning_rate, steps, end_lr=0.0, power=0.9)
        optimizer = paddle.optimizer.Adam(schedule, parameters=self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def balanced(logits: paddle.Tensor, wanted: paddle.Tensor) -> paddle.Tensor:
    """Cross entropy of all text and of the three times as many other pixels that are the hardest."""
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    count = int(wanted.sum())
    others = (losses * (1 - wanted)).flatten()
    hardest, _ = others.topk(min(3 * count + 1, others.size))
    return ((losses * wanted).sum() + hardest.sum()) / (4 * count + 1)


def draw(pages: np.ndarray, found: list[np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import patches, pyplot

    figure, axes = pyplot.subplots(1, len(pages), figsize=(2.4 * len(pages), 2.5))
    for axis, page, boxes in zip(axes, pages, found, strict=True):
        axis.imshow(page[0], cmap="gray")
        for x1, y1, x2, y2 in boxes:
            axis.add_patch(patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="tab:orange"))
        axis.axis("off")
    figure.savefig(path, bbox_inches="tight", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=6)
    parser.add_argument("--root", type=Path, default=Path("runs/text_detection"))
    options = parser.parse_args()

    seed_everything(1)
    train_batches = DataLoader(Pages(600, seed=0), batch_size=16, shuffle=True, collate_fn=together)
    val_batches = DataLoader(Pages(100, seed=1_000_000), batch_size=25, collate_fn=together)
    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=10,
        callbacks=[ModelCheckpoint(monitor="val_f_score", mode="max"), PlotCurves()],
    )
    trainer.fit(Detector(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    shown = [Pages(100, seed=1_000_000)[index] for index in range(5)]
    found = trainer.predict(dataloaders=[together(shown)], ckpt_path="best")[0]
    draw(np.stack([page for page, *_ in shown]), found, trainer.run_dir / "result.png")
    print(f"result  val_f_score  {result['val_f_score']:.4f}")


if __name__ == "__main__":
    main()
