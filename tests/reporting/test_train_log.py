"""train.log: what a fit tells people stands there too, over all processes of the run; it never ends a training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ProgressBar, progress_bar


def trainer_in(root: Path, **settings: Any) -> Trainer:
    callbacks = [*settings.pop("callbacks", ()), ProgressBar(every_n_steps=2)]
    settings = {"max_epochs": 2, "logger": False, **settings}
    return Trainer(default_root_dir=root, callbacks=callbacks, **settings)


def log_of(trainer: Trainer) -> str:
    assert trainer.run_dir is not None
    return (trainer.run_dir / "train.log").read_text(encoding="utf-8")


class Warns(Callback):
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            warnings.warn("mind the gap", UserWarning, stacklevel=2)


def test_it_holds_what_was_printed_and_every_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_in(tmp_path, callbacks=[Warns()])
    with pytest.warns(UserWarning, match="mind the gap"):
        trainer.fit(Classifier(), make_batches(4), make_batches(1), ckpt_path="last")
    heading, *logged = log_of(trainer).splitlines()
    assert re.match(rf"---- \d{{4}}-\d\d-\d\d .*, process {os.getpid()} on .+: .+", heading)
    (warning,) = [line for line in logged if line == "WARNING: mind the gap"]
    logged.remove(warning)
    assert logged == capsys.readouterr().out.splitlines()
    assert {"run", "device", "epoch", "Epoch", "Finished"} <= {line.split(" ")[0] for line in logged}


def test_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    trainer_in(tmp_path).fit(Classifier(), make_batches(4))
    as_if_started_again()
    trainer = trainer_in(tmp_path, max_epochs=3)
    trainer.fit(Classifier(), make_batches(4), ckpt_path="last")
    found = re.findall(r"^(----|Epoch \d/\d|Finished \d)", log_of(trainer), re.M)
    assert found == ["----", "Epoch 1/2", "Epoch 2/2", "Finished 2", "----", "Epoch 3/3", "Finished 3"]


def test_what_is_evaluated_after_the_fit_stands_there_too(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.fit(Classifier(), make_batches(4))
    trainer.test(dataloaders=make_batches(1))
    told = r"Finished.*\nWeights as .*\nTest: 1 batches.*\n +test metric +value\n +test_loss"
    assert re.search(told, log_of(trainer))


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"enable_checkpointing": False}])
def test_where_nothing_is_written_there_is_none(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer_in(tmp_path, **settings).fit(Classifier(), make_batches(4))
    assert not [path for path in tmp_path.rglob("*") if path.name == "train.log"]


def test_an_error_stands_there_with_its_way(tmp_path: Path) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("mine")

    trainer = trainer_in(tmp_path)
    with pytest.raises(ValueError, match="mine"):
        trainer.fit(Fails(), make_batches(4))
    assert re.search(r"Traceback .*test_train_log.py.*ValueError: mine\n$", log_of(trainer), re.S)


def test_a_signal_stands_there_with_what_was_saved(tmp_path: Path) -> None:
    class Dies(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = trainer_in(tmp_path, callbacks=[Dies()])
    with pytest.raises(SystemExit):
        trainer.fit(Classifier(), make_batches(4))
    last = log_of(trainer).splitlines()[-1]
    assert last.startswith("SIGTERM: stopped at epoch 0, step 3, saved.")


def test_with_a_bar_the_lines_are_there_and_nobody_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bar:
        live: Any
        tasks = ()

        def __init__(self) -> None:
            self.live = self

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: 0

    monkeypatch.setattr(progress_bar, "_rich_bar", Bar)
    trainer = trainer_in(tmp_path)
    trainer.fit(Classifier(), make_batches(4))
    assert len(re.findall(r"^epoch \d/2  step \d/4", log_of(trainer), re.M)) == 4
    assert "step 2/4" not in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    (run / "train.log").symlink_to("/dev/full")
    trainer = trainer_in(tmp_path, run_name="version_0")
    trainer.fit(Classifier(), make_batches(4))
    assert trainer.global_step == 8
    assert capsys.readouterr().out.count("train.log cannot be written (No space left on device)") == 1


WARNS = """
import sys, warnings
from pathlib import Path
from paddlelite_trainer.reporting.train_log import TrainLog

show, format = warnings.showwarning, warnings.formatwarning
log = TrainLog(print)
log.open(Path(sys.argv[1]))
with log.hears_warnings():
    for path in sys.argv[2:]:
        warnings.warn_explicit("mind the gap", UserWarning, path, 3)
assert (warnings.showwarning, warnings.formatwarning) == (show, format)
"""


def test_a_warning_of_ours_is_shown_without_a_place_in_our_files(tmp_path: Path) -> None:
    root, mine = Path(__file__).parents[2], str(tmp_path / "mine.py")
    ours = str(root / "paddlelite_trainer" / "reporting" / "book.py")
    done = subprocess.run(  # pytest's own records take the place of what shows warnings
        [sys.executable, "-c", WARNS, str(tmp_path), ours, mine], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines() == ["WARNING: mind the gap", f"{mine}:3: UserWarning: mind the gap"]
    logged = (tmp_path / "train.log").read_text().splitlines()[-2:]
    assert logged == ["WARNING: mind the gap", f"WARNING: mind the gap (UserWarning, {mine}:3)"]
