"""Profilers: where the time went, and no cost or trace of them where none is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback
from paddlelite_trainer.profiler import SimpleProfiler


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
    table = (trainer.run_dir / "profile.txt").read_text()  # type: ignore[operator]
    calls = {
        line.rsplit(None, 4)[0].strip(): line.split()[-2] for line in table.splitlines()[1:-1] if line[-1].isdigit()
    }
    assert calls["training_step"] == calls["backward"] == calls["optimizer step"] == "6"
    assert calls["Counts.on_train_batch_end"] == "6"
    assert calls["validation"] == "2"
    assert int(calls["save points: writing"]) >= 2
    assert {"waiting for data", "the loop itself"} <= {line.split("  ")[0] for line in table.splitlines()}


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
    assert not {"_backward", "_step_optimizer", "log_metrics", "_save_point"} & vars(trainer).keys()
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
