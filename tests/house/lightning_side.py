"""What Lightning does, as JSON: test_next_to_lightning.py runs it where Lightning is; imports nothing of ours."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

BATCHES, STOP_AT = 12, 5
PACKAGES = tuple(str(Path(module.__file__).parent) for module in (lightning, sys.modules["lightning.pytorch"]))


class Net(lightning.LightningModule):
    """A linear layer behind dropout, which records its samples, its depth in the stack, and library calls so far."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.samples: list[list[int]] = []
        self.frames: list[int] = []
        self.calls_at: list[int] = []
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, index = batch
        self.samples.append(index.tolist())
        self.frames.append(len(inspect.stack(context=0)))
        self.calls_at.append(self.calls)
        loss = self.net(x).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class StopAt(lightning.Callback):
    """Ends the run in mid-epoch, right after a checkpoint."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STOP_AT:
            raise KeyboardInterrupt


def loader() -> Any:
    numbers = torch.arange(2 * BATCHES)
    return DataLoader(
        TensorDataset(numbers.float().reshape(-1, 1).expand(-1, 4) / 24, numbers), batch_size=2, shuffle=True
    )


def fit(root: str, module: Net, *callbacks: Any, ckpt_path: str | None = None, bar: bool = False) -> None:
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, default_root_dir=root, callbacks=list(callbacks), logger=bar,
        enable_progress_bar=bar, enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(module, loader(), loader() if bar else None, ckpt_path=ckpt_path)  # fmt: skip


def outcome(action: Callable[[], Any]) -> str:
    """ "nothing", or the error's type."""
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return "nothing"


def resume(root: str) -> dict[str, bool]:
    lightning.seed_everything(1)
    whole = Net()
    fit(root, whole, ModelCheckpoint(dirpath=f"{root}/whole", every_n_train_steps=STOP_AT))
    lightning.seed_everything(1)
    keep = ModelCheckpoint(dirpath=f"{root}/part", every_n_train_steps=STOP_AT, save_top_k=-1)
    outcome(lambda: fit(root, Net(), keep, StopAt()))
    lightning.seed_everything(1)
    resumed = Net()
    fit(root, resumed, ckpt_path=str(next(Path(root, "part").glob("*.ckpt"))))
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    return {"same batches": resumed.samples == whole.samples[STOP_AT:], "same weights": same}


def cost(root: str) -> dict[str, float]:
    module = Net()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            module.calls += 1

    sys.setprofile(count)
    fit(root, module, ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss"), bar=True)
    sys.setprofile(None)
    calls = [after - before for before, after in zip(module.calls_at, module.calls_at[1:])]
    ours = len(inspect.stack())  # the script, main and this; fit() above is one more, and a script of its own has one
    return {"frames": max(module.frames) - ours, "calls": statistics.median(calls)}


def misspelt_hook(root: str) -> str:
    class Wrong(lightning.Callback):
        def on_train_epoch_ends(self, trainer: Any, module: Any) -> None:
            raise AssertionError

    return outcome(lambda: fit(root, Net(), Wrong()))


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["PAYLOAD_FOLDER"],)


def hostile_checkpoint(root: str) -> bool:
    """Whether going on from a checkpoint runs code that somebody put into it."""
    folder = os.environ["PAYLOAD_FOLDER"] = f"{root}/payload"
    module = Net()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=root, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader())
    trainer.save_checkpoint(f"{root}/sound.ckpt")
    state = torch.load(f"{root}/sound.ckpt", weights_only=False)
    torch.save({**state, "extra": Payload()}, f"{root}/hostile.ckpt", pickle_module=pickle)
    outcome(lambda: fit(root, Net(), ckpt_path=f"{root}/hostile.ckpt"))
    return Path(folder).is_dir()


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        told = {
            "cost": cost(root),
            "resume": resume(root),
            "misspelt hook": misspelt_hook(root),
            "wrong monitor": outcome(lambda: fit(root, Net(), EarlyStopping("val_los"))),
            "hostile checkpoint runs": hostile_checkpoint(root),
        }
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
