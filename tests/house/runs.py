"""The fixed runs: each a small training that leans on one part of the package, by public names alone."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from networks import (
    AccumulatesByHand,
    Adversaries,
    CountingData,
    GivenScores,
    Net,
    Points,
    Stream,
    adamw,
    held_out,
    loader,
    momentum,
    scheduled,
)
from paddle.optimizer import lr
from room import Boom, Room

from paddlelite_trainer import Callback, InitFrom, Module, Tuner
from paddlelite_trainer.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    ExponentialMovingAverage,
    GradientAccumulationScheduler,
    GradientNormWatch,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteGuard,
    StochasticWeightAveraging,
)

Place = Literal["cpu", "fake_gpu", "two ranks"]
RUNS: dict[str, Callable[[Room], None]] = {}
ELSEWHERE: dict[str, Place] = {}
"""Runs that take a process of their own: on the fake accelerator, or two that know of each other."""


def fixed_run(function: Callable[[Room], None]) -> Callable[[Room], None]:
    RUNS[function.__name__] = function
    return function


def fixed_run_on(place: Place) -> Callable[[Callable[[Room], None]], Callable[[Room], None]]:
    def register(function: Callable[[Room], None]) -> Callable[[Room], None]:
        ELSEWHERE[function.__name__] = place
        return fixed_run(function)

    return register


def every_step(steps: int = 1, **settings: Any) -> ModelCheckpoint:
    """Keeps a checkpoint of every `steps` steps."""
    return ModelCheckpoint(every_n_train_steps=steps, save_top_k=-1, **settings)


# -- the loop ----------------------------------------------------------------------------------------------------------
@fixed_run
def plain(room: Room) -> None:
    room.fit(room.trainer(every_step()), Net(), loader(), held_out())


@fixed_run
def order_of_hooks(room: Room) -> None:
    net = room.traced(Net)(scheduled(lambda: lr.StepDecay(0.02, 2), interval="step"))
    trainer = room.trainer(traced=True, accumulate_grad_batches=2, val_check_interval=3)
    room.fit(trainer, net, loader(), held_out())
    trainer.test(net, held_out(5))
    trainer.predict(net, held_out(5))


@fixed_run
def max_steps_inside_an_epoch(room: Room) -> None:
    room.fit(room.trainer(max_steps=8), Net(), loader(), held_out())
    room.fit(room.trainer(max_steps=15), Net(), loader(), held_out(), ckpt_path="last")


@fixed_run
def fast_dev_run(room: Room) -> None:
    trainer = room.trainer(fast_dev_run=2)
    net = Net()
    room.fit(trainer, net, loader(), held_out())
    room.keep(trainer.test(net, held_out()))


@fixed_run
def limited_batches(room: Room) -> None:
    trainer = room.trainer(limit_train_batches=0.5, limit_val_batches=1, limit_predict_batches=2)
    net = Net()
    room.fit(trainer, net, loader(), held_out())
    room.keep(trainer.predict(net, held_out()))


@fixed_run
def overfit_batches(room: Room) -> None:
    room.fit(room.trainer(overfit_batches=2), Net(), loader(), held_out())


@fixed_run
def epochs_ended_and_stopped_by_hooks(room: Room) -> None:
    class Ends(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> int | None:
            return -1 if trainer.current_epoch == 0 and batch_idx == 4 else None

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 9:
                trainer.save_checkpoint("ninth", weights_only=True)
                trainer.stop("the ninth step is done")

    room.fit(room.trainer(Ends(), every_step(4), max_epochs=5), Net(), loader(), held_out())
    room.fit(room.trainer(every_step(4), max_epochs=3), Net(), loader(), held_out(), ckpt_path="last")
    room.fit(room.trainer(max_epochs=3), Net(), loader(), held_out(), ckpt_path="last", override=("stop",))


@fixed_run
def one_trainer_used_twice(room: Room) -> None:
    class Brings(Net):
        def configure_callbacks(self) -> list[Callback]:
            return [LRMonitor()]

    trainer = room.trainer()
    found = Tuner(trainer).lr_find(Brings(), loader(), num_training=8)
    room.keep(found.suggestion())
    for net in (Brings(), Net(momentum)):
        room.fit(trainer, net, loader(), held_out())
        room.keep(trainer.test(net, held_out()))


# -- accumulation ------------------------------------------------------------------------------------------------------
@fixed_run
def accumulation_with_a_short_last_window(room: Room) -> None:
    # Seven batches: four and three. Two would not do: a mistaken factor of a half is undone without a trace.
    room.fit(room.trainer(every_step(), accumulate_grad_batches=4), Net(momentum), loader(Points(26)), held_out())


@fixed_run
def accumulation_by_schedule(room: Room) -> None:
    trainer = room.trainer(every_step(), accumulate_grad_batches={0: 1, 1: 3, 2: 4}, max_epochs=3)
    room.fit(trainer, Net(momentum), loader(), held_out())
    callback = GradientAccumulationScheduler({0: 2, 1: 5})
    room.fit(room.trainer(callback, every_step()), Net(momentum), loader(), held_out())


@fixed_run
def accumulation_over_unknown_length(room: Room) -> None:
    trainer = room.trainer(every_step(), accumulate_grad_batches=4)
    room.fit(trainer, Net(momentum), loader(Stream(), shuffle=False), held_out())


# -- gradients and optimizers ------------------------------------------------------------------------------------------
@fixed_run
def clipping_by_norm(room: Room) -> None:
    trainer = room.trainer(GradientNormWatch(per_layer=True), gradient_clip_val=0.1, accumulate_grad_batches=2)
    room.fit(trainer, Net(momentum), loader())


@fixed_run
def clipping_by_value(room: Room) -> None:
    trainer = room.trainer(gradient_clip_val=0.01, gradient_clip_algorithm="value")
    room.fit(trainer, Net(momentum), loader())


@fixed_run
def clipping_overridden(room: Room) -> None:
    class Clips(Net):
        def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, algorithm: Any) -> None:
            value = gradient_clip_val * (1 + self.current_epoch)
            self.log("norm_before", self.clip_gradients(optimizer, value, "norm"))

    room.fit(room.trainer(gradient_clip_val=0.05), Clips(momentum), loader())


@fixed_run
def manual_optimization(room: Room) -> None:
    net = room.traced(Adversaries)()
    room.fit(room.trainer(every_step(5), traced=True), net, loader(), held_out())


@fixed_run
def lbfgs(room: Room) -> None:
    def configure(net: Net) -> Any:
        return paddle.optimizer.LBFGS(0.1, max_iter=3, history_size=4, parameters=net.parameters())

    for max_steps in (7, -1):
        trainer = room.trainer(every_step(), max_steps=max_steps, max_epochs=2)
        room.fit(trainer, Net(configure, dropout=0.0), loader(), held_out(), ckpt_path="last")


@fixed_run
def parameters_added_later(room: Room) -> None:
    class Thaws(Net):
        def on_fit_start(self) -> None:
            for parameter in self.backbone[0].parameters():
                parameter.stop_gradient = True

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 3:
                for parameter in self.backbone[0].parameters():
                    parameter.stop_gradient = False
                self.trainer.add_param_group(self.backbone[0].parameters(), learning_rate=0.1)

    for max_steps in (8, -1):
        trainer = room.trainer(every_step(), max_steps=max_steps, max_epochs=2)
        net = Thaws(lambda net: paddle.optimizer.AdamW(0.05, parameters=net.head.parameters()))
        room.fit(trainer, net, loader(), ckpt_path="last")


@fixed_run
def backbone_finetuning(room: Room) -> None:
    for max_epochs in (2, 4):
        callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1, ratio_growth=4.0)
        room.fit(room.trainer(callback, max_epochs=max_epochs), Net(), loader(), held_out(), ckpt_path="last")


# -- schedules ---------------------------------------------------------------------------------------------------------
@fixed_run
def schedule_by_step(room: Room) -> None:
    def make() -> Any:
        return lr.LinearWarmup(lr.CosineAnnealingDecay(0.02, T_max=10), warmup_steps=4, start_lr=0.0, end_lr=0.02)

    trainer = room.trainer(LRMonitor(), every_step(), accumulate_grad_batches=2, max_epochs=3)
    room.fit(trainer, Net(scheduled(make, interval="step")), loader(), held_out())


@fixed_run
def schedule_by_epoch(room: Room) -> None:
    net = Net(scheduled(lambda: lr.ExponentialDecay(0.05, 0.5), interval="epoch", frequency=2))
    room.fit(room.trainer(LRMonitor(logging_interval="epoch"), max_epochs=5), net, loader(), held_out())


@fixed_run
def plateau_by_epoch(room: Room) -> None:
    def make() -> Any:
        return lr.ReduceOnPlateau(0.05, mode="max", factor=0.5, patience=0)

    for max_epochs in (3, 6):
        net = GivenScores(scheduled(make, interval="epoch", monitor="score"))
        trainer = room.trainer(LRMonitor(), max_epochs=max_epochs)
        room.fit(trainer, net, loader(), held_out(), ckpt_path="last")


@fixed_run
def plateau_by_step(room: Room) -> None:
    net = Net(scheduled(lambda: lr.ReduceOnPlateau(0.05, factor=0.7, patience=1), interval="step", monitor="loss"))
    room.fit(room.trainer(LRMonitor(), every_step(3)), net, loader(), held_out())


@fixed_run
def plateau_within_an_epoch(room: Room) -> None:
    def make() -> Any:
        return lr.ReduceOnPlateau(0.05, factor=0.7, patience=0)

    net = Net(scheduled(make, interval="step", monitor="val_loss", strict=False))
    room.fit(room.trainer(LRMonitor(), every_step(3), val_check_interval=2), net, loader(), held_out())


@fixed_run
def learning_rate_overridden(room: Room) -> None:
    for rate, options in ((0.05, {}), (0.01, {"override": ("learning_rate",)})):
        net = Net(lambda net, rate=rate: paddle.optimizer.Adam(rate, parameters=net.parameters()))
        trainer = room.trainer(max_epochs=2 if options else 1)
        room.fit(trainer, net, loader(), ckpt_path="last", **options)


# -- validation --------------------------------------------------------------------------------------------------------
@fixed_run
def validation_every_n_batches(room: Room) -> None:
    keeps = ModelCheckpoint(monitor="val_loss", save_top_k=-1)
    room.fit(room.trainer(keeps, val_check_interval=4, accumulate_grad_batches=3), Net(), loader(), held_out())


@fixed_run
def validation_across_epochs(room: Room) -> None:
    trainer = room.trainer(val_check_interval=5, check_val_every_n_epoch=None, max_epochs=3)
    room.fit(trainer, Net(), loader(), held_out())


@fixed_run
def validation_in_some_epochs(room: Room) -> None:
    trainer = room.trainer(check_val_every_n_epoch=2, max_epochs=4)
    room.fit(trainer, Net(), loader(), held_out())


@fixed_run
def two_validation_loaders(room: Room) -> None:
    trainer = room.trainer(every_step(3), val_check_interval=0.5)
    net = Net()
    room.fit(trainer, net, loader(), [held_out(), held_out(5, seed=8)])
    room.keep(trainer.validate(net, [held_out(5, seed=8), held_out()]))
    room.keep(trainer.predict(net, [held_out(5, seed=8), held_out()]))


@fixed_run
def paddle_metrics(room: Room) -> None:
    class Measured(Net):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy, self.val_accuracy = paddle.metric.Accuracy(), paddle.metric.Accuracy()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self._update(self.accuracy, batch)
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self._update(self.val_accuracy, batch)
            self.log("val_accuracy", self.val_accuracy)

        def _update(self, metric: Any, batch: Any) -> None:
            metric.update(metric.compute(self(batch[0]), batch[1].reshape([-1, 1])))

    for max_steps in (8, -1):
        trainer = room.trainer(every_step(2), max_steps=max_steps, max_epochs=2, val_check_interval=3)
        room.fit(trainer, Measured(), loader(), held_out(), ckpt_path="last")


@fixed_run
def evaluation_of_the_best(room: Room) -> None:
    trainer = room.trainer(ModelCheckpoint(monitor="score", mode="max"), max_epochs=4)
    net = GivenScores()
    room.fit(trainer, net, loader(), held_out())
    room.keep(trainer.validate(net, held_out(), ckpt_path="best"))
    room.keep(trainer.test(net, held_out(7), ckpt_path="best"))
    room.keep(trainer.predict(net, held_out(7), ckpt_path="best"), trainer.ckpt_path.name)
    room.keep(Net.load_from_checkpoint(room.root / "runs/version_0/best").state_dict())


# -- interruptions -----------------------------------------------------------------------------------------------------
def interrupted(room: Room, make_net: Callable[[], Module], cut: Callback, **settings: Any) -> None:
    """One fit that `cut` ends and another that goes on from it."""
    for more in ([cut], []):
        trainer = room.trainer(*more, every_step(2, save_on_exception=True), traced=True, **settings)
        ended = room.fit(trainer, make_net(), loader(), held_out(), ckpt_path="last")
        assert (ended == "finished") == (not more), ended


@fixed_run
def sigterm_in_training(room: Room) -> None:
    class Cuts(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 2 and batch_idx == 2:  # in the middle of a window
                os.kill(os.getpid(), signal.SIGTERM)

    interrupted(room, lambda: Net(momentum), Cuts(), accumulate_grad_batches=4, max_epochs=4)


@fixed_run
def sigterm_with_gradients_waiting(room: Room) -> None:
    class Cuts(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1 and batch_idx == 3:  # every third batch steps
                os.kill(os.getpid(), signal.SIGTERM)

    interrupted(room, lambda: AccumulatesByHand(momentum), Cuts())


@fixed_run
def sigint_in_training(room: Room) -> None:
    class Cuts(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1 and batch_idx == 1:
                os.kill(os.getpid(), signal.SIGINT)

    interrupted(room, Net, Cuts())


@fixed_run
def sigterm_in_validation(room: Room) -> None:
    class Cuts(Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
            if trainer.global_step == 9:
                os.kill(os.getpid(), signal.SIGTERM)

    interrupted(room, Net, Cuts(), val_check_interval=3)


@fixed_run
def sigterm_in_validation_at_an_epochs_end(room: Room) -> None:
    class Cuts(Callback):
        def on_validation_batch_start(self, trainer: Any, module: Any, *arguments: Any) -> None:
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    interrupted(room, lambda: Net(scheduled(lambda: lr.ExponentialDecay(0.05, 0.5), interval="epoch")), Cuts())


class Fails(Callback):
    """Raises in the second epoch's fourth batch."""

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        if trainer.current_epoch == 1 and trainer.progress.batches_in_epoch == 3:
            raise Boom("on purpose")


