"""A physics-informed network: Burgers' equation in float64, Adam first, then LBFGS from Adam's best."""

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
from paddle.io import DataLoader, TensorDataset

VISCOSITY = 0.1


def exact(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """u(x, t) of u_t + u u_x = 0.1 u_xx with u(x, 0) = -sin(pi x) on [-1, 1] (Cole-Hopf, by quadrature)."""
    nodes, weights = np.polynomial.hermite.hermgauss(60)
    eta = np.sqrt(4 * VISCOSITY * np.maximum(t, 1e-12))[:, None] * nodes
    potential = np.exp(-np.cos(np.pi * (x[:, None] - eta)) / (2 * np.pi * VISCOSITY)) * weights
    return -(np.sin(np.pi * (x[:, None] - eta)) * potential).sum(1) / potential.sum(1)


class Burgers(Module):
    """u(x, t) that obeys the equation at the points of a batch, and its values at the start and at both ends."""

    def __init__(self, optimizer: str = "adam", width: int = 20) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [2, width, width, width, 1]
        self.layers = paddle.nn.LayerList([paddle.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])

    def forward(self, points: paddle.Tensor) -> paddle.Tensor:
        """u [batch, 1] at points [batch, 2] of x and t."""
        for layer in self.layers[:-1]:
            points = paddle.tanh(layer(points))
        return self.layers[-1](points)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        inner, edge, edge_values = batch
        loss = self.residual(inner).square().mean() + (self(edge) - edge_values).square().mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def residual(self, points: paddle.Tensor) -> paddle.Tensor:
        """u_t + u u_x - 0.1 u_xx, by derivatives of the network."""
        x, t = points[:, :1], points[:, 1:]
        x.stop_gradient = t.stop_gradient = False
        u = self(paddle.concat([x, t], axis=1))
        u_x, u_t = paddle.grad(u, [x, t], paddle.ones_like(u), create_graph=True)
        (u_xx,) = paddle.grad(u_x, [x], paddle.ones_like(u), create_graph=True)
        return u_t + u * u_x - VISCOSITY * u_xx

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        points, values = batch
        error = ((self(points) - values).square().sum() / values.square().sum()).sqrt()
        self.log("val_error", error, prog_bar=True)  # relative, in the L2 norm

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        if self.hparams.optimizer == "adam":
            return paddle.optimizer.Adam(2e-3, parameters=self.parameters())
        return paddle.optimizer.LBFGS(1.0, max_iter=20, line_search_fn="strong_wolfe", parameters=self.parameters())


def loaders() -> tuple[DataLoader, DataLoader]:
    """One batch of 600 inner points and 200 at the edges; 400 points whose exact values are known."""
    draw = np.random.RandomState(0)
    inner = np.stack([draw.uniform(-1, 1, 600), draw.uniform(0, 1, 600)], axis=1)
    start, ends = draw.uniform(-1, 1, 100), draw.uniform(0, 1, 100)
    edge = np.concatenate([np.stack([start, 0 * start], 1), np.stack([draw.choice([-1.0, 1.0], 100), ends], 1)])
    edge_values = np.concatenate([-np.sin(np.pi * start), 0 * ends])[:, None]
    edge, edge_values = np.repeat(edge, 3, axis=0), np.repeat(edge_values, 3, axis=0)
    seen = np.stack([draw.uniform(-1, 1, 400), draw.uniform(0, 1, 400)], axis=1)
    tensors = [paddle.to_tensor(array, dtype="float64") for array in (inner, edge, edge_values)]
    known = [paddle.to_tensor(array, dtype="float64") for array in (seen, exact(seen[:, 0], seen[:, 1])[:, None])]
    return DataLoader(TensorDataset(tensors), batch_size=600), DataLoader(TensorDataset(known), batch_size=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--adam-epochs", type=int, default=1000)
    parser.add_argument("--lbfgs-epochs", type=int, default=60)
    parser.add_argument("--root", type=Path, default=Path("runs/physics_informed"))
    options = parser.parse_args()

    train_batches, val_batches = loaders()
    before = None
    for name, epochs in (("adam", options.adam_epochs), ("lbfgs", options.lbfgs_epochs)):
        seed_everything(1)
        trainer = Trainer(
            max_epochs=epochs,
            precision="64-true",
            default_root_dir=options.root,
            run_name=name,
            check_val_every_n_epoch=epochs // 10,
            log_every_n_steps=epochs // 10,
            callbacks=[ModelCheckpoint(monitor="val_error", every_n_epochs=epochs // 10), PlotCurves()],
        )
        trainer.fit(Burgers(optimizer=name), train_batches, val_batches, ckpt_path="last", init_from=before)
        (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
        before = trainer.run_dir / "best_val_error"
        print(f"result  {name}_error  {result['val_error']:.5f}")


if __name__ == "__main__":
    main()
