"""Fine-tuning: a backbone that knows eight digits is frozen, a new head learns ten, then the backbone thaws."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import InitFrom, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import BackboneFinetuning, LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from sklearn.datasets import load_digits


class Digits(Module):
    """A backbone with BatchNorm, and a head of one layer."""

    def __init__(self, classes: int, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = paddle.nn.Sequential(
            paddle.nn.Conv2D(1, 16, 3, padding=1),
            paddle.nn.BatchNorm2D(16),
            paddle.nn.ReLU(),
            paddle.nn.Conv2D(16, 32, 3, stride=2, padding=1),
            paddle.nn.BatchNorm2D(32),
            paddle.nn.ReLU(),
            paddle.nn.Flatten(),
        )
        self.head = paddle.nn.Linear(32 * 16, classes)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, classes] of images [batch, 1, 8, 8]."""
        return self.head(self.backbone(images))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", paddle.metric.accuracy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        # The frozen backbone is left out; BackboneFinetuning adds it to this optimizer when it thaws.
        trained = [parameter for parameter in self.parameters() if not parameter.stop_gradient]
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=trained, weight_decay=0.01)


def batches(rows: np.ndarray, *, shuffle: bool = False) -> DataLoader:
    digits = load_digits()
    images = (digits.images[rows][:, None] / 16.0).astype("float32")
    labels = digits.target[rows][:, None].astype("int64")
    dataset = TensorDataset([paddle.to_tensor(images), paddle.to_tensor(labels)])
    return DataLoader(dataset, batch_size=32, shuffle=shuffle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--root", type=Path, default=Path("runs/finetuning"))
    options = parser.parse_args()

    labels = load_digits().target
    rows = np.random.RandomState(0).permutation(len(labels))
    held_out, known = rows[:500], rows[500:]
    few = np.concatenate([known[labels[known] == digit][:5] for digit in range(10)])  # five examples of each digit
    before = known[(labels[known] < 8) & ~np.isin(known, few)]

    seed_everything(1)
    trainer = Trainer(
        max_epochs=6,
        default_root_dir=options.root,
        run_name="pretrained",
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max")],
    )
    val_of_eight = batches(held_out[labels[held_out] < 8])
    trainer.fit(Digits(classes=8), batches(before, shuffle=True), val_of_eight, ckpt_path="last")
    pretrained = trainer.run_dir / "best_val_acc"

    results = {}
    for name, start in (("scratch", None), ("tuned", InitFrom(pretrained, strict=False))):
        seed_everything(2)
        callbacks = [ModelCheckpoint(monitor="val_acc", mode="max"), LRMonitor(), PlotCurves()]
        if start is not None:
            callbacks.append(BackboneFinetuning(unfreeze_backbone_at_epoch=options.max_epochs // 2))
        trainer = Trainer(
            max_epochs=options.max_epochs,
            default_root_dir=options.root,
            run_name=name,
            callbacks=callbacks,
            log_every_n_steps=2,
        )
        # Of the eight-digit checkpoint the head does not fit and is left as it was drawn; that is told.
        trainer.fit(
            Digits(classes=10), batches(few, shuffle=True), batches(held_out), ckpt_path="last", init_from=start
        )
        (results[name],) = trainer.validate(ckpt_path="best", dataloaders=batches(held_out), verbose=False)
    for name, result in results.items():
        print(f"result  {name}_val_acc  {result['val_acc']:.4f}")


if __name__ == "__main__":
    main()
