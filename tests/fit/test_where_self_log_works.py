"""self.log of a callback, and in the hooks before the first epoch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import Callback, CSVLogger
from paddlelite_trainer.errors import ConfigurationError, NoTrainerError


class Counts(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("seen", float(batch_idx), on_epoch=True)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log_dict({"one": 1.0, "two": 2.0}, prog_bar=True)

    on_test_batch_end = on_validation_batch_end


def test_a_callback_logs_as_its_module_does() -> None:
    counts = Counts()
    trainer = quiet_trainer(callbacks=[counts])
    trainer.fit(Classifier(), make_batches(3), make_batches(1))
    assert {name: trainer.callback_metrics[name] for name in ("seen", "seen_step", "one", "two")} == {
        "seen": 1.0,
        "seen_step": 2.0,
        "one": 1.0,
        "two": 2.0,
    }
    (values,) = trainer.test(Classifier(), make_batches(1))
    assert values["two"] == 2.0


def test_a_callback_logs_with_the_module_that_runs_and_with_none_afterwards() -> None:
    class Evaluates(Counts):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            (inner,) = trainer.test(Classifier(), make_batches(1), verbose=False)
            assert inner["two"] == 2.0
            self.log("after", 4.0)

    counts = Evaluates()
    trainer = quiet_trainer(callbacks=[counts])
    trainer.fit(Classifier(), make_batches(2))
    assert trainer.callback_metrics["after"] == 4.0
    with pytest.raises(NoTrainerError, match=r"Evaluates logs while it takes part in no run"):
        counts.log("late", 1.0)
    assert vars(copy.deepcopy(counts)) == vars(counts)


def test_a_callback_s_own_log_is_its_own() -> None:
    class Own(Callback):
        def __init__(self) -> None:
            self.log: list[int] = []  # type: ignore[assignment]

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.log.append(batch_idx)

    own = Own()
    quiet_trainer(callbacks=[own]).fit(Classifier(), make_batches(3))
    assert own.log == [0, 1, 2]


# -- before the first epoch --------------------------------------------------------------------------------------------
class AtStart(Classifier):
    def on_train_start(self) -> None:
        self.log("parameters", 67.0, prog_bar=True)


def rows(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_what_is_logged_in_on_train_start_is_published_and_logged_at_once(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            seen.append((trainer.callback_metrics["parameters"], trainer.progress_bar_metrics["parameters"]))

    trainer = quiet_trainer(callbacks=[Looks()], logger=CSVLogger(), default_root_dir=tmp_path)
    trainer.fit(AtStart(), make_batches(2), make_batches(1))
    assert seen == [(67.0, 67.0)]
    assert trainer.callback_metrics["parameters"] == 67.0
    assert rows(tmp_path / "version_0" / "metrics.csv")[1].startswith("0,67")


def test_a_resumed_run_does_not_log_its_start_again(tmp_path: Path) -> None:
    def fit(root: str, max_epochs: int) -> Any:
        as_if_started_again()
        trainer = quiet_trainer(
            logger=CSVLogger(), enable_checkpointing=True, default_root_dir=tmp_path / root, max_epochs=max_epochs
        )
        trainer.fit(AtStart(), make_batches(2), make_batches(1), ckpt_path="last")
        return trainer

    fit("resumed", 1)
    resumed, whole = fit("resumed", 2), fit("whole", 2)
    assert rows(resumed.run_dir / "metrics.csv") == rows(whole.run_dir / "metrics.csv")
    assert dict(resumed.callback_metrics) == dict(whole.callback_metrics)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
def test_before_that_an_error_says_where_logging_begins(hook: str) -> None:
    module = type("Early", (Classifier,), {hook: lambda self, *stage: self.log("early", 1.0)})()
    with pytest.raises(ConfigurationError, match=r"self\.log\('early', \.\.\.\).*from on_train_start on"):
        quiet_trainer().fit(module, make_batches(1))
