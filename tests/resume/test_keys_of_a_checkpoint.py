"""on_save_checkpoint adds keys of its own, and takes none of the trainer's away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback
from paddlelite_trainer.errors import ConfigurationError

KEYS = ["progress", "optimizers", "lr_schedulers", "loggers", "weights_only", "callbacks", "history", "seed", "files"]


def fit(root: Path, module: Classifier, *callbacks: Callback) -> None:
    quiet_trainer(
        max_epochs=1, default_root_dir=root, run_name="run", enable_checkpointing=True, callbacks=[*callbacks]
    ).fit(module, make_batches(2), ckpt_path="last")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_the_trainer_s_own_is_refused_at_the_save(tmp_path: Path, key: str) -> None:
    class Writes(Classifier):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint[key] = {"mine": 1}

    with pytest.raises(ConfigurationError, match=rf"on_save_checkpoint has written checkpoint\['{key}'\]"):
        fit(tmp_path, Writes())


def test_a_callback_that_takes_a_key_away_is_named(tmp_path: Path) -> None:
    class Forgets(Callback):
        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            del checkpoint["history"]

    with pytest.raises(ConfigurationError, match=r"Forgets\.on_save_checkpoint has written checkpoint\['history'\]"):
        fit(tmp_path, Classifier(), Forgets())


def test_keys_and_files_of_one_s_own_come_back(tmp_path: Path) -> None:
    class Keeps(Classifier):
        stage = 0

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["my_stage"] = 3
            checkpoint["files"]["ema.pdparams"] = {"a": self.state_dict()["net.0.weight"]}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.stage = checkpoint["my_stage"]

    fit(tmp_path, Keeps())
    again = Keeps()
    fit(tmp_path, again)
    assert again.stage == 3
