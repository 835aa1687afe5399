"""Trainer.fit in every precision on the fake accelerator, against AMP loops written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest
from amp_loops import HALF, SCALER_OPTIONS, Run, bits, by_hand, start
from paddle.nn import functional as F

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import CheckpointMismatchError, DeviceOutOfMemoryError
from paddlelite_trainer.gradients import clip_gradients_by_norm
from paddlelite_trainer.machine.precision import PRECISIONS

# 2.6 cannot save the CPU generator, so there the trainer seeds each batch, which a hand-written loop does not.
DROPOUT = 0.2 if paddle.__version__.startswith("3") else 0.0
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 4},
    "clipping by the trainer": {"clip": 0.5, "clip_by": "norm"},
    "clipping by the optimizer": {"clip": 0.5},
    "inf": {"inf_at": 2},
    "all together": {"accumulate": 2, "clip": 0.5, "clip_by": "norm", "inf_at": 1},
}


class Learner(Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.network, self.optimizer = start(run)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, labels, factor = batch
        self.loss = F.cross_entropy(self.network(images), labels) * factor
        return self.loss

    def configure_optimizers(self) -> Any:
        return self.optimizer


class ByHandLearner(Learner):
    """The same training by manual optimization."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / self.run.accumulate)
        if (batch_idx + 1) % self.run.accumulate == 0:
            if self.run.clip_by == "norm":
                self.clip_gradients(optimizer, self.run.clip, "norm")
            optimizer.step()
            optimizer.clear_grad()


class Watch(Callback):
    """What hand-written loops record after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bytes]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % module.run.accumulate == 0:
            self.seen.append(bits(module.network, module.optimizer, trainer.precision.scaler, module.loss))


def batches(run: Run) -> list[Any]:
    return [
        (images, labels, factor * run.accumulate)
        for window in range(run.windows)
        for images, labels, factor in run.batches(window)
    ]


def trainer_for(run: Run, root: Path, **settings: Any) -> Trainer:
    clips = {"gradient_clip_val": run.clip if run.clip_by == "norm" else None}
    options = {"precision_options": {"scaler_options": SCALER_OPTIONS}} if HALF.get(run.precision) == "float16" else {}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 1, "enable_checkpointing": False, "accumulate_grad_batches": run.accumulate}
    return Trainer(
        precision=run.precision, default_root_dir=root, **{**quiet, **defaults, **clips, **options, **settings}
    )


@pytest.fixture
def allowed(request: pytest.FixtureRequest) -> None:
    """bfloat16, for tests that are parametrized with a precision that needs it."""
    if request.node.callspec.params["precision"].startswith("bf16"):
        request.getfixturevalue("bfloat16")


def same(expected: list[dict[str, bytes]], actual: list[dict[str, bytes]], but: tuple[str, ...] = ()) -> None:
    assert len(expected) == len(actual)
    for window, (one, other) in enumerate(zip(expected, actual)):
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name] and name not in but] == [], f"window {window}"


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "AdamW"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_has_the_bits_of_the_hand_written_loop(
    precision: str, variant: str, optimizer: str, allowed: None, tmp_path: Path
) -> None:
    run = Run(precision, optimizer, dropout=DROPOUT, **VARIANTS[variant])
    expected, watch = by_hand(run), Watch()
    learner = Learner(run)
    trainer_for(run, tmp_path, callbacks=[watch]).fit(learner, batches(run))
    same(expected, watch.seen, but=("loss",) if run.accumulate > 1 else ())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_manual_optimization_has_the_bits_of_the_hand_written_loop(
    precision: str, variant: str, allowed: None, tmp_path: Path
) -> None:
    run = Run(precision, dropout=DROPOUT, **VARIANTS[variant])
    expected, watch = by_hand(run), Watch()
    learner = ByHandLearner(run)
    trainer_for(run, tmp_path, callbacks=[watch], accumulate_grad_batches=1, gradient_clip_val=None).fit(
        learner, batches(run)
    )
    same(expected, watch.seen, but=("loss",) if run.accumulate > 1 else ())


class RunningLearner(Learner):
    """Records after each optimizer step; a checkpoint of each step must lead to the same records."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.optimizer._learning_rate = paddle.optimizer.lr.CosineAnnealingDecay(2e-2, T_max=run.windows)


