"""journal.jsonl: when which process worked on a run, how far it came and how that ended; it never ends a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping
from paddlelite_trainer.progress import Progress
from paddlelite_trainer.run import journal
from paddlelite_trainer.run.journal import Journal


def trainer_in(root: Path, **settings: Any) -> Trainer:
    settings = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, **settings}
    return Trainer(default_root_dir=root, enable_model_summary=False, **settings)


def journal_of(run: Path | None) -> list[dict[str, Any]]:
    assert run is not None
    return [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_and_its_resume_tell_where_they_began_and_how_they_ended(tmp_path: Path) -> None:
    trainer_in(tmp_path, callbacks=[EarlyStopping("train_loss")]).fit(Classifier(), make_batches(4))
    as_if_started_again()
    trainer = trainer_in(tmp_path, max_epochs=3, accumulate_grad_batches={0: 1})
    trainer.fit(Classifier(), make_batches(4), ckpt_path="last", override=["callbacks"])
    lines = journal_of(trainer.run_dir)
    assert [line["step"] for line in lines if line["event"] == "at"] == [4, 8, 12], "each save is marked"
    first, end, second, last = (line for line in lines if line["event"] != "at")
    assert [(line["event"], line["step"], line["epoch"]) for line in (first, end, second, last)] == [
        ("began", 0, 0),
        ("ended", 8, 2),
        ("began", 8, 2),
        ("ended", 12, 3),
    ]
    assert (first["went_on_from"], second["went_on_from"]) == (None, "step-000000008")
    assert (end["outcome"], last["outcome"]) == ("finished", "finished")
    assert first["hyper_parameters"] == {"hidden": 8, "lr": 0.1}
    assert first["environment"]["module"] == "Classifier" and first["environment"]["cores"] >= 1
    assert {"max_epochs": 3, "accumulate_grad_batches": {"0": 1}}.items() <= second["trainer"].items()
    assert "log_every_n_steps" not in first["trainer"], "what is a default is not asked for"
    assert any("EarlyStopping" in key for key in first["trainer"]["callbacks"])


def test_an_error_stands_there(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise ValueError("mine")

    trainer = trainer_in(tmp_path, callbacks=[Fails()])
    with pytest.raises(ValueError, match="mine"):
        trainer.fit(Classifier(), make_batches(4))
    assert journal_of(trainer.run_dir)[-1]["outcome"] == "failed: ValueError: mine"


def test_marks_grow_apart_as_a_fit_grows_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, progress = [0.0], Progress()
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    book = Journal(progress, print)
    book.begin(tmp_path, None)
    while now[0] < 7 * 24 * 3600:
        now[0] += 0.7
        progress.end_step(schedulers_are_due=False)
        book.mark()
    steps = [line["step"] for line in journal_of(tmp_path) if line["event"] == "at"]
    assert steps[:3] == [2, 4, 6]
    assert 3000 < len(steps) < 5000
    assert steps[-1] > 0.99 * progress.global_step


def test_without_a_directory_nothing_is_written(tmp_path: Path) -> None:
    trainer_in(tmp_path, enable_checkpointing=False).fit(Classifier(), make_batches(4))
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_a_torn_line_stays_a_line_of_its_own_and_anything_can_be_a_hyper_parameter(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"time": "2026-')
    odd = {("a", 1): Path("x"), "name": "</script>\ud800", "rate": float("nan")}
    Journal(Progress(), print).begin(tmp_path, None, hyper_parameters=odd)
    torn, line = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert torn == '{"time": "2026-'
    assert json.loads(line)["hyper_parameters"]["('a', 1)"] == "x"


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    told: list[str] = []
    book = Journal(Progress(), told.append)
    book.begin(tmp_path, None)
    book.end("finished")
    assert told == [f"WARNING: {tmp_path / 'journal.jsonl'} cannot be written (Is a directory); training goes on"]
