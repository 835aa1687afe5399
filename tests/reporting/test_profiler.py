"""Profilers: where the time went, and no cost or trace of them where none is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.reporting.profiler import SimpleProfiler


class Counts(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


def test_the_simple_profiler_tells_of_every_part_and_changes_no_weight(tmp_path: Path) -> None:
    plain, profiled = Classifier(), Classifier()
    quiet_trainer(max_epochs=2).fit(plain, make_batches(3), make_batches(1))
    trainer = quiet_trainer(
        max_epochs=2, profiler="simple", callbacks=[Counts()], enable_checkpointing=True, default_root_dir=tmp_path
    )
    trainer.fit(profiled, make_batches(3), make_batches(1))
    assert same_weights(weights_of(plain), weights_of(profiled))
    heading, calls = read_table(trainer)
    assert re.match(r"Where the \d+\.\d{3} s of this fit went, steps 0 to 6, ", heading)
    once_a_batch = ("training_step", "backward", "optimizer step", "waiting for data")
    assert [calls[part] for part in once_a_batch] == [6] * 4
    assert [calls[part] for part in ("validation", "waiting for validation data")] == [2, 2]
    assert calls["self.log"] >= 6
    assert calls["logging: writing"] >= 2
    assert calls["checkpoints: writing"] >= 2
    assert calls.get("Counts.on_train_batch_end", calls.get("Counts, its other hooks")) == 6
    assert {"everything else", "all"} <= calls.keys()


def read_table(trainer: Any, number: int = -1) -> tuple[str, dict[str, int]]:
    """The heading of a table in profile.txt, and {part: calls}."""
    heading, _, *rows = (trainer.run_dir / "profile.txt").read_text().rstrip().split("\n\n")[number].splitlines()
    fields = [re.split(r"  +", row) for row in rows]
    return heading, {name: int(numbers[2]) if len(numbers) == 4 else 0 for name, *numbers in fields}


def test_a_resumed_run_s_table_comes_behind_the_first_one_and_tells_of_its_own_steps(tmp_path: Path) -> None:
    for epochs in (1, 3):
        trainer = quiet_trainer(
            max_epochs=epochs, profiler="simple", enable_checkpointing=True, default_root_dir=tmp_path
        )
        trainer.fit(Classifier(), make_batches(3), ckpt_path="last")
    first, second = read_table(trainer, 0), read_table(trainer, 1)
    assert ("steps 0 to 3," in first[0], "steps 3 to 9," in second[0]) == (True, True)
    assert (first[1]["training_step"], second[1]["training_step"]) == (3, 6)


def test_an_error_leaves_a_table_of_what_came_before_it(tmp_path: Path) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise OSError("stop here")
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(profiler="simple", enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(OSError, match="stop here"):
        trainer.fit(Fails(), make_batches(4))
    heading, calls = read_table(trainer)
    assert "steps 0 to 2," in heading
    assert (calls["training_step"], calls["optimizer step"]) == (3, 2)


def test_waiting_for_data_is_seen_with_loaders_made_anew_too(tmp_path: Path) -> None:
    class Loads(Classifier):
        def train_dataloader(self) -> Any:
            return make_batches(2)

    trainer = quiet_trainer(
        max_epochs=3, profiler="simple", reload_dataloaders_every_n_epochs=1, default_root_dir=tmp_path, logger=None
    )
    trainer.fit(Loads())
    assert read_table(trainer)[1]["waiting for data"] == 6


def test_parts_add_up_to_the_whole_since_inner_ones_are_not_counted_twice() -> None:
    profiler = SimpleProfiler()
    inner = profiler.timed("inner", lambda: sum(range(20_000)))
    outer = profiler.timed("outer", lambda: [inner() for _ in range(3)])
    outer()
    assert profiler.calls == {"inner": 3, "outer": 1}
    assert profiler.seconds["outer"] < profiler.seconds["inner"]


def test_nothing_of_the_profiler_stays_on_the_trainer_after_a_fit() -> None:
    trainer = quiet_trainer(profiler="simple")
    trainer.fit(Classifier(), make_batches(2))
    left = {name for name in vars(trainer) if callable(getattr(Trainer, name, None))}
    assert not left
    trainer.fit(Classifier(), make_batches(2))
    assert trainer.profiler.calls["backward"] == 2  # type: ignore[union-attr]


@pytest.mark.skipif(
    paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() == 0,
    reason="paddle.profiler of a CUDA build crashes the process where there is no GPU",
)
@pytest.mark.filterwarnings("ignore")
def test_the_paddle_profiler_leaves_a_trace_in_the_run_directory(tmp_path: Path) -> None:
    trainer = quiet_trainer(profiler="paddle", enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(25))
    traces = list((tmp_path / "version_0/paddle_profile").glob("*.json"))
    assert len(traces) == 1
    assert json.loads(traces[0].read_text())["traceEvents"]