def trained(run: Run, root: Path, ckpt_path: Path | None = None) -> tuple[list[dict[str, bytes]], Trainer]:
    """Two epochs: with a checkpoint of every step, or from one of them on."""
    watch, saves = Watch(), ckpt_path is None
    callbacks = [watch, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)] if saves else [watch]
    settings = {"max_epochs": 2, "seed": 5, "enable_checkpointing": saves, "async_checkpoint": False}
    trainer = trainer_for(run, root, callbacks=callbacks, **settings)
    trainer.fit(RunningLearner(run), batches(run), ckpt_path=ckpt_path)
    return watch.seen, trainer


RESUMED = [
    Run("32-true", windows=4, clip=0.5, clip_by="norm"),
    Run("16-mixed", windows=6, inf_at=3),
    Run("16-mixed", "Momentum", windows=4, accumulate=4, inf_at=1, clip=0.5, clip_by="norm"),
    Run("bf16-mixed", windows=4),
    Run("16-true", windows=6, inf_at=3, clip=0.5, clip_by="norm"),
    Run("16-true", "Momentum", windows=4, accumulate=2, inf_at=2),
    Run("16-true", "SGD", windows=4, inf_at=1),
    Run("bf16-true", windows=4, accumulate=2),
    Run("64-true", windows=4),
]


@pytest.mark.parametrize(("precision", "run"), [(run.precision, run) for run in RESUMED], ids=str)
def test_a_resume_from_every_step_has_the_bits_of_the_uninterrupted_run(
    precision: str, run: Run, allowed: None, tmp_path: Path
) -> None:
    expected, trainer = trained(run, tmp_path)
    steps = 2 * run.windows
    assert len(expected) == steps
    resumed = {}
    for entry in sorted(trainer.run.path.glob("checkpoints/step-*")):
        seen, _ = trained(run, tmp_path, ckpt_path=entry)
        same(expected[steps - len(seen) :], seen)
        resumed[steps - len(seen)] = entry
    assert list(resumed) == list(range(1, steps + 1))


class LoggingLearner(Learner):
    """Logs as it trains, and remembers what its steps saw."""

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        # Not cross_entropy, which itself copies to the host once a call in 2.6.
        loss = (self.network(batch["images"]).astype("float32") ** 2).mean()
        self.log("loss", loss, prog_bar=True)
        self.batch = batch
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        hidden = paddle.flatten(self.network.convolution(batch["images"]), 1)
        self.validated_in = paddle.matmul(hidden, self.network.hidden.weight).dtype
        self.log("val_loss", hidden.astype("float32").mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        hidden = paddle.flatten(self.network.convolution(batch["images"]), 1)
        return paddle.matmul(hidden, self.network.hidden.weight).dtype


class CountCopies(Callback):
    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.counts.append(fake_gpu.device_to_host_copies())


def images(count: int) -> list[dict[str, paddle.Tensor]]:
    return [{"images": paddle.full([8, 1, 8, 8], 0.1 * index)} for index in range(count)]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    ("precision", "copies"), [("32-true", 0), ("bf16-mixed", 0), ("bf16-true", 0), ("16-mixed", 1), ("16-true", 1)]
)
def test_between_logging_steps_nothing_is_copied_to_the_host_but_a_scalers_check(
    precision: str, copies: int, clip: float | None, allowed: None, tmp_path: Path
) -> None:
    counter = CountCopies()
    settings = {"logger": True, "enable_checkpointing": True, "log_every_n_steps": 10, "gradient_clip_val": clip}
    trainer = trainer_for(Run(precision), tmp_path, callbacks=[counter], **settings)
    trainer.fit(LoggingLearner(Run(precision)), images(19))
    between = [after - before for before, after in zip(counter.counts[10:18], counter.counts[11:19])]
    assert between == [copies] * 8


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "16-true", "bf16-mixed", "bf16-true"])
def test_validation_and_prediction_compute_in_the_precision_of_the_training(
    precision: str, allowed: None, tmp_path: Path
) -> None:
    half = {"float16": paddle.float16, "bfloat16": paddle.bfloat16}.get(HALF.get(precision, ""), paddle.float32)
    learner, trainer = LoggingLearner(Run(precision)), trainer_for(Run(precision), tmp_path)
    trainer.fit(learner, images(2), images(1))
    assert learner.validated_in == half
    assert trainer.predict(learner, images(1)) == [half]


def test_a_model_made_on_the_cpu_and_nested_batches_move_to_the_device(tmp_path: Path) -> None:
    paddle.set_device("cpu")
    learner = LoggingLearner(Run("32-true"))
    batches = [{"images": paddle.ones([8, 1, 8, 8]), "more": [(paddle.ones([1]), "text"), {"x": paddle.ones([1])}]}]
    assert batches[0]["images"].place.is_cpu_place()
    trainer_for(Run("32-true"), tmp_path).fit(learner, batches)
    moved = learner.batch
    assert all(p.place.is_custom_place() for p in learner.parameters())
    assert moved["images"].place.is_custom_place() and moved["more"][0][0].place.is_custom_place()
    assert moved["more"][0][1] == "text" and moved["more"][1]["x"].place.is_custom_place()


