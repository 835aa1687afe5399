"""Image classification: a ResNet with mixup, cutmix, label smoothing, averaged weights, warm-up and cosine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ExponentialMovingAverage, LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from paddle.vision.models import resnet18
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10


class Classifier(Module):
    """A ResNet-18 without its last stage, for images of 16 x 16; targets are shares of classes, so that images mix."""

    def __init__(self, learning_rate: float = 2e-3, smoothing: float = 0.1, mixed: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = resnet18(num_classes=CLASSES)
        self.net.layer4, self.net.fc = paddle.nn.Identity(), paddle.nn.Linear(256, CLASSES)  # small images, few stages

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 10] of images [batch, 1, 8, 8]."""
        images = F.interpolate(images, size=[16, 16], mode="bilinear")
        return self.net(images.expand([-1, 3, -1, -1]))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, targets = self.mix(*batch)
        loss = F.cross_entropy(self(images), F.label_smooth(targets, epsilon=self.hparams.smoothing), soft_label=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def mix(self, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Half of the batches are mixed with themselves: whole images (mixup) or a rectangle (cutmix).

        mixup: arXiv 1710.09412; cutmix: arXiv 1905.04899. NumPy's generator is resumed as Paddle's is.
        """
        targets = F.one_hot(labels.flatten(), CLASSES)
        if np.random.rand() > self.hparams.mixed:
            return images, targets
        others = paddle.to_tensor(np.random.permutation(len(images)))
        share = float(np.random.beta(0.4, 0.4))
        if np.random.rand() < 0.5:
            images = share * images + (1 - share) * images[others]
        else:
            height, width = images.shape[2:]
            rows, columns = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
            top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
            inside = np.zeros((height, width), "float32")
            inside[top : top + rows, left : left + columns] = 1
            share = 1 - float(inside.mean())
            images = images + paddle.to_tensor(inside) * (images[others] - images)
        return images, share * targets + (1 - share) * targets[others]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Any) -> None:
        images, labels = batch
        scores = self(images)
        self.log(f"{stage}_loss", F.cross_entropy(scores, labels))
        for k in (1, 5):
            right = paddle.metric.accuracy(scores, labels, k=k)
            self.log(f"{stage}_acc" if k == 1 else f"{stage}_acc_top{k}", right, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        steps = self.trainer.estimated_stepping_batches
        cosine = paddle.optimizer.lr.CosineAnnealingDecay(self.hparams.learning_rate, T_max=steps - steps // 10)
        schedule = paddle.optimizer.lr.LinearWarmup(cosine, steps // 10, 0.0, self.hparams.learning_rate)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=self.parameters(), weight_decay=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and test batches of scikit-learn's 1,797 digits."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images.reshape(-1, 1, 8, 8) / 16.0).astype("float32"), labels.reshape(-1, 1).astype("int64")
    train_x, rest_x, train_y, rest_y = train_test_split(images, labels, train_size=0.6, stratify=labels, random_state=0)
    val_x, test_x, val_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, stratify=rest_y, random_state=0)

    def batches(x: Any, y: Any, *, shuffle: bool = False) -> DataLoader:
        dataset = TensorDataset([paddle.to_tensor(x), paddle.to_tensor(y)])
        return DataLoader(dataset, batch_size=64, shuffle=shuffle)

    return batches(train_x, train_y, shuffle=True), batches(val_x, val_y), batches(test_x, test_y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=7)
    parser.add_argument("--root", type=Path, default=Path("runs/image_classification"))
    options = parser.parse_args()

    seed_everything(1)
    train_batches, val_batches, test_batches = loaders()
    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=5,
        callbacks=[
            ExponentialMovingAverage(decay=0.98, warmup=True),
            ModelCheckpoint(monitor="val_acc", mode="max"),
            LRMonitor("step"),
            PlotCurves(),
        ],
    )
    trainer.fit(Classifier(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.test(ckpt_path="best", dataloaders=test_batches)
    print(f"result  test_acc  {result['test_acc']:.4f}")
    print(f"result  test_acc_top5  {result['test_acc_top5']:.4f}")


if __name__ == "__main__":
    main()
