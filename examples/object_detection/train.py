"""Object detection: a small anchor-free detector, lists of boxes of any number in a batch, mAP over the epoch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import itertools

import numpy as np
import paddle
import paddle.nn.functional as F
from data import CLASSES, SIZE, MeanAveragePrecision, Shapes, uneven
from paddle.io import DataLoader
from paddle.nn import BatchNorm2D, Conv2D, ReLU, Sequential
from paddle.vision.ops import nms

STRIDE = 8


class Detector(Module):
    """At each of 8 x 8 places: how sure of each class, and the distances to the four sides of its box (FCOS)."""

    def __init__(self, width: int = 24, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [1, width, 2 * width, 2 * width]
        layers = [
            Sequential(Conv2D(a, b, 3, stride=2, padding=1, bias_attr=False), BatchNorm2D(b), ReLU())
            for a, b in itertools.pairwise(sizes)
        ]
        self.net = Sequential(*layers, Conv2D(sizes[-1], sizes[-1], 3, padding=1), ReLU())
        self.head = Conv2D(sizes[-1], len(CLASSES) + 4, 1)
        centres = (paddle.arange(SIZE // STRIDE, dtype="float32") + 0.5) * STRIDE
        self.register_buffer("centres", paddle.stack(paddle.meshgrid(centres, centres)[::-1], axis=-1).reshape([-1, 2]))
        self.map = MeanAveragePrecision()

    def forward(self, images: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Logits [batch, 64, 3] and boxes [batch, 64, 4] of images [batch, 1, 64, 64]."""
        outputs = self.head(self.net(images)).flatten(2).transpose([0, 2, 1])
        sides = F.softplus(outputs[:, :, len(CLASSES) :]) * STRIDE
        boxes = paddle.concat([self.centres - sides[:, :, :2], self.centres + sides[:, :, 2:]], axis=-1)
        return outputs[:, :, : len(CLASSES)], boxes

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, boxes, kinds = batch
        logits, said = self(images)
        wanted, sides, is_object = self.targets(boxes, kinds)
        focal = (F.sigmoid(logits) - wanted).abs() ** 2 * F.binary_cross_entropy_with_logits(
            logits, wanted, reduction="none"
        )
        count = is_object.sum().clip(min=1)
        class_loss = focal.sum() / count
        box_loss = ((said - sides).abs().mean(axis=-1) * is_object).sum() / count / STRIDE
        self.log_dict({"class_loss": class_loss, "box_loss": box_loss}, batch_size=len(images), on_epoch=True)
        return class_loss + box_loss

    def targets(self, boxes: list[Any], kinds: list[Any]) -> tuple[paddle.Tensor, ...]:
        """For each place whether it is within the middle of a box, of which class, and the box's sides."""
        centres = self.centres.numpy()
        wanted = np.zeros((len(boxes), len(centres), len(CLASSES)), "float32")
        sides = np.zeros((len(boxes), len(centres), 4), "float32")
        for image, (of_image, classes) in enumerate(zip(boxes, kinds, strict=True)):
            for box, kind in zip(np.asarray(of_image), np.asarray(classes), strict=True):
                middle = abs(centres - (box[:2] + box[2:]) / 2).max(1)
                inside = (middle <= STRIDE * 0.75) | (middle == middle.min())
                wanted[image, inside, int(kind)], sides[image, inside] = 1, box
        return paddle.to_tensor(wanted), paddle.to_tensor(sides), paddle.to_tensor(wanted.max(-1))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, boxes, kinds = batch
        logits, said = self(images)
        for scores, found, there, classes in zip(F.sigmoid(logits), said, boxes, kinds, strict=True):
            best, kind = scores.max(axis=1), scores.argmax(axis=1)
            kept = nms(found, 0.5, best, kind, list(range(len(CLASSES))), top_k=10).numpy()
            rows = np.concatenate([found.numpy(), best.numpy()[:, None], kind.numpy()[:, None]], axis=1)[kept]
            self.map.update(rows[rows[:, 4] > 0.05], np.asarray(there), np.asarray(classes))
        self.log("val_map", self.map, prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.parameters(), weight_decay=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--root", type=Path, default=Path("runs/object_detection"))
    options = parser.parse_args()

    seed_everything(1)
    train_batches = DataLoader(Shapes(1200, seed=0), batch_size=32, shuffle=True, collate_fn=uneven)
    val_batches = DataLoader(Shapes(200, seed=1_000_000), batch_size=50, collate_fn=uneven)
    trainer = Trainer(
        max_epochs=options.max_epochs,
        check_val_every_n_epoch=2,
        default_root_dir=options.root,
        log_every_n_steps=10,
        callbacks=[ModelCheckpoint(monitor="val_map", mode="max"), PlotCurves()],
    )
    trainer.fit(Detector(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    print(f"result  val_map  {result['val_map']:.4f}")


if __name__ == "__main__":
    main()
