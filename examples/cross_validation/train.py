"""Five folds in one process, each a run of its own that resumes, and the ensemble of their best weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler


class Tumours(Module):
    """Tells malignant from benign by 30 measurements of cells."""

    def __init__(self, width: int = 32, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(30, width), paddle.nn.ReLU(), paddle.nn.Dropout(0.3), paddle.nn.Linear(width, 2)
        )

    def forward(self, cells: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 2] of measurements [batch, 30]."""
        return self.net(cells)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", paddle.metric.accuracy(scores, batch[1].unsqueeze(1)))

    def predict_step(self, batch: Any, batch_idx: int) -> np.ndarray:
        return F.softmax(self(batch[0])).numpy()

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.parameters(), weight_decay=0.01)


def batches(cells: np.ndarray, labels: np.ndarray, *, shuffle: bool = False) -> DataLoader:
    dataset = TensorDataset([paddle.to_tensor(cells.astype("float32")), paddle.to_tensor(labels)])
    return DataLoader(dataset, batch_size=32, shuffle=shuffle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--root", type=Path, default=Path("runs/cross_validation"))
    options = parser.parse_args()

    cells, labels = load_breast_cancer(return_X_y=True)
    cells, test_cells, labels, test_labels = train_test_split(
        cells, labels, test_size=0.2, stratify=labels, random_state=0
    )
    scores, chances = [], []
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0).split(cells, labels)
    for fold, (train, held_out) in enumerate(folds):
        # Everything of a fold hangs on its own seed, so that it is the same whether the folds before it ran just now
        # or in a process that was killed.
        seed_everything(fold)
        scaler = StandardScaler().fit(cells[train])
        trainer = Trainer(
            max_epochs=options.max_epochs,
            default_root_dir=options.root,
            run_name=f"fold_{fold}",
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[
                ModelCheckpoint(monitor="val_loss"),
                EarlyStopping(monitor="val_loss", patience=5),
                PlotCurves(),
            ],
        )
        train_batches = batches(scaler.transform(cells[train]), labels[train], shuffle=True)
        val_batches = batches(scaler.transform(cells[held_out]), labels[held_out])
        trainer.fit(Tumours(), train_batches, val_batches, ckpt_path="last")
        (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches, verbose=False)
        scores.append(result["val_acc"])
        test_batches = batches(scaler.transform(test_cells), test_labels)
        chances.append(np.concatenate(trainer.predict(dataloaders=test_batches, ckpt_path="best")))
    print("folds  " + "  ".join(f"{score:.4f}" for score in scores))
    print(f"result  mean_val_acc  {np.mean(scores):.4f}")
    print(f"result  ensemble_test_acc  {(np.mean(chances, axis=0).argmax(1) == test_labels).mean():.4f}")


if __name__ == "__main__":
    main()
