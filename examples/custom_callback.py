"""A callback of your own: which digits are taken for which, with a memory that survives a crash."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from digits import Digits, digit_loaders

from paddlelite_trainer import Callback, Module, Trainer, seed_everything


class Confusions(Callback):
    """Counts, over all validations, which digit was taken for which; prints the commonest when the fit ends."""

    def __init__(self, top: int = 5) -> None:
        self.top = top
        self.counts: Counter[str] = Counter()

    # Only hooks that are overridden are called. Their names and arguments are those of paddlelite_trainer.Callback; a
    # misspelt one, say on_validation_batch_ends, is an error when the Trainer is made.
    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        _, labels = batch
        guesses = outputs.argmax(axis=1)  # what validation_step returned
        for label, guess in zip(labels.flatten().tolist(), guesses.tolist()):
            if label != guess:
                self.counts[f"{label} taken for {guess}"] += 1

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        module.log("mistakes_so_far", float(self.counts.total()))

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        for mistake, count in self.counts.most_common(self.top):
            trainer.print(f"{count:4d} x  {mistake}")

    # What must survive a crash. A run that resumes goes on counting where the killed one stopped.
    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts = Counter(state_dict["counts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=5, help="epochs to train for at most")
    parser.add_argument("--root", type=Path, default=Path("runs/custom_callback"), help="directory for the runs")
    options = parser.parse_args()

    seed_everything(1)
    train_batches, val_batches, _ = digit_loaders()
    trainer = Trainer(max_epochs=options.max_epochs, default_root_dir=options.root, callbacks=Confusions())
    trainer.fit(Digits(horizon=options.max_epochs), train_batches, val_batches, ckpt_path="last")


if __name__ == "__main__":
    main()
