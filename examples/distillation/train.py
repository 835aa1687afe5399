"""Distillation: a small network learns from a frozen teacher that no checkpoint of its own holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def network(channels: int) -> paddle.nn.Layer:
    return paddle.nn.Sequential(
        paddle.nn.Conv2D(1, channels, 3, padding=1),
        paddle.nn.ReLU(),
        paddle.nn.Conv2D(channels, 2 * channels, 3, stride=2, padding=1),
        paddle.nn.ReLU(),
        paddle.nn.Flatten(),
        paddle.nn.Dropout(0.3),
        paddle.nn.Linear(2 * channels * 16, 10),
    )


class Classifier(Module):
    """What teacher and student have in common."""

    def __init__(self, channels: int, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network(channels)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 10] of images [batch, 1, 8, 8]."""
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", paddle.metric.accuracy(self(batch[0]), batch[1]), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_acc", paddle.metric.accuracy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.parameters())


class Student(Classifier):
    """Learns the teacher's softened scores and the labels (arXiv 1503.02531, section 2)."""

    def __init__(self, channels: int, teacher: Classifier, temperature: float = 3.0, share: float = 0.7) -> None:
        super().__init__(channels)
        self.temperature, self.share = temperature, share
        # In a list it is no sublayer: not trained, not put into training mode, not saved.
        self.beside = [teacher]
        teacher.eval()
        for parameter in teacher.parameters():
            parameter.stop_gradient = True

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, labels = batch
        scores = self(images)
        with paddle.no_grad():
            soft = F.softmax(self.beside[0](images) / self.temperature)
        distance = F.kl_div(F.log_softmax(scores / self.temperature), soft, reduction="batchmean")
        loss = self.share * self.temperature**2 * distance + (1 - self.share) * F.cross_entropy(scores, labels)
        self.log("train_loss", loss, on_epoch=True)
        return loss


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and test batches; a fifth of the digits is trained on, so that a teacher helps."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images.reshape(-1, 1, 8, 8) / 16.0).astype("float32"), labels.reshape(-1, 1).astype("int64")
    train_x, rest_x, train_y, rest_y = train_test_split(images, labels, train_size=0.6, stratify=labels, random_state=0)
    val_x, test_x, val_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, stratify=rest_y, random_state=0)

    def batches(x: Any, y: Any, *, shuffle: bool = False) -> DataLoader:
        dataset = TensorDataset([paddle.to_tensor(x), paddle.to_tensor(y)])
        return DataLoader(dataset, batch_size=32, shuffle=shuffle)

    return batches(train_x, train_y, shuffle=True), batches(val_x, val_y), batches(test_x, test_y)


def trainer_in(root: Path, name: str, max_epochs: int) -> Trainer:
    callbacks = [ModelCheckpoint(monitor="val_acc", mode="max"), PlotCurves()]
    return Trainer(
        max_epochs=max_epochs, default_root_dir=root, run_name=name, callbacks=callbacks, enable_model_summary=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--root", type=Path, default=Path("runs/distillation"))
    options = parser.parse_args()

    train_batches, val_batches, test_batches = loaders()
    results = {}
    seed_everything(1)
    teacher = Classifier(channels=24)
    trainer = trainer_in(options.root, "teacher", options.max_epochs)
    trainer.fit(teacher, train_batches, val_batches, ckpt_path="last")  # started again, it says that it has finished
    (results["teacher"],) = trainer.test(ckpt_path="best", dataloaders=test_batches)

    seed_everything(2)  # a number of its own, or the student would depend on whether the teacher was trained just now
    student = Student(channels=4, teacher=teacher)
    trainer = trainer_in(options.root, "student", options.max_epochs)
    trainer.fit(student, train_batches, val_batches, ckpt_path="last")
    (results["student"],) = trainer.test(ckpt_path="best", dataloaders=test_batches)
    for name, result in results.items():
        print(f"result  {name}_test_acc  {result['test_acc']:.4f}")


if __name__ == "__main__":
    main()
