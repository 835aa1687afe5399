"""Trains a model of another package, as it comes, on small random data: python train.py MODEL --root RUNS.

Each package needs an environment of its own; `.ci/matrix others` makes them. What it prints last is for the test.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset

from paddlelite_trainer import Callback, InitFrom, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint

F = paddle.nn.functional
STEPS = 10
BATCH_SIZE = 2
THEIR_EPOCHS = 2  # in the checkpoint of PaddleClas


class Task(Module):
    """What all of them share: an optimizer, and the step at which the process kills itself."""

    def __init__(self, kill_at_step: int | None = None) -> None:
        super().__init__()
        self.net = self.build()
        self.kill_at_step = kill_at_step

    @staticmethod
    def build() -> Any:
        raise NotImplementedError

    @staticmethod
    def items() -> list[Any]:
        raise NotImplementedError

    @staticmethod
    def theirs(net: Any, folder: Path) -> str:
        """Have the package itself write a checkpoint of `net`, and say where."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Any:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.net)


class PPLCNet(Task):
    """PaddleClas's PP-LCNet x0.25, which has dropout and batch norms; its engine's save_model writes the checkpoint."""

    @staticmethod
    def build() -> Any:
        from paddleclas.ppcls.arch.backbone.legendary_models.pp_lcnet import PPLCNet_x0_25

        return PPLCNet_x0_25(class_num=5)

    @staticmethod
    def items() -> list[Any]:
        numbers = np.random.RandomState(3)
        return [(numbers.randn(3, 64, 64).astype("float32"), np.int64(index % 5)) for index in range(12)]

    @staticmethod
    def theirs(net: Any, folder: Path) -> str:
        from paddleclas.ppcls.utils.save_load import save_model

        optimizer = make_optimizer(net)
        for image, label in PPLCNet.items()[:4]:
            F.cross_entropy(net(paddle.to_tensor(image[None])), paddle.to_tensor(label[None])).backward()
            optimizer.step()
            optimizer.clear_grad()
        save_model(net, [optimizer], {"metric": 0.5, "epoch": THEIR_EPOCHS}, str(folder), prefix="latest")
        return str(folder / "latest")

    def loss(self, batch: Any) -> Any:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)


class BiSeNetV2(Task):
    """PaddleSeg's BiSeNet V2 with its four auxiliary heads; its own `train` writes the checkpoint."""

    @staticmethod
    def build() -> Any:
        from paddleseg.models import BiSeNetV2

        return BiSeNetV2(num_classes=3)

    @staticmethod
    def items() -> list[Any]:
        numbers = np.random.RandomState(3)
        shape = (3, 64, 64)
        return [
            {"img": numbers.randn(*shape).astype("float32"), "label": numbers.randint(0, 3, shape[1:])}
            for _ in range(8)
        ]

    @staticmethod
    def theirs(net: Any, folder: Path) -> str:
        from paddleseg.core import train

        # PaddleSeg 2.8's own CrossEntropyLoss fails on Paddle 3: it multiplies float32 by int64.
        losses = {"types": [paddle.nn.CrossEntropyLoss(axis=1)] * 5, "coef": [1] * 5}
        settings: dict[str, Any] = {"iters": 4, "save_interval": 4, "save_dir": str(folder), "losses": losses}
        train(net, Items(BiSeNetV2.items()), optimizer=make_optimizer(net), **settings)
        return str(folder / "iter_4")

    def loss(self, batch: Any) -> Any:
        return sum(F.cross_entropy(scores, batch["label"], axis=1) for scores in self.net(batch["img"]))


class Ernie(Task):
    """PaddleNLP's ERNIE with two small layers, from a configuration; its save_pretrained writes the checkpoint."""

    @staticmethod
    def build() -> Any:
        from paddlenlp.transformers import ErnieConfig, ErnieForSequenceClassification

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return ErnieForSequenceClassification(ErnieConfig(vocab_size=100, num_labels=3, **sizes))

    @staticmethod
    def items() -> list[Any]:
        numbers = np.random.RandomState(3)
        return [(numbers.randint(1, 100, 16), np.int64(index % 3)) for index in range(12)]

    @staticmethod
    def theirs(net: Any, folder: Path) -> str:
        net.save_pretrained(str(folder))
        return str(folder)

    def loss(self, batch: Any) -> Any:
        words, labels = batch
        return F.cross_entropy(self.net(words), labels)


MODELS: dict[str, type[Task]] = {"paddleclas": PPLCNet, "paddleseg": BiSeNetV2, "paddlenlp": Ernie}


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        super().__init__()
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


class Began(Callback):
    """Says where the training begins, and how many of the weights it begins with are those that Paddle reads there."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.rglob("*.pdparams")
        read = paddle.load(str(file), return_numpy=True)
        self.weights = {name: value for name, value in read.items() if isinstance(value, np.ndarray)}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        held = module.net.state_dict()
        same = sum(np.array_equal(held[name].numpy(), value) for name, value in self.weights.items())
        print(f"began  step {trainer.global_step} epoch {trainer.current_epoch} same {same} of {len(self.weights)}")


def make_optimizer(net: Any) -> Any:
    return paddle.optimizer.Adam(paddle.optimizer.lr.CosineAnnealingDecay(1e-3, 20), parameters=net.parameters())


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("model", choices=MODELS)
    told.add_argument("--root", type=Path, required=True)
    told.add_argument("--kill-at-step", type=int)
    told.add_argument("--take-over", action="store_true", help="begin with a checkpoint of the package's own making")
    told.add_argument("--training-state", action="store_true", help="with its optimizer and its epochs")
    chosen = told.parse_args()
    task = MODELS[chosen.model]
    seed_everything(11)
    callbacks: list[Any] = [ModelCheckpoint(every_n_train_steps=2, keep_last_n=3)]
    start: dict[str, Any] = {}
    if chosen.take_over:
        path = task.theirs(task.build(), chosen.root / "theirs")
        callbacks.append(Began(chosen.root / "theirs"))
        start["init_from"] = InitFrom(path, rename=lambda name: f"net.{name}", training_state=chosen.training_state)
    steps = STEPS + (THEIR_EPOCHS * len(task.items()) // BATCH_SIZE if chosen.training_state else 0)
    trainer = Trainer(max_steps=steps, default_root_dir=chosen.root, callbacks=callbacks, logger=False)
    loader = DataLoader(Items(task.items()), batch_size=BATCH_SIZE, shuffle=True)
    trainer.fit(task(chosen.kill_at_step), loader, ckpt_path="last", **start)
    print(f"ended  step {trainer.global_step}")


if __name__ == "__main__":
    main()
