"""What a run says when it is started again, which checkpoint it trusts, and that every hook and sample comes once."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import as_if_started_again
from paddle.io import DataLoader, Dataset
from test_changed_configuration import WITHIN, Counter, adam
from test_changed_configuration import fit as fit_in_this_process
from variants import Net, Points, collate

from paddlelite_trainer import Callback, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.data.source import BatchSource


def fit(*arguments: Any, **settings: Any) -> Trainer:
    as_if_started_again()
    return fit_in_this_process(*arguments, **settings)


# -- finished, stopped, failed -----------------------------------------------------------------------------------------
def test_a_finished_run_says_so_and_goes_on_with_more_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, max_epochs=2)
    capsys.readouterr()
    trainer = fit(tmp_path, max_epochs=2)
    said = capsys.readouterr().out
    assert "Already finished 2/2 epochs: nothing to do. A larger max_epochs goes on." in said
    assert ", finished)" in said
    assert trainer.global_step == 16
    assert fit(tmp_path, max_epochs=3).global_step == 24


class StopsInEpoch(Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.stop("good enough")


def test_a_stopped_run_stays_stopped_unless_told_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, callbacks=(StopsInEpoch(),))
    capsys.readouterr()
    assert fit(tmp_path).current_epoch == 2
    said = capsys.readouterr().out
    assert "stopped: good enough" in said
    assert "Already stopped at epoch 2, step 16: good enough. Nothing to do; override=('stop',) goes on." in said
    assert fit(tmp_path, override="stop").current_epoch == 3


class Fails(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            raise ValueError("no such file")


def test_a_failed_run_says_what_it_failed_of_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such file"):
        fit(tmp_path, callbacks=(Fails(),))
    capsys.readouterr()
    assert fit(tmp_path).current_epoch == 3
    assert "step 5, epoch 0, failed: ValueError: no such file)" in capsys.readouterr().out


def test_max_time_ends_the_run_with_a_checkpoint_and_a_larger_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = [0]
    monkeypatch.setattr("paddlelite_trainer.fit.stopping.time.monotonic", lambda: 60.0 * minutes[0])

    class TakesAMinute(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            minutes[0] += 1

    first = fit(tmp_path, callbacks=(TakesAMinute(),), max_epochs=-1, max_time="00:00:05:30")
    assert first.global_step == 6
    assert "max_time of 0:05:30 is over" in capsys.readouterr().out
    assert fit(tmp_path, max_epochs=-1, max_time="00:00:05:30").global_step == 6
    assert "Already trained for" in capsys.readouterr().out
    assert fit(tmp_path, callbacks=(TakesAMinute(),), max_epochs=-1, max_time="00:00:08:30").global_step == 9


# -- health ------------------------------------------------------------------------------------------------------------
class Poison(Callback):
    """Makes the loss or a weight NaN after some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            self.bias = module.head.bias.numpy().copy()
            module.head.bias.set_value(np.full_like(self.bias, np.nan))
        elif trainer.global_step - 1 in self.steps:
            module.head.bias.set_value(self.bias)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            module.head.bias.set_value(self.bias)


