"""F15: each setting that may change between two processes of a run has one rule, and its message says it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.optimizer import lr
from variants import Net, Points, collate

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.checkpoint.manifest import seal
from paddlelite_trainer.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError


def adam(net: Any) -> Any:
    return paddle.optimizer.Adam(0.01, parameters=net.parameters())


def cosine(horizon: int) -> Any:
    def configure(net: Any) -> Any:
        schedule = lr.CosineAnnealingDecay(0.01, T_max=horizon)
        optimizer = paddle.optimizer.Adam(schedule, parameters=net.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return configure


class Counter(Callback):
    def __init__(self, key: str = "batches") -> None:
        self.key, self.batches = key, 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {self.key: self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict[self.key]


def fit(
    root: Path,
    configure: Any = adam,
    *,
    net: Any = Net,
    batch_size: int = 4,
    samples: int = 32,
    split: int | None = None,
    workers: int = 0,
    callbacks: tuple[Callback, ...] = (),
    override: Any = (),
    **settings: Any,
) -> Trainer:
    points: Any = Points(samples)
    if split is not None:
        points = paddle.io.Subset(points, np.random.RandomState(split).permutation(samples)[:24].tolist())
    data = paddle.io.DataLoader(points, batch_size=batch_size, shuffle=True, collate_fn=collate, num_workers=workers)
    options: dict[str, Any] = {"max_epochs": 3, "seed": 3, "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "default_root_dir": root, **settings}
    keep = [*callbacks, ModelCheckpoint(every_n_train_steps=1, save_top_k=0)]
    trainer = Trainer(callbacks=keep, **options)
    trainer.fit(net(configure), data, ckpt_path="last", override=override)
    return trainer


WITHIN = {"max_steps": 11}  # 8 batches an epoch: three into the second
AT_THE_END = {"max_epochs": 1}


class Wider(Net):
    def __init__(self, configure: Any) -> None:
        super().__init__(configure)
        self.head = paddle.nn.Linear(8, 5)


class WithMore(Net):
    def __init__(self, configure: Any) -> None:
        super().__init__(configure)
        self.extra = paddle.nn.Linear(2, 2)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": (WITHIN, {"net": Wider}, r"head\.weight: saved shape \[8, 3\], now \[8, 5\]"),
    "missing parameter": (WITHIN, {"net": WithMore}, r"extra\.weight: in this module, not in the checkpoint"),
    "unexpected parameter": (
        {**WITHIN, "net": WithMore},
        {},
        r"extra\.weight: in the checkpoint, not in this module",
    ),
    "dtype": (WITHIN, {"precision": "64-true"}, r"float32.*float64|32-true.*64-true"),
    "optimizer class": (
        WITHIN,
        {"configure": lambda net: paddle.optimizer.SGD(0.01, parameters=net.parameters())},
        r"class of optimizer: saved Adam, now SGD\. .*override=\('optimizer',\)",
    ),
    "an optimizer for less": (
        WITHIN,
        {"configure": lambda net: paddle.optimizer.Adam(0.01, parameters=net.head.parameters())},
        r"optimizer's state of parameter body\.0\.\w+: saved, and now it has no such "
        r"parameter.*override=\('optimizer',\)",
    ),
    "number of schedulers": (
        WITHIN,
        {"configure": cosine(30)},
        r"number of schedulers: saved 0, now 1\. .*override=\('lr_schedulers',\)",
    ),
    "seed": (WITHIN, {"seed": 4}, r"seed: saved 3, now 4\. Pass seed=3"),
    "batch size within an epoch": (
        WITHIN,
        {"batch_size": 8},
        r"batch size: saved 4, now 8, in the middle of epoch 1\. .*override=\('data',\)",
    ),
    "samples within an epoch": (
        WITHIN,
        {"samples": 40},
        r"samples in the training data: saved 32, now 40, in the middle of epoch 1\. .*override=\('data',\)",
    ),
    "another split within an epoch": (
        {**WITHIN, "split": 0},
        {"split": 1},
        r"which samples are trained on .*: saved \w{12}, now \w{12}, in the middle of epoch 1\. .*override=\('data',\)",
    ),
    "state of a callback": (
        {**WITHIN, "callbacks": (Counter(),)},
        {"callbacks": (Counter("renamed"),)},
        r"state of callback Counter: saved with batches, and load_state_dict failed with KeyError: 'renamed'\. "
        r".*override=\('callbacks',\)",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_does_not_fit_is_refused_by_name_with_both_values_and_the_remedy(change: str, tmp_path: Path) -> None:
    first, then, message = REFUSED[change]
    fit(tmp_path, **first)
    with pytest.raises(CheckpointMismatchError) as caught:
        fit(tmp_path, **then)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


TOLD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "batch size at an epoch's end": (AT_THE_END, {"batch_size": 8}, "batch size: saved 4, now 8. The run goes on"),
    "samples at an epoch's end": (AT_THE_END, {"samples": 40}, "samples in the training data: saved 32, now 40."),
    "another split at an epoch's end": (
        {**AT_THE_END, "split": 0},
        {"split": 1},
        "which samples are trained on (Subset.indices; seed what splits the data): saved ",
    ),
    "accumulate_grad_batches": (
        WITHIN,
        {"accumulate_grad_batches": 2},
        "accumulate_grad_batches: saved {0: 1}, now {0: 2}.",
    ),
    "gradient_clip_val": (WITHIN, {"gradient_clip_val": 1.0}, "gradient_clip_val: saved None, now 1.0."),
    "learning rate": (
        WITHIN,
        {"configure": lambda net: paddle.optimizer.Adam(0.5, parameters=net.parameters())},
        "learning rate: saved 0.01, now 0.5. The run goes on with 0.01, not 0.5 (pass override=('learning_rate',)",
    ),
    "learning rate, overridden": (
        WITHIN,
        {
            "configure": lambda net: paddle.optimizer.Adam(0.5, parameters=net.parameters()),
            "override": ("learning_rate",),
        },
        "The run goes on with 0.5, not 0.01 (as override asks)",
    ),
    "callback added": (WITHIN, {"callbacks": (Counter(),)}, "callback Counter: new in this run; it starts afresh."),
    "callback removed": (
        {**WITHIN, "callbacks": (Counter(),)},
        {},
        "callback Counter: in the checkpoint, not in this run; its state is left aside.",
    ),
    "a longer cosine": (
        {**WITHIN, "configure": cosine(12)},
        {"configure": cosine(24)},
        "was built otherwise than in the checkpoint (T_max 12 -> 24). "
        "It goes on where the new one would be after 11 steps",
    ),
    "data, overridden": (
        WITHIN,
        {"batch_size": 8, "override": "data"},
        "data: epoch 1 begins again, as override asks.",
    ),
    "optimizer, overridden": (
        WITHIN,
        {
            "configure": lambda net: paddle.optimizer.SGD(0.01, parameters=net.parameters()),
            "override": ("optimizer",),
        },
        "Resumed from",
    ),
}


@pytest.mark.parametrize("change", TOLD)
def test_what_may_change_is_told_once_and_the_run_goes_on(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, then, message = TOLD[change]
    fit(tmp_path, **first)
    capsys.readouterr()
    trainer = fit(tmp_path, **then)
    assert capsys.readouterr().out.count(message) == 1
    assert trainer.current_epoch == 3


def test_workers_and_how_they_start_change_nothing_and_are_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "cut", max_steps=3)
    fit(tmp_path / "cut", workers=2, max_steps=11)
    capsys.readouterr()
    trainer = fit(tmp_path / "cut", workers=1, multiprocessing_context="spawn")
    told = capsys.readouterr().out
    assert "now 1" not in told and "spawn" not in told
    for name, weight in whole.model.state_dict().items():
        assert (weight.numpy() == trainer.model.state_dict()[name].numpy()).all(), name


def test_all_that_does_not_fit_is_listed_at_once_and_nothing_was_changed(tmp_path: Path) -> None:
    fit(tmp_path, **WITHIN)
    before = sorted(path.name for path in (tmp_path / "version_0" / "checkpoints").iterdir())
    with pytest.raises(CheckpointMismatchError) as caught:
        fit(
            tmp_path,
            lambda net: paddle.optimizer.SGD(0.01, parameters=net.parameters()),
            batch_size=8,
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "batch size",
        "batches per epoch",
        "class of optimizer",
    ]
    assert sorted(path.name for path in (tmp_path / "version_0" / "checkpoints").iterdir()) == before


def test_a_misspelt_override_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"got 'optimiser'\. Did you mean 'optimizer'\?"):
        fit(tmp_path, override="optimiser")


def test_a_checkpoint_of_a_later_format_is_refused_by_that_name(tmp_path: Path) -> None:
    fit(tmp_path, **WITHIN)
    manifest = next((tmp_path / "version_0" / "checkpoints").glob("step-*")) / "manifest.json"
    body = json.loads(manifest.read_text())
    del body["sha256"]
    manifest.write_bytes(seal({**body, "format": 99}))
    with pytest.raises(
        CheckpointCorruptError, match=r"The checkpoint has format 99; this .* reads up to \d+\. Upgrade it"
    ):
        fit(tmp_path)
