"""A GAN: two optimizers stepped by hand, and the generator's pictures after each epoch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from paddle.nn import Linear, Sequential
from sklearn.datasets import load_digits

NOISE = 16


class GAN(Module):
    """Generator and discriminator of digits of 8 x 8 pixels, with the non-saturating loss (arXiv 1406.2661)."""

    def __init__(self, width: int = 128, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Sequential(
            Linear(NOISE, width),
            paddle.nn.ReLU(),
            Linear(width, width),
            paddle.nn.ReLU(),
            Linear(width, 64),
            paddle.nn.Sigmoid(),
        )
        self.discriminator = Sequential(
            Linear(64, width),
            paddle.nn.LeakyReLU(0.2),
            paddle.nn.Dropout(0.3),
            Linear(width, width),
            paddle.nn.LeakyReLU(0.2),
            Linear(width, 1),
        )
        # A buffer: drawn once, saved, so that the pictures of a resumed run are of the same noise.
        self.register_buffer("shown_noise", paddle.randn([64, NOISE]))

    def forward(self, noise: paddle.Tensor) -> paddle.Tensor:
        """Images [batch, 64] of noise [batch, 16]."""
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()
        made = self(paddle.randn([len(real), NOISE]))

        self.toggle_optimizer(for_discriminator)
        real_scores, made_scores = self.discriminator(real), self.discriminator(made.detach())
        loss = F.softplus(-real_scores).mean() + F.softplus(made_scores).mean()
        self.manual_backward(loss)
        for_discriminator.step()
        for_discriminator.clear_grad()
        self.untoggle_optimizer(for_discriminator)

        self.toggle_optimizer(for_generator)
        generator_loss = F.softplus(-self.discriminator(made)).mean()
        self.manual_backward(generator_loss)
        for_generator.step()
        for_generator.clear_grad()
        self.untoggle_optimizer(for_generator)
        self.log_dict({"discriminator_loss": loss, "generator_loss": generator_loss}, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """How far the made images' mean and covariance are from those of real ones (Frechet distance of pixels)."""
        (real,) = batch
        made = self(paddle.to_tensor(np.random.RandomState(0).normal(size=(2000, NOISE)).astype("float32")))
        self.log("val_distance", frechet(real.numpy(), made.numpy()), prog_bar=True)

    def configure_optimizers(self) -> list[paddle.optimizer.Optimizer]:
        return [
            paddle.optimizer.Adam(self.hparams.learning_rate, beta1=0.5, parameters=part.parameters())
            for part in (self.generator, self.discriminator)
        ]


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of the normal distributions with the means and covariances of two sets [count, features]."""
    first, second = first.astype("float64"), second.astype("float64")
    a, b = np.cov(first.T), np.cov(second.T)
    root = np.linalg.eigvals(a @ b).astype("complex128") ** 0.5
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * root.real.sum())


class Pictures(Callback):
    """Draws what the generator makes of the same noise, every so many epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs or not trainer.is_global_zero or trainer.run_dir is None:
            return
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import image

        with paddle.no_grad():
            made = module(module.shown_noise).numpy().reshape(4, 16, 8, 8)
        sheet = np.pad(made, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 1, 3).reshape(40, 160)
        image.imsave(trainer.run_dir / f"made_{done:04d}.png", sheet.repeat(4, 0).repeat(4, 1), cmap="gray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=80)
    parser.add_argument("--root", type=Path, default=Path("runs/gan"))
    options = parser.parse_args()

    seed_everything(1)
    images = paddle.to_tensor((load_digits().data / 16.0).astype("float32"))
    train_batches = DataLoader(TensorDataset([images]), batch_size=64, shuffle=True, drop_last=True)
    val_batches = DataLoader(TensorDataset([images]), batch_size=len(images))
    trainer = Trainer(
        max_epochs=options.max_epochs,
        check_val_every_n_epoch=10,
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_distance", every_n_epochs=10), Pictures(every_n_epochs=20)],
    )
    trainer.fit(GAN(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    print(f"result  val_distance  {result['val_distance']:.3f}")


if __name__ == "__main__":
    main()
