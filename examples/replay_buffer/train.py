"""Data that depend on the model: Q-learning that plays, remembers in a replay buffer, and resumes with the buffer."""

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
from game import SIZE, Game, Replay


class Player(Module):
    """Says what each of four moves is worth, learned from a slower copy of itself (doi 10.1038/nature14236)."""

    def __init__(self, width: int = 128, learning_rate: float = 2e-3, discount: float = 0.9) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fast, self.slow = (
            paddle.nn.Sequential(paddle.nn.Linear(3 * SIZE * SIZE, width), paddle.nn.ReLU(), paddle.nn.Linear(width, 4))
            for _ in range(2)
        )
        self.slow.set_state_dict(self.fast.state_dict())
        for parameter in self.slow.parameters():
            parameter.stop_gradient = True

    def forward(self, seen: paddle.Tensor) -> paddle.Tensor:
        """Worth [batch, 4] of each move in positions [batch, 48]."""
        return self.fast(seen)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        seen, action, reward_and_over, then = batch
        reward, is_over = reward_and_over.unbind(axis=1)
        with paddle.no_grad():
            best = self.fast(then).argmax(axis=1)
            worth = (self.slow(then) * F.one_hot(best, 4)).sum(axis=1)
            target = reward + self.hparams.discount * worth * (1 - is_over)
            for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                slow.set_value(0.98 * slow + 0.02 * fast)
        loss = F.smooth_l1_loss((self(seen) * F.one_hot(action, 4)).sum(axis=1), target)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Plays 200 games without chance and logs how many end at the goal."""
        draw = np.random.RandomState(1)
        games, won = [Game(draw) for _ in range(200)], 0
        while games:
            with paddle.no_grad():
                best = self(paddle.to_tensor(np.stack([game.seen() for game in games]))).argmax(axis=1).numpy()
            ends = [game.move(int(action)) for game, action in zip(games, best, strict=True)]
            won += sum(reward == 1.0 for reward, _ in ends)
            games = [game for game, (_, is_over) in zip(games, ends, strict=True) if not is_over]
        self.log("won", won / 200, prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Adam(self.hparams.learning_rate, parameters=self.fast.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=30)
    parser.add_argument("--root", type=Path, default=Path("runs/replay_buffer"))
    options = parser.parse_args()

    seed_everything(1)
    player = Player()
    trainer = Trainer(
        max_epochs=options.max_epochs,
        look_ahead=False,  # each batch is made when the step before it is done
        default_root_dir=options.root,
        callbacks=[ModelCheckpoint(monitor="won", mode="max"), PlotCurves()],
    )
    trainer.fit(player, Replay(player), ckpt_path="last")
    print(f"result  won  {trainer.callback_metrics.get('won', trainer.checkpoint_callback.best_model_score):.4f}")


if __name__ == "__main__":
    main()
