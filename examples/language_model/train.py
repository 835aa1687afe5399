"""A language model: a small GPT with accumulation, then LoRA on other text, of which only what is trained is saved."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from network import Block, LoRA
from paddle.io import DataLoader, TensorDataset
from paddle.nn import Embedding, LayerList, LayerNorm, Linear

LENGTH = 64  # bytes


def source_of(*modules: str) -> bytes:
    return b"".join(Path(importlib.util.find_spec(module).origin).read_bytes() for module in modules)


def batches(text: bytes, size: int, *, shuffle: bool) -> DataLoader:
    """Pieces [batch, 65] of a text; the network reads 64 bytes of each and says the 64 that come one later."""
    letters = np.minimum(np.frombuffer(text, "uint8"), 127).astype("int64")
    pieces = letters[: len(letters) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return DataLoader(TensorDataset([paddle.to_tensor(pieces)]), batch_size=size, shuffle=shuffle)


class GPT(Module):
    def __init__(self, width: int = 64, depth: int = 2, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.letters, self.places = Embedding(128, width), Embedding(LENGTH, width)
        self.blocks = LayerList([Block(width) for _ in range(depth)])
        self.norm, self.head = LayerNorm(width), Linear(width, 128)

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, length, 128] of the byte after each of text [batch, length], length at most 64."""
        x = self.letters(text) + self.places(paddle.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0][:, :-1]), batch[0][:, 1:])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0][:, :-1]), batch[0][:, 1:]), prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        trained = [parameter for parameter in self.parameters() if not parameter.stop_gradient]
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=trained, weight_decay=0.01)

    @paddle.no_grad()
    def sample(self, start: str, count: int = 60) -> str:
        text = [ord(letter) for letter in start]
        for _ in range(count):
            scores = self(paddle.to_tensor([text[-LENGTH:]]))[0, -1]
            text.append(int(scores.argmax()))
        return bytes(text).decode("ascii", "replace")


class Tuned(GPT):
    """A GPT whose own weights are in a list, so neither trained nor saved: a checkpoint holds the thin matrices."""

    def __init__(self, base: GPT, rank: int = 4, learning_rate: float = 5e-3) -> None:
        Module.__init__(self)
        self.save_hyperparameters(ignore=["base"])
        self.beside = [base]
        for parameter in base.parameters():
            parameter.stop_gradient = True
        self.thin = LayerList([LoRA(block.qkv, rank) for block in base.blocks])
        for block, layer in zip(base.blocks, self.thin, strict=True):
            block.qkv = layer

    def forward(self, text: paddle.Tensor) -> paddle.Tensor:
        return self.beside[0](text)


class Samples(Callback):
    """Says after each epoch how the model goes on with a line."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking:
            trainer.print(f"    {module.sample('    def ')!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=4)
    parser.add_argument("--root", type=Path, default=Path("runs/language_model"))
    options = parser.parse_args()

    def trainer_of(name: str) -> Trainer:
        return Trainer(
            max_epochs=options.max_epochs,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            default_root_dir=options.root,
            run_name=name,
            callbacks=[ModelCheckpoint(monitor="val_loss"), Samples(), PlotCurves()],
        )

    seed_everything(1)
    code, tests = source_of("argparse", "inspect", "typing", "subprocess", "tarfile")[:150_000], source_of("turtle")
    trainer = trainer_of("base")
    trainer.fit(
        gpt := GPT(), batches(code, 32, shuffle=True), batches(tests[:40_000], 64, shuffle=False), ckpt_path="last"
    )
    (before,) = trainer.validate(
        ckpt_path="best", dataloaders=batches(tests[:40_000], 64, shuffle=False), verbose=False
    )

    seed_everything(2)
    trainer = trainer_of("lora")
    trainer.fit(
        Tuned(gpt),
        batches(tests[40_000:], 32, shuffle=True),
        batches(tests[:40_000], 64, shuffle=False),
        ckpt_path="last",
    )
    (after,) = trainer.validate(ckpt_path="best", dataloaders=batches(tests[:40_000], 64, shuffle=False), verbose=False)
    saved = (trainer.run_dir / "best_val_loss.pdparams").stat().st_size
    print(f"LoRA's checkpoint: {saved / 1e3:.0f} kB of {sum(p.size for p in gpt.parameters()) * 4 / 1e3:.0f} kB")
    print(f"result  base_loss  {before['val_loss']:.4f}")
    print(f"result  lora_loss  {after['val_loss']:.4f}")


if __name__ == "__main__":
    main()