@fixed_run
def exception_in_mid_epoch(room: Room) -> None:
    interrupted(room, Net, Fails())


@fixed_run
def exception_in_a_window(room: Room) -> None:
    interrupted(room, lambda: Net(momentum), Fails(), accumulate_grad_batches=4)


@fixed_run
def exception_that_saves_nothing(room: Room) -> None:
    for cut in ([Fails()], []):
        trainer = room.trainer(*cut, max_epochs=2)
        room.fit(trainer, Net(), loader(), held_out(), ckpt_path="last")


@fixed_run
def finished_run_extended(room: Room) -> None:
    for max_epochs in (2, 2, 4):
        net = Net(scheduled(lambda: lr.StepDecay(0.05, 2), interval="epoch"))
        room.fit(room.trainer(max_epochs=max_epochs, traced=True), net, loader(), held_out(), ckpt_path="last")


# -- where a run starts ------------------------------------------------------------------------------------------------
def foreign_checkpoint(folder: Path, epochs: int) -> Path:
    """As PaddleOCR's save_load.save_model writes it, after a few epochs by hand."""
    folder.mkdir(parents=True)
    net = Net(dropout=0.0)
    optimizer = adamw(net)
    for _ in range(epochs):
        for start in range(0, 24, 4):
            points = Points(24, augment=False)
            batch = [paddle.to_tensor(points.x[start : start + 4]), paddle.to_tensor(points.y[start : start + 4])]
            net.loss(batch).backward()
            optimizer.step()
            optimizer.clear_grad()
    paddle.save(net.state_dict(), str(folder / "latest.pdparams"))
    paddle.save(optimizer.state_dict(), str(folder / "latest.pdopt"))
    states = {"epoch": epochs, "global_step": 6 * epochs, "best_model_dict": {"acc": 0.7, "best_epoch": 1}}
    (folder / "latest.states").write_bytes(pickle.dumps(states, protocol=2))
    return folder / "latest"


