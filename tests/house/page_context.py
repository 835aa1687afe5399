"""What a page takes for granted before its first block, what stands in another's place, and what must be so afterwards.

A page that is not here runs by itself: all that its blocks use, they make.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from house.documents import DOCS, blocks_of

import paddlelite_trainer
from paddlelite_trainer import Module, Trainer, callbacks

Names = dict[str, Any]
F = paddle.nn.functional


@dataclass(frozen=True)
class Context:
    """`before` gives the names of a page's first block, `put_in_place` exchanges words of its code, `after` asserts."""

    before: Callable[[], Names] = dict
    put_in_place: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[Names], None] = lambda names: None


class Digits(paddle.io.Dataset):
    def __getitem__(self, index: int) -> Any:
        return np.full([64], index / 16, "float32"), np.int64(index % 10)

    def __len__(self) -> int:
        return 16


class Classifier(Module):
    """What the pages call a Classifier, of digits."""

    def __init__(self, lr: float = 0.1, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = paddle.nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y, soft_label=y.ndim == 2)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))
        self.log("val_acc", (self(x).argmax(axis=1) == y).astype("float32").mean())

    def train_dataloader(self) -> Any:
        return paddle.io.DataLoader(Digits(), batch_size=self.hparams.batch_size)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(self.hparams.lr, parameters=self.parameters())


def a_classifier() -> Names:
    """Every public name, `Classifier`, loaders of it, and a `module` and a `trainer` of one epoch."""
    known = {name: getattr(paddlelite_trainer, name) for name in paddlelite_trainer.__all__}
    known |= {name: getattr(callbacks, name) for name in callbacks.__all__}
    loader = paddle.io.DataLoader(Digits(), batch_size=8, shuffle=True)
    loaders = {"train_loader": loader, "loader": loader, "val_loader": loader}
    return {**known, "np": np, "paddle": paddle, "Classifier": Classifier, "module": Classifier(), **loaders}


class Anew:
    """A `trainer` of pages that show several programs in a row: each `fit` is one, in a directory of its own."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def fit(self, module: Any, *arguments: Any, **more: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            best = callbacks.ModelCheckpoint(monitor=self.monitor, mode="max")
            Trainer(max_epochs=8, default_root_dir=folder, callbacks=best).fit(module, *arguments, **more)


# -- the pages, by name ------------------------------------------------------------------------------------------------
def optuna_counted_samples(names: Names) -> None:
    """The page's `objective` in a study, its CountSamples in a fit."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.optimize(names["objective"], n_trials=2)
    assert all(trial.value is not None for trial in study.trials)
    counts = names["CountSamples"]()
    trainer = Trainer(max_epochs=2, callbacks=[counts], run_name="counted")
    trainer.fit(Classifier(), names["train_loader"])
    assert (counts.samples, trainer.callback_metrics["samples"]) == (32, 32)