@pytest.mark.parametrize(("steps", "trusted"), [({1}, 11), ({6}, 11), ({11}, 10), ({10, 11}, 9), ({9, 10, 11}, 8)])
def test_a_checkpoint_says_whether_it_is_finite_and_resume_takes_the_newest_that_is(
    steps: set[int], trusted: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ModelCheckpoint(save_top_k=-1, every_n_train_steps=1, save_last=False)
    fit(tmp_path, callbacks=(Poison(steps), keep), **WITHIN)
    manifests = (tmp_path / "version_0" / "checkpoints").glob("step-*/manifest.json")
    healthy = {int(path.parent.name.split("-")[1]): json.loads(path.read_text())["healthy"] for path in manifests}
    assert {step for step, is_healthy in healthy.items() if not is_healthy} == steps
    seen: list[int] = []

    class Look(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            seen.append(trainer.global_step)

    capsys.readouterr()
    fit(tmp_path, callbacks=(Look(),))
    told = f"holds NaN or infinite values; using step-{trusted:09d}, the newest healthy" in capsys.readouterr().out
    assert told == (trusted != 11)
    assert seen == [trusted]


# -- every hook once ---------------------------------------------------------------------------------------------------
class Diary(Callback):
    """Every hook with the batches done, in all processes' order; what was after the checkpoint is struck out."""

    def __init__(self, die_in: str = "", batches: int = -1) -> None:
        self.lines: list[str] = []
        self.die_in, self.batches = die_in, batches
        for hook in (
            "on_train_epoch_start",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_validation_start",
            "on_validation_batch_end",
            "on_validation_end",
            "on_train_epoch_end",
        ):
            setattr(self, hook, self._writer(hook))

    def _writer(self, hook: str) -> Any:
        def write(trainer: Any, module: Any, *arguments: Any) -> None:
            if trainer.sanity_checking:
                return
            self.lines.append(f"{hook} {trainer.progress.total_batches}")
            if hook == self.die_in and trainer.progress.total_batches == self.batches:
                raise SystemExit("killed")

        return write

    def on_sanity_check_end(self, trainer: Any, module: Any) -> None:
        if self.die_in == "on_sanity_check_end":
            raise SystemExit("killed")

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lines = list(state_dict["lines"])


def diary(root: Path, diary: Diary, exception_saves: bool) -> list[str]:
    keep = ModelCheckpoint(every_n_train_steps=1, save_top_k=0, save_on_exception=exception_saves)
    trainer = Trainer(
        callbacks=[diary, keep],
        max_epochs=3,
        seed=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        val_check_interval=4,
    )
    train = DataLoader(Points(32), batch_size=4, collate_fn=collate, shuffle=True)
    trainer.fit(Net(adam), train, DataLoader(Points(8), batch_size=4, collate_fn=collate), ckpt_path="last")
    return diary.lines


@pytest.mark.parametrize("exception_saves", [False, True])
@pytest.mark.parametrize(
    "death",
    [
        ("on_sanity_check_end", 0),
        ("on_validation_batch_end", 12),
        ("on_validation_start", 8),
        ("on_validation_end", 8),
        ("on_train_batch_start", 7),
        ("on_train_batch_end", 7),
        ("on_train_epoch_end", 8),
        ("on_train_epoch_start", 8),
        ("on_train_epoch_end", 24),
    ],
)
def test_no_hook_is_called_twice_or_left_out_whatever_boundary_a_process_dies_at(
    death: tuple[str, int], exception_saves: bool, tmp_path: Path
) -> None:
    expected = diary(tmp_path / "whole", Diary(), exception_saves)
    with pytest.raises(SystemExit, match="killed"):
        diary(tmp_path / "cut", Diary(*death), exception_saves)
    assert diary(tmp_path / "cut", Diary(), exception_saves) == expected


# -- every sample once -------------------------------------------------------------------------------------------------
class Ids(Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return np.int64(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_comes_once_an_epoch_across_a_resume(workers: int, ranks: int) -> None:
    for cut in (0, 1, 4, 7):
        for epoch in (0, 1):
            seen: collections.Counter[int] = collections.Counter()
            for rank in range(ranks):

                def source(rank: int = rank) -> BatchSource:
                    loader = DataLoader(Ids(), batch_size=5, shuffle=True, num_workers=workers)
                    return BatchSource(loader, stage="train", seed=5, rank=rank, world_size=ranks)

                before, count = source(), 0
                for batch in before.epoch(epoch) if cut else ():
                    seen.update(np.asarray(batch[0] if isinstance(batch, list) else batch).ravel().tolist())
                    count += 1
                    if count == min(cut, 12 // ranks):
                        state = before.state_dict()
                        break
                before.close()
                after = source()
                if cut:
                    after.load_state_dict(state)
                for batch in after.epoch(epoch, count):
                    seen.update(np.asarray(batch[0] if isinstance(batch, list) else batch).ravel().tolist())
                after.close()
            assert seen == collections.Counter(range(60)), (cut, epoch)


# -- seeds -------------------------------------------------------------------------------------------------------------
def test_seed_everything_fixes_all_three_generators_and_workers_is_accepted() -> None:
    import random

    def draw() -> tuple[Any, ...]:
        assert seed_everything(9, workers=True) == 9
        return random.random(), np.random.rand(), paddle.rand([2]).numpy().tolist()

    assert draw() == draw()


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> list[Any]:
        seed_everything(1)
        trainer = fit(tmp_path / name, seed=seed, deterministic=True, callbacks=(Counter(),))
        return [weight.numpy().tolist() for weight in trainer.model.state_dict().values()]

    assert weights("a", 3) == weights("b", 3) != weights("c", 4)