@fixed_run
def start_from_weights(room: Room) -> None:
    path = foreign_checkpoint(room.root / "foreign", epochs=1)
    room.fit(room.trainer(), Net(), loader(), held_out(), init_from=path)


@fixed_run
def start_from_training_state(room: Room) -> None:
    path = foreign_checkpoint(room.root / "foreign", epochs=2)
    init = InitFrom(path, training_state=True)
    for max_epochs in (3, 4):
        trainer = room.trainer(max_epochs=max_epochs)
        room.fit(trainer, Net(), loader(), held_out(), ckpt_path="last", init_from=init)


@fixed_run
def start_from_own_checkpoint(room: Room) -> None:
    room.fit(room.trainer(), Net(), loader(), held_out())
    init = InitFrom(room.root / "runs" / "version_0", training_state=True)
    room.fit(room.trainer(max_epochs=3), Net(), loader(), held_out(), init_from=init)


# -- callbacks ---------------------------------------------------------------------------------------------------------
@fixed_run
def moving_average(room: Room) -> None:
    for max_steps in (8, -1):
        average = ExponentialMovingAverage(decay=0.9, warmup=True, start_step=2)
        trainer = room.trainer(average, every_step(2), max_steps=max_steps, max_epochs=2, val_check_interval=3)
        net = Net()
        room.fit(trainer, net, loader(), held_out(), ckpt_path="last")
    room.keep(trainer.test(net, held_out()))