class Recurrent(Module):
    """Paddle's own `to` raises for these layers' buffers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(paddle.nn, kind)(8, 6, direction="bidirect")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0].unsqueeze(1))[0].square().mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_move_to_the_device_and_learn_there_what_they_do_on_the_cpu(kind: str, tmp_path: Path) -> None:
    data = paddle.io.TensorDataset([np.random.RandomState(5).randn(8, 8).astype("float32")])
    learned = []
    for accelerator in ("cpu", "auto"):
        paddle.set_device("cpu")
        paddle.seed(3)
        module = Recurrent(kind)
        trainer = Trainer(max_steps=3, accelerator=accelerator, default_root_dir=tmp_path, enable_checkpointing=False)
        trainer.fit(module, paddle.io.DataLoader(data, batch_size=4))
        learned.append([value.numpy() for value in module.parameters()])
    assert trainer.device.is_accelerator and all(not one.place.is_cpu_place() for one in module.parameters())
    assert all(np.array_equal(here, there) for here, there in zip(*learned))


def test_running_out_of_memory_names_the_batch_and_what_helps(tmp_path: Path) -> None:
    learner = LoggingLearner(Run("32-true"))
    batches = [*images(2), {"images": paddle.ones([1 << 15, 1, 8, 8])}]
    limit = fake_gpu.memory_used() + (4 << 20)
    with fake_gpu.memory_limit(limit), pytest.raises(DeviceOutOfMemoryError) as caught:
        trainer_for(Run("32-true"), tmp_path).fit(learner, batches)
    message = str(caught.value)
    assert "fake_gpu:0 is out of memory" in message and "batch 2" in message and "[32768, 1, 8, 8]" in message
    assert "smaller batch" in message
    assert isinstance(caught.value.__cause__, OSError)


def test_a_bfloat16_run_on_a_device_without_it_says_so_once_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_for(Run("bf16-mixed"), tmp_path)
    trainer.fit(LoggingLearner(Run("bf16-mixed")), images(4))
    printed = capsys.readouterr().out
    assert printed.count("precision='bf16-mixed' has no effect on fake_gpu:0") == 1
    assert trainer.global_step == 4


@pytest.mark.parametrize(
    ("saved", "now"),
    [("16-mixed", "32-true"), ("32-true", "16-mixed"), ("16-true", "16-mixed"), ("32-true", "16-true")],
)
def test_resuming_in_another_precision_is_one_clear_error(saved: str, now: str, tmp_path: Path) -> None:
    run = Run(saved, windows=2)
    _, trainer = trained(run, tmp_path)
    with pytest.raises(CheckpointMismatchError) as caught:
        trained(dataclasses.replace(run, precision=now), tmp_path, ckpt_path=trainer.run.path)
    assert f"precision: saved {saved}, now {now}" in str(caught.value)


def test_a_precision_can_be_changed_on_purpose(tmp_path: Path) -> None:
    run = Run("16-mixed", windows=2)
    trained(run, tmp_path)
    trainer = trainer_for(dataclasses.replace(run, precision="32-true"), tmp_path, max_epochs=3, seed=5)
    trainer.fit(RunningLearner(run), batches(run), ckpt_path="last", override=("precision",))
    assert trainer.global_step == 6


class WeightsAtTheStart(Callback):
    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self.weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("saved", "now"), [("32-true", "16-true"), ("16-true", "32-true"), ("32-true", "64-true")])
def test_weights_alone_are_taken_over_from_any_precision(saved: str, now: str, tmp_path: Path) -> None:
    run = Run(saved, windows=2)
    _, trainer = trained(run, tmp_path)
    learner = LoggingLearner(dataclasses.replace(run, precision=now))
    start = WeightsAtTheStart()
    other = trainer_for(learner.run, tmp_path / "other", callbacks=[start])

    def differing(weights: dict[str, np.ndarray]) -> list[str]:
        """Names of weights that are not the saved ones in the present type."""
        expected = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
        assert weights.keys() == expected.keys()
        return [
            name for name, value in weights.items() if not np.array_equal(value, expected[name].astype(value.dtype))
        ]

    other.fit(learner, images(1), init_from=trainer.run.path)
    assert differing(start.weights) == []
    assert differing({name: value.numpy() for name, value in learner.state_dict().items()}) != []
    other.validate(learner, images(1), ckpt_path=trainer.run.path)
    assert differing({name: value.numpy() for name, value in learner.state_dict().items()}) == []


class Adversaries(Module):
    """Two optimizers by hand: the first steps twice a batch, clipped, the second once; batch 2 overflows the first."""

    automatic_optimization = False

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.critic, self.critic_optimizer = start(run)
        self.maker, self.maker_optimizer = start(dataclasses.replace(run, optimizer="Momentum"))
        self.seen: list[dict[str, bytes]] = []

    def losses(self, batch: Any, batch_idx: int) -> Any:
        """Each loss when its turn comes, with the optimizer to step."""
        pictures = batch["images"]
        for repeat in range(2):
            factor = float("inf") if batch_idx == 2 and repeat == 0 else 1.0
            loss = self.critic(pictures) - self.critic(self.maker(pictures).mean() * pictures)
            yield loss.astype("float32").mean() * factor, 0
        yield self.critic(self.maker(pictures).mean() * pictures).astype("float32").mean(), 1

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        for loss, index in self.losses(batch, batch_idx):
            self.manual_backward(loss)
            if index == 0:
                self.clip_gradients(optimizers[0], 0.5, "norm")
            optimizers[index].step()
            for optimizer in optimizers:
                optimizer.clear_grad()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        scaler, nothing = self.trainer.precision.scaler, paddle.zeros([1])
        both = (self.critic, self.critic_optimizer), (self.maker, self.maker_optimizer)
        critic, maker = (bits(network, optimizer, scaler, nothing) for network, optimizer in both)
        self.seen.append({**critic, **{f"maker.{name}": value for name, value in maker.items()}})

    def configure_optimizers(self) -> Any:
        return [self.critic_optimizer, self.maker_optimizer]


def adversaries_by_hand(run: Run, data: list[Any]) -> list[dict[str, bytes]]:
    """Each network's final state, trained with a scaler whose scale changes once a batch."""
    learner = Adversaries(run)
    half, level = HALF.get(run.precision), "O2" if run.precision.endswith("true") else "O1"
    both = [learner.critic_optimizer, learner.maker_optimizer]
    if half and level == "O2":
        paddle.amp.decorate([learner.critic, learner.maker], both, level="O2", dtype=half, master_weight=True)
    scale, finite_batches = 256.0, 0
    for batch_idx, batch in enumerate(data):
        overflowed = False
        with paddle.amp.auto_cast(enable=half is not None, level=level, dtype=half or "float16"):
            for loss, index in learner.losses(batch, batch_idx):
                with paddle.amp.auto_cast(enable=False):
                    (loss * scale if half == "float16" else loss).backward()
                    parameters = [p for p in both[index]._parameter_list if p.grad is not None]
                    if half == "float16":
                        with paddle.no_grad():
                            for parameter in parameters:
                                parameter.grad.multiply_(paddle.full([1], 1 / scale, parameter.grad.dtype))
                    finite = all(bool(paddle.isfinite(p.grad.astype("float32")).all()) for p in parameters)
                    if index == 0:
                        clip_gradients_by_norm(parameters, 0.5)
                    if finite or half != "float16":
                        both[index].step()
                    overflowed |= not finite
                    for optimizer in both:
                        optimizer.clear_grad(set_to_zero=False)
        finite_batches = 0 if overflowed else finite_batches + 1
        scale *= 0.5 if overflowed else 2.0 if finite_batches == SCALER_OPTIONS["incr_every_n_steps"] else 1.0
        finite_batches %= SCALER_OPTIONS["incr_every_n_steps"]
        both_networks = (learner.critic, learner.critic_optimizer), (learner.maker, learner.maker_optimizer)
        critic, maker = (bits(network, optimizer, None, paddle.zeros([1])) for network, optimizer in both_networks)
        learner.seen.append({**critic, **{f"maker.{name}": value for name, value in maker.items()}})
    return learner.seen


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "16-true", "bf16-mixed", "bf16-true"])
def test_two_optimizers_that_step_unevenly_have_the_bits_of_the_hand_written_loop(
    precision: str, allowed: None, tmp_path: Path
) -> None:
    run = Run(precision, dropout=0.0)
    expected = adversaries_by_hand(run, images(6))
    learner = Adversaries(run)
    trainer_for(run, tmp_path).fit(learner, images(6))
    actual = [
        {name: value for name, value in seen.items() if not name.endswith(("scale", "counts"))} for seen in learner.seen
    ]
    same(expected, actual)
