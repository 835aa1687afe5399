"""Lines of progress are no reason to lose a training: encodings, closed pipes, full disks, closed files."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches

from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint

TESTS = Path(__file__).parent.parent
SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
from models import Classifier, make_batches
from paddlelite_trainer import Trainer
trainer = Trainer(max_epochs=3, default_root_dir=sys.argv[2], num_sanity_val_steps=0)
trainer.fit(Classifier(), make_batches(4), make_batches(2), ckpt_path="last")
trainer.validate(dataloaders=make_batches(2))
assert trainer.global_step == 12
open(sys.argv[2] + "/done", "w").close()
"""


class Named(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("损失", loss, prog_bar=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("Genauigkeit µ", self.loss(batch), prog_bar=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("bar", [True, False])
def test_a_name_that_the_encoding_cannot_show_is_escaped(tmp_path: Path, encoding: str, bar: bool) -> None:
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, encoding=encoding)):
        callbacks = [ModelCheckpoint(monitor="损失"), EarlyStopping("损失", verbose=True, patience=9)]
        trainer = Trainer(
            max_epochs=2,
            default_root_dir=tmp_path / "训练",
            run_name="一",
            callbacks=callbacks,
            enable_progress_bar=bar,
        )
        trainer.fit(Named(), make_batches(4), make_batches(2))
        trainer.validate(dataloaders=make_batches(2))
        sys.stdout.flush()
        text = written.getvalue().decode(encoding)
    assert trainer.current_epoch == 2
    assert ("损失" in text) if encoding == "utf-8" else (r"\u635f\u5931" in text)


def run(root: Path, stdout: Any) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", SCRIPT, str(TESTS), str(root)]
    process = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    return process.returncode, process.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_under_standard_output_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        code, told = run(tmp_path, full)
    assert (code, (tmp_path / "done").exists()) == (0, True), told
    assert told.count("standard output cannot be written") <= 1


def test_a_closed_pipe_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, told = run(tmp_path, writing)
    finally:
        os.close(writing)
    assert (code, (tmp_path / "done").exists()) == (0, True), told
    assert told.count("standard output cannot be written") == 1
    log = (tmp_path / "version_0/train.log").read_text()
    assert "Finished 3/3 epochs" in log and "Validation: 2 batches" in log  # what nobody has seen


def test_a_closed_file_as_standard_output_ends_nothing(tmp_path: Path) -> None:
    gone = io.StringIO()
    gone.close()
    with contextlib.redirect_stdout(gone):
        trainer = Trainer(max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(Classifier(), make_batches(2))
    assert trainer.global_step == 2