class Backbone(Module):
    """A network whose weights are `net.backbone.weight` and `net.backbone.bias`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Layer()
        self.net.backbone = paddle.nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net.backbone(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", 0.5)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(0.01, parameters=self.parameters())


def write_as_paddleocr(stem: str, layer: Any) -> None:
    """Three files as PaddleOCR leaves them after its first epoch."""
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    optimizer = paddle.optimizer.Adam(0.01, parameters=layer.parameters())
    sum(parameter.sum() for parameter in layer.parameters()).backward()
    optimizer.step()
    paddle.save(layer.state_dict(), f"{stem}.pdparams")
    paddle.save(optimizer.state_dict(), f"{stem}.pdopt")
    best = {"acc": 0.9, "best_epoch": 1}
    Path(f"{stem}.states").write_bytes(pickle.dumps({"epoch": 1, "best_model_dict": best, "global_step": 2}, 2))


def files_of_other_tools() -> Names:
    theirs = Backbone()
    for stem in ("output/best_accuracy", "output/latest", "pretrained/model"):
        write_as_paddleocr(stem, theirs)
    paddle.save({f"backbone.{name}": value for name, value in theirs.net.backbone.state_dict().items()}, "x.pdparams")
    return {**a_classifier(), "model": Backbone(), "module": Backbone(), "trainer": Anew("val_acc")}


def every_way_in(names: Names) -> None:
    assert names["report"] is not None and names["found"].optimizer and names["found"].epoch == 1


class Lines(paddle.io.Dataset):
    """Images of text, padded labels and their lengths."""

    def __getitem__(self, index: int) -> Any:
        return np.full([12, 4], index / 8, "float32"), np.full([3], index % 4 + 1, "int32"), np.int64(3)

    def __len__(self) -> int:
        return 8


def an_ocr_network() -> Names:
    """PaddleOCR's `build_model` and a loss, as small as they can be, and what its run has left."""

    def build_model(architecture: dict[str, Any]) -> Any:
        return paddle.nn.Linear(4, architecture.pop("classes"))

    def ctc_loss(scores: Any, labels: Any, lengths: Any) -> Any:
        long = paddle.full([scores.shape[0]], scores.shape[1], dtype="int64")
        return F.ctc_loss(scores.transpose([1, 0, 2]), labels, long, lengths)

    for stem in ("pretrained/best_accuracy", "output/rec/best_accuracy", "output/rec/latest"):
        write_as_paddleocr(stem, build_model({"classes": 5}))
    loader = paddle.io.DataLoader(Lines(), batch_size=4)
    names = {**a_classifier(), "copy": copy, "build_model": build_model, "ctc_loss": ctc_loss, "Anew": Anew}
    loaders = {"train_loader": loader, "loader": loader, "val_loader": loader}
    return {**names, **loaders, "architecture": {"classes": 5}, "line_accuracy": lambda scores, labels: 0.5}


def to_be_tuned() -> Names:
    return {**a_classifier(), "trainer": Trainer(max_epochs=1, logger=False, enable_checkpointing=False)}


def tuned_and_mixed(names: Names) -> None:
    """The page's hook in a module, with labels one-hot as it says."""

    class Mixes(Classifier):
        on_after_batch_transfer = names["on_after_batch_transfer"]

    batches = [(paddle.rand([8, 64]), F.one_hot(paddle.arange(8), 10)) for _ in range(2)]
    Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(Mixes(), batches)
    assert names["size"] >= 8 and names["found"].suggestion() is not None


def shown_in_tensorboard(names: Names) -> None:
    from reporting.stores import media_in_tensorboard

    Path("first/runs").mkdir(parents=True)
    Path("runs/version_0").rename("first/runs/version_0")
    assert media_in_tensorboard(Path("first")) == {"val/first", "val/logits", "sample"}


def exported_everywhere(names: Names) -> None:
    assert {path.stem for path in Path("out").iterdir()} >= {"model", "named", "at_end"}
    assert Path("weights.safetensors").stat().st_size > 100


def train_py() -> Names:
    """The page's first block is the `train.py` of its command lines."""
    Path("train.py").write_text(blocks_of(DOCS / "export.md")[0].code, encoding="utf-8")
    return {}


def predicted(names: Names) -> None:
    data = (names["x"], names["y"])
    assert names["trainer"].validate(names["module"], data, batch_size=64)[0]["val_acc"] > 0.9
    assert len(names["predictions"]) == 2 and names["predictions"][0].shape == [64, 2]


QUICK = {"max_epochs=100": "max_epochs=1"}
OCR = {
    "max_epochs=50": "max_epochs=8",
    "val_check_interval=2000": "val_check_interval=2",
    "trainer.fit(module": 'Anew("acc").fit(Recognizer(architecture)',  # of the block with two programs
}
CONTEXTS: dict[str, Context] = {
    "callbacks": Context(a_classifier, {"max_epochs=20": "max_epochs=1"}, optuna_counted_samples),
    "export": Context(train_py, after=exported_everywhere),
    "foreign-checkpoints": Context(files_of_other_tools, after=every_way_in),
    "logging": Context(a_classifier, after=shown_in_tensorboard),
    "migrating-from-lightning": Context(a_classifier),
    "optimization": Context(to_be_tuned, after=tuned_and_mixed),
    "porting-from-paddleocr": Context(an_ocr_network, OCR),
    # An object storage in this process's memory.
    "remote-copies": Context(a_classifier, {**QUICK, "s3://": "memory://"}),
    "resume": Context(a_classifier, QUICK),
    "without-a-class": Context(after=predicted),
}