@fixed_run
def stochastic_weight_averaging(room: Room) -> None:
    average = StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2, evaluate_with_average=True)
    room.fit(room.trainer(average, max_epochs=4), Net(), loader(), held_out())


@fixed_run
def early_stopping(room: Room) -> None:
    stopping = EarlyStopping("score", mode="max", patience=2, restore_best_weights=True)
    trainer = room.trainer(stopping, ModelCheckpoint(monitor="score", mode="max"), max_epochs=9)
    room.fit(trainer, GivenScores(), loader(), held_out())
    trainer = room.trainer(EarlyStopping("score", mode="max", patience=2), max_epochs=9)
    room.fit(trainer, GivenScores(), loader(), held_out(), ckpt_path="last")


@fixed_run
def best_checkpoints(room: Room) -> None:
    keeps = [
        ModelCheckpoint(monitor="score", mode="max", save_top_k=2, filename="{epoch:02d}-{score:.2f}"),
        ModelCheckpoint(monitor="val_loss", save_top_k=1),
    ]
    room.fit(room.trainer(*keeps, max_epochs=6), GivenScores(), loader(), held_out())


@fixed_run
def newest_checkpoints(room: Room) -> None:
    keeps = ModelCheckpoint(every_n_train_steps=2, keep_last_n=3, archive_every_n_epochs=2)
    room.fit(room.trainer(keeps, max_epochs=4), Net(), loader(), held_out())


