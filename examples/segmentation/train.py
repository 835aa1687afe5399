"""Segmentation: a small U-Net trained by steps, mean IoU over the whole validation set, poly schedule."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from data import CLASSES, MeanIoU, Shapes
from paddle.io import DataLoader
from paddle.nn import BatchNorm2D, Conv2D, MaxPool2D, ReLU, Sequential, Upsample


def block(before: int, after: int) -> Sequential:
    return Sequential(Conv2D(before, after, 3, padding=1, bias_attr=False), BatchNorm2D(after), ReLU())


class UNet(Module):
    """Two steps down, two steps up, with the finer maps handed across."""

    def __init__(self, width: int = 12, learning_rate: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fine, self.middle, self.coarse = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.to_middle, self.to_fine = block(6 * width, 2 * width), block(3 * width, width)
        self.head = Conv2D(width, len(CLASSES), 1)
        self.down, self.up = MaxPool2D(2), Upsample(scale_factor=2)
        self.miou = MeanIoU(len(CLASSES))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 4, height, width] of images [batch, 1, height, width]; the sides are multiples of 4."""
        fine = self.fine(images)
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down(middle))
        middle = self.to_middle(paddle.concat([self.up(coarse), middle], axis=1))
        return self.head(self.to_fine(paddle.concat([self.up(middle), fine], axis=1)))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, axis=1)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        scores = self(images)
        self.log("val_loss", F.cross_entropy(scores, labels, axis=1))
        self.miou.update(scores.argmax(axis=1), labels)
        self.log("val_miou", self.miou, prog_bar=True)  # one number at the end, from all pixels

    def configure_optimizers(self) -> dict[str, Any]:
        steps = self.trainer.max_steps
        schedule = paddle.optimizer.lr.PolynomialDecay(self.hparams.learning_rate, steps, end_lr=0.0, power=0.9)
        optimizer = paddle.optimizer.Momentum(schedule, 0.9, self.parameters(), weight_decay=1e-4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def draw(model: UNet, data: Shapes, path: Path) -> None:
    """A row of images, a row of what they show, a row of what the network says."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    samples = [data[index] for index in range(8)]
    model.eval()
    said = model(paddle.to_tensor(np.stack([image for image, _ in samples]))).argmax(axis=1).numpy()
    figure, axes = pyplot.subplots(3, len(samples), figsize=(8, 3.2))
    for column, (image, labels) in enumerate(samples):
        for row, shown in enumerate((image[0], labels, said[column])):
            colours = {"cmap": "gray"} if row == 0 else {"vmin": 0, "vmax": len(CLASSES) - 1}
            axes[row, column].imshow(shown, **colours)
            axes[row, column].axis("off")
    figure.savefig(path, bbox_inches="tight", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--root", type=Path, default=Path("runs/segmentation"))
    options = parser.parse_args()

    seed_everything(1)
    train_data, val_data = Shapes(800, seed=0), Shapes(200, seed=1_000_000)
    trainer = Trainer(
        max_steps=options.max_steps,
        val_check_interval=100,
        check_val_every_n_epoch=None,  # count steps, whatever an epoch's length
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_miou", mode="max"), LRMonitor(), PlotCurves()],
    )
    train_batches = DataLoader(train_data, batch_size=16, shuffle=True, drop_last=True)
    trainer.fit(UNet(), train_batches, DataLoader(val_data, batch_size=50), ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=DataLoader(val_data, batch_size=50))
    draw(trainer.model, val_data, trainer.run_dir / "result.png")
    print(f"result  val_miou  {result['val_miou']:.4f}")


if __name__ == "__main__":
    main()
