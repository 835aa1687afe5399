"""GradientNormWatch and LossSpikeWatch: their numbers, their cost, and what survives a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Net, batches, net, trainer

from paddlelite_trainer import Callback, Logger, Module, Trainer
from paddlelite_trainer.callbacks import GradientNormWatch, LossSpikeWatch
from paddlelite_trainer.errors import ConfigurationError


class Norms(Callback):
    """The norm of the gradients, by NumPy, before they are clipped."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.of_head: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        grads = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
        self.all.append(float(np.sqrt(sum((grad**2).sum() for grad in grads.values()))))
        self.of_head.append(float(np.sqrt(sum((g**2).sum() for name, g in grads.items() if name.startswith("head")))))


class Logged(Logger):
    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: Any, step: int) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, []).append((step, value))


@pytest.mark.parametrize(
    "clip", [{}, {"gradient_clip_val": 0.1}, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}]
)
def test_the_norm_before_clipping_is_logged_on_logging_steps(tmp_path: Path, clip: dict[str, Any]) -> None:
    norms, logged = Norms(), Logged()
    watch = GradientNormWatch(per_layer=True)
    trainer(tmp_path, [watch, norms], logger=[logged], log_every_n_steps=2, **clip).fit(net(), batches())
    assert [step for step, _ in logged.values["grad_norm"]] == [2, 4, 6, 8]
    assert [value for _, value in logged.values["grad_norm"]] == pytest.approx(norms.all[1::2], rel=1e-5)
    assert [value for _, value in logged.values["grad_norm/head"]] == pytest.approx(norms.of_head[1::2], rel=1e-5)


def test_where_the_trainer_clips_by_norm_no_second_pass_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlelite_trainer.callbacks import gradient_watch

    def refuse(gradients: list[Any]) -> Any:
        raise AssertionError("a second pass")

    monkeypatch.setattr(gradient_watch, "norm_of", refuse)
    run = trainer(tmp_path, [GradientNormWatch(every_n_steps=1)], gradient_clip_val=0.1)
    run.fit(net(), batches())
    assert run.callback_metrics["grad_norm"] == float(run.gradient_norm.item())
    with pytest.raises(AssertionError, match="a second pass"):
        trainer(tmp_path, [GradientNormWatch(every_n_steps=1)]).fit(net(), batches())


def test_settings_out_of_range_are_errors() -> None:
    for make in (
        lambda: GradientNormWatch(every_n_steps=0),
        lambda: LossSpikeWatch(window=1),
        lambda: LossSpikeWatch(threshold=0.0),
        lambda: LossSpikeWatch(action="halt"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigurationError, match="must be"):
            make()


class Spiky(Net):
    losses: tuple[float, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        # The value is given, the gradient is nought.
        return self.head.bias.sum() * 0.0 + self.losses[self.trainer.progress.total_batches]


def spiky(*losses: float) -> Net:
    module = net(kind=Spiky)
    module.losses = losses
    return module


CALM = (1.0, 1.1, 0.9, 1.0, 1.1, 0.9)


@pytest.mark.parametrize("check_every", [1, 3, 100])
def test_a_jump_is_found_whenever_losses_are_read(tmp_path: Path, check_every: int) -> None:
    watch = LossSpikeWatch(window=6, check_every_n_batches=check_every)
    run = trainer(tmp_path, [watch], max_epochs=1)
    run.fit(spiky(*CALM, 9.0, 1.0, float("nan"), 1.05), batches(10))
    assert [spike["batch"] for spike in watch.spikes] == [6.0, 8.0]
    assert watch.spikes[0]["loss"] == 9.0
    assert watch.spikes[0]["mean"] == pytest.approx(np.mean(CALM))
    assert watch.spikes[0]["std"] == pytest.approx(np.std(CALM))
    assert run.callback_metrics["loss_spikes"] == 2
    assert run.history[0]["loss_spikes"] == 2


def test_falling_and_noisy_losses_are_no_spikes(tmp_path: Path) -> None:
    watch = LossSpikeWatch(window=10)
    losses = [5.0 * 0.8**step + 0.1 * (step % 2) for step in range(30)]
    trainer(tmp_path, [watch], max_epochs=1).fit(spiky(*losses), batches(30))
    assert watch.spikes == []


def test_stop_ends_the_run_at_the_jump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = LossSpikeWatch(window=6, check_every_n_batches=1, action="stop")
    run = trainer(tmp_path, [watch], max_epochs=1)
    run.fit(spiky(*CALM, 9.0, 1.0, 1.0), batches(9))
    assert run.global_step == 7
    assert "the training loss jumped to 9 at batch 6" in capsys.readouterr().out


def test_all_ranks_judge_the_mean_of_their_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(Callback):
        """A second rank, whose losses are `added` more than this one's; it takes part in judgements alone."""

        def __init__(self, added: float) -> None:
            self.added = added

        def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
            monkeypatch.setattr(trainer.ranks, "gather_object", self.gather)

        def gather(self, value: Any) -> list[Any]:
            if not isinstance(value, list):
                return [value]
            return [value, [loss + self.added for loss in value]]

    def spikes(root: Path, last: float, added: float) -> list[dict[str, float]]:
        watch = LossSpikeWatch(window=6, check_every_n_batches=1, action="stop")
        trainer(root, [watch, Another(added)], max_epochs=1).fit(spiky(*CALM, last), batches(7))
        return watch.spikes

    (spike,) = spikes(tmp_path / "one", last=9.0, added=2.0)
    assert spike["loss"] == 10.0
    assert spike["mean"] == pytest.approx(np.mean(CALM) + 1.0)
    assert [s["loss"] for s in spikes(tmp_path / "two", last=1.0, added=float("nan"))] != []


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7])
def test_a_resumed_watch_finds_what_an_uninterrupted_one_finds(tmp_path: Path, cut: int) -> None:
    def run(root: Path, **settings: Any) -> LossSpikeWatch:
        watch = LossSpikeWatch(window=6, check_every_n_batches=4)
        ckpt_path = settings.pop("ckpt_path", None)
        trainer(root, [watch], max_epochs=1, **settings).fit(
            spiky(*CALM, 9.0, 1.0, 8.0, 1.0), batches(10), ckpt_path=ckpt_path
        )
        return watch

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", max_steps=cut)
    resumed = run(tmp_path / "parts", ckpt_path="last")
    assert resumed.state_dict() == whole.state_dict()
    assert len(whole.spikes) == 2


def test_losses_wait_on_the_device_between_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = LossSpikeWatch._read
    monkeypatch.setattr(LossSpikeWatch, "_read", lambda self: reads.append(len(self._waiting)) or original(self))
    trainer(tmp_path, [LossSpikeWatch(check_every_n_batches=4)], max_epochs=1, enable_checkpointing=False).fit(
        net(), batches(8)
    )
    assert reads[:2] == [4, 4]