@fixed_run
def checkpoint_before_the_rate_drops(room: Room) -> None:
    for boundaries, interval in (([2, 3], "epoch"), ([4, 9], "step")):
        net = Net(scheduled(partial(lr.PiecewiseDecay, boundaries, [0.05, 0.01, 0.001]), interval=interval))
        keeps = ModelCheckpoint(save_before_lr_drop=True)
        room.fit(room.trainer(keeps, max_epochs=4), net, loader(), held_out())


@fixed_run
def weights_alone_and_in_the_background(room: Room) -> None:
    keeps = [every_step(4), ModelCheckpoint(monitor="val_loss", save_weights_only=True)]
    room.fit(room.trainer(*keeps, async_checkpoint=True), Net(), loader(), held_out())


class Diverges(Net):
    """The loss of the second epoch's third batch is infinite."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if (self.current_epoch, batch_idx) == (1, 2) else loss


@fixed_run
def bad_step_rolled_back(room: Room) -> None:
    room.fit(room.trainer(NonFiniteGuard("roll_back"), every_step(3)), Diverges(), loader(), held_out())


@fixed_run
def bad_step_skipped(room: Room) -> None:
    trainer = room.trainer(NonFiniteGuard("skip"), every_step(3), accumulate_grad_batches=2)
    room.fit(trainer, Diverges(), loader(), held_out())


# -- data --------------------------------------------------------------------------------------------------------------
@fixed_run
def data_module_with_state(room: Room) -> None:
    for max_steps in (8, -1):
        trainer = room.trainer(every_step(2), max_steps=max_steps, max_epochs=2)
        room.fit(trainer, Net(), datamodule=CountingData(), ckpt_path="last")


@fixed_run
def reloaded_loaders(room: Room) -> None:
    class Grows(Net):
        def train_dataloader(self) -> Any:
            return loader(batch_size=4 + self.current_epoch)

        def val_dataloader(self) -> Any:
            return held_out(5 + self.current_epoch)

    for max_epochs in (2, 4):
        trainer = room.trainer(reload_dataloaders_every_n_epochs=1, max_epochs=max_epochs)
        room.fit(trainer, Grows(), ckpt_path="last")


@fixed_run
def iterable_dataset(room: Room) -> None:
    for max_steps in (8, -1):
        trainer = room.trainer(every_step(2), max_steps=max_steps, max_epochs=2)
        room.fit(trainer, Net(), loader(Stream(), shuffle=False), held_out(), ckpt_path="last")


@fixed_run
def worker_processes(room: Room) -> None:
    for max_steps in (8, -1):
        trainer = room.trainer(every_step(2), max_steps=max_steps, max_epochs=2)
        room.fit(trainer, Net(), loader(num_workers=2), held_out(), ckpt_path="last")


@fixed_run
def batches_changed_on_their_way(room: Room) -> None:
    class Mixes(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + float(np.random.normal()), batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * (1 + 0.1 * paddle.rand([1])), batch[1]]

    for max_steps in (8, -1):
        trainer = room.trainer(every_step(2), max_steps=max_steps, max_epochs=2)
        room.fit(trainer, Mixes(), loader(), held_out(), ckpt_path="last")


# -- elsewhere ---------------------------------------------------------------------------------------------------------
@fixed_run_on("two ranks")
def two_ranks(room: Room) -> None:
    net = Net(scheduled(lambda: lr.CosineAnnealingDecay(0.02, T_max=10), interval="step"))
    room.fit(room.trainer(every_step(), accumulate_grad_batches=2), net, loader(), held_out())


MIXED = {
    "precision": "16-mixed",
    "precision_options": {"scaler_options": {"init_loss_scaling": 256.0, "incr_every_n_steps": 2}},
}


@fixed_run_on("fake_gpu")
def mixed_precision(room: Room) -> None:
    trainer = room.trainer(
        every_step(), accumulate_grad_batches=4, gradient_clip_val=0.5, prefetch_to_device=True, **MIXED
    )
    room.fit(trainer, Diverges(), loader(), held_out())


@fixed_run_on("fake_gpu")
def mixed_precision_by_hand(room: Room) -> None:
    room.fit(room.trainer(every_step(), **MIXED), AccumulatesByHand(), loader(), held_out())
