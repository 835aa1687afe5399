"""A search for hyper-parameters: Optuna draws and prunes, each trial is a run that resumes, the study is a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, OptunaPruning, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import optuna
import paddle
import paddle.nn.functional as F
from optuna.trial import TrialState
from paddle.io import DataLoader, TensorDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(Module):
    def __init__(self, width: int, dropout: float, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(64, width), paddle.nn.ReLU(), paddle.nn.Dropout(dropout), paddle.nn.Linear(width, 10)
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 10] of images [batch, 64]."""
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", paddle.metric.accuracy(self(batch[0]), batch[1].unsqueeze(1)))

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.parameters())


def loaders() -> tuple[DataLoader, DataLoader]:
    images, labels = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        images / 16.0, labels, train_size=0.6, stratify=labels, random_state=0
    )

    def batches(x: Any, y: Any, size: int, *, shuffle: bool) -> DataLoader:
        dataset = TensorDataset([paddle.to_tensor(x.astype("float32")), paddle.to_tensor(y)])
        return DataLoader(dataset, batch_size=size, shuffle=shuffle)

    return batches(train_x, train_y, 32, shuffle=True), batches(val_x, val_y, 256, shuffle=False)


def next_trial(study: optuna.Study) -> optuna.Trial:
    """The trial that a killed process left behind, or a new one; its sampler depends on its number alone."""
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    number = left[0].number if left else len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
    return optuna.Trial(study, left[0]._trial_id) if left else study.ask()


def run(trial: optuna.Trial, root: Path, max_epochs: int) -> float:
    """Train with what the trial draws; its best score, or optuna.TrialPruned."""
    width = trial.suggest_categorical("width", [8, 32, 128])
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    seed_everything(trial.number)
    trainer = Trainer(
        max_epochs=max_epochs,
        default_root_dir=root,
        run_name=f"trial_{trial.number:03d}",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[OptunaPruning(trial, "val_acc"), ModelCheckpoint(monitor="val_acc", mode="max"), PlotCurves()],
    )
    trainer.fit(Digits(width, dropout, learning_rate), *loaders(), ckpt_path="last")
    return trainer.checkpoint_callback.best_model_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--root", type=Path, default=Path("runs/search"))
    options = parser.parse_args()

    options.root.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="digits",
        storage=f"sqlite:///{options.root}/study.db",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )
    while sum(trial.state.is_finished() for trial in study.trials) < options.trials:
        trial = next_trial(study)
        try:
            study.tell(trial, run(trial, options.root, options.max_epochs))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
    for trial in study.trials:
        print(f"trial {trial.number:2d}  {trial.state.name.lower():8}  {trial.value or 0:.4f}  {trial.params}")
    print(f"result  pruned  {sum(trial.state == TrialState.PRUNED for trial in study.trials)}")
    print(f"result  best_val_acc  {study.best_value:.4f}")


if __name__ == "__main__":
    main()
