"""The trainings that must go on exactly: one small network, and every part of a run that could be forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.io import BatchSampler, DataLoader, Dataset, DistributedBatchSampler, IterableDataset, WeightedRandomSampler
from paddle.optimizer import lr

from paddlelite_trainer import Callback, Module
from paddlelite_trainer.callbacks import EarlyStopping, ExponentialMovingAverage, LRMonitor

SAMPLES, BATCH = 58, 4  # 15 batches an epoch, the last one smaller
CLASSES = 3


@dataclass
class Setup:
    module: Module
    train: Any
    val: Any = None
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)


# -- data --------------------------------------------------------------------------------------------------------------
class Points(Dataset):  # type: ignore[misc]
    """Samples with their ids, augmented by all three random generators."""

    def __init__(self, count: int = SAMPLES, augment: bool = True) -> None:
        generator = np.random.default_rng(5)
        self.x = generator.normal(size=(count, 6)).astype("float32")
        self.y = (np.abs(self.x.sum(1)).astype("int64")) % CLASSES
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return *self.sample(index), np.int64(index)

    def sample(self, index: int) -> Any:
        x = self.x[index]
        if self.augment:
            x = x + np.float32(0.1 * random.random())
            x = x + np.random.normal(0, 0.1, size=6).astype("float32")
            x = x + 0.1 * paddle.rand([6]).numpy()
        return x, self.y[index]


def collate(samples: list[Any]) -> Any:
    order = np.random.permutation(len(samples))
    shift = np.float32(random.gauss(0, 0.1)) + 0.1 * paddle.rand([1]).numpy()
    x = np.stack([samples[index][0] for index in order]) + shift
    return x, np.stack([samples[index][1] for index in order]), np.stack([samples[index][2] for index in order])


def loader(**options: Any) -> DataLoader:
    settings: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "collate_fn": collate}
    if "batch_sampler" in options:
        del settings["batch_size"], settings["shuffle"]
    settings.update(options)
    return DataLoader(Points(), **settings)


def val_loader() -> DataLoader:
    return DataLoader(Points(10), batch_size=4, collate_fn=collate)


class Stream(IterableDataset):  # type: ignore[misc]
    def __init__(self, count: int = SAMPLES) -> None:
        super().__init__()
        self.points = Points(count)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.points)):
            yield self.points[index]


class StreamWithState(IterableDataset):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.points = Points()
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < len(self.points):
            self.position += 1
            yield self.points[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Batches:
    """An iterable that is no DataLoader and has no length."""

    def __init__(self, augment: bool = True) -> None:
        self.augment = augment

    def __iter__(self) -> Iterator[Any]:
        points = Points(40, self.augment)
        if not self.augment:
            random.seed(1)
            np.random.seed(1)
            paddle.seed(1)
        for start in range(0, 40, BATCH):
            yield [paddle.to_tensor(part) for part in collate([points[start + offset] for offset in range(BATCH)])]


class BackAndForth(BatchSampler):  # type: ignore[misc]
    """A sampler of the user's own that draws from NumPy, and turns round every other epoch by its own count."""

    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 15

    def __iter__(self) -> Iterator[list[int]]:
        order = list(np.random.permutation(SAMPLES))
        self.epochs += 1
        if self.epochs % 2:
            order.reverse()
        for start in range(0, SAMPLES, BATCH):
            yield [int(index) for index in order[start : start + BATCH]]


class SeededOnce(BackAndForth):
    """Keeps a generator of its own, and can say where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.RandomState(3)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.generator.permutation(SAMPLES)
        for start in range(0, SAMPLES, BATCH):
            yield [int(index) for index in order[start : start + BATCH]]

    def state_dict(self) -> dict[str, Any]:
        name, words, *rest = self.generator.get_state()
        return {"name": name, "words": words, "rest": rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state((state["name"], state["words"], *state["rest"]))


# -- networks ----------------------------------------------------------------------------------------------------------
class Net(Module):
    """Dropout, batch norm, random numbers of all kinds in the step, metrics of all kinds."""

    def __init__(self, configure: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, CLASSES)
        self.configure = configure or adamw_with_warmup
        self.accuracy = paddle.metric.Accuracy()
        self.moves = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["moves"] = self.moves

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.moves = checkpoint["moves"]

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.moves += 1
        if self.moves == 20:
            self.head.bias.set_value(self.head.bias + 0.01)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))

    def loss(self, batch: Any) -> tuple[Any, Any]:
        x, y, _ids = batch
        noise = 0.01 * (random.random() + float(np.random.normal()))
        logits = self(x + noise + 0.01 * paddle.rand(x.shape))
        return nn.functional.cross_entropy(logits, y), logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, logits = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("median", loss, on_step=False, on_epoch=True, reduce_fx=middle)
        self.accuracy.update(self.accuracy.compute(logits, batch[1].reshape([-1, 1])))
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        if batch_idx % 5 == 3:
            self.log("now_and_then", batch_idx * 1.0, on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, _ = self.loss(batch)
        self.log("val_loss", loss)

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def adamw_with_warmup(net: Module) -> Any:
    cosine = lr.CosineAnnealingDecay(0.02, T_max=40)
    schedule = lr.LinearWarmup(cosine, warmup_steps=7, start_lr=0.0, end_lr=0.02)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=net.parameters(), weight_decay=0.05)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Adversaries(Net):
    """Two optimizers that the step itself moves, each with a schedule."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        for index, optimizer in enumerate((first, second)):
            self.toggle_optimizer(optimizer)
            loss, _ = self.loss(batch)
            self.manual_backward(loss)
            if index == 0 or batch_idx % 2:
                optimizer.step()
            optimizer.clear_grad()
            self.untoggle_optimizer(optimizer)
            self.log(f"loss_{index}", loss, on_step=True, on_epoch=True)
        for scheduler in self.lr_schedulers():
            scheduler.step()


def two_optimizers(net: Any) -> Any:
    one = paddle.optimizer.Adam(lr.StepDecay(0.01, 5), parameters=net.body.parameters())
    two = paddle.optimizer.Momentum(lr.ExponentialDecay(0.05, 0.97), parameters=net.head.parameters())
    return [one, two]


class Tied(Net):
    """An encoder and a decoder that share one weight."""

    def __init__(self) -> None:
        super().__init__(lambda net: paddle.optimizer.Adam(0.01, parameters=net.parameters()))
        self.encoder = nn.Embedding(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Any) -> Any:
        return super().forward(self.decoder(paddle.matmul(x, self.encoder.weight)))


class HalfFrozen(Net):
    """Frozen at first; the layer below thaws in the second epoch, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__(lambda net: paddle.optimizer.Adam(0.01, parameters=net.parameters(), weight_decay=0.01))
        self.body[0].weight.stop_gradient = True
        self.body[0].bias.stop_gradient = True

    def on_train_epoch_start(self) -> None:
        self.body[0].weight.stop_gradient = self.trainer.current_epoch < 1


class Average(Callback):
    """Validates an exponential moving average of the weights."""

    def __init__(self) -> None:
        self.average: dict[str, Any] = {}
        self.raw: dict[str, Any] = {}
        self.seen_step = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.seen_step:
            return
        self.seen_step = trainer.global_step
        for name, parameter in module.named_parameters():
            value = parameter.numpy()
            self.average[name] = value.copy() if name not in self.average else 0.9 * self.average[name] + 0.1 * value

    def _swap(self, module: Any) -> None:
        if self.average and not self.raw:
            for name, parameter in module.named_parameters():
                self.raw[name] = parameter.numpy().copy()
                parameter.set_value(self.average[name].astype(self.raw[name].dtype))

    def _swap_back(self, module: Any) -> None:
        for name, parameter in module.named_parameters():
            if name in self.raw:
                parameter.set_value(self.raw[name])
        self.raw = {}

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._swap(module)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._swap_back(module)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._swap_back(module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "seen_step": self.seen_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.seen_step = dict(state_dict["average"]), state_dict["seen_step"]


class AccumulatesByHand(Adversaries):
    """Steps every fourth batch, so gradients wait while checkpoints are taken."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, _ = self.loss(batch)
        self.manual_backward(loss)
        if batch_idx % 4 == 3:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.clear_grad()
        self.log("loss", loss, on_step=True, on_epoch=True)


def with_callbacks() -> Setup:
    setup = plain(max_epochs=4, limit_train_batches=9)
    setup.callbacks = [
        ExponentialMovingAverage(decay=0.9, warmup=True),
        EarlyStopping("val_loss", patience=2),
        LRMonitor(),
    ]
    return setup


# -- variants ----------------------------------------------------------------------------------------------------------
CLIP = {"gradient_clip_val": 0.5}


def plain(
    configure: Callable[[Any], Any] | None = None,
    *,
    net: Callable[[], Module] | None = None,
    train: Callable[[], Any] = loader,
    **trainer: Any,
) -> Setup:
    module = net() if net is not None else Net(configure)
    return Setup(module, train(), val_loader(), {"max_epochs": 2, **CLIP, **trainer}, [Average()])


def _schedule(make: Callable[[], Any], **config: Any) -> Callable[[], Setup]:
    def configure(net: Any) -> Any:
        schedule = make()
        optimizer = paddle.optimizer.AdamW(schedule, parameters=net.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", **config}}

    return partial(plain, configure)


def _optimizer(make: Callable[[Any], Any]) -> Callable[[], Setup]:
    return partial(plain, lambda net: make(net.parameters()))


def _groups(net: Any) -> Any:
    schedule = lr.CosineAnnealingDecay(0.01, T_max=30)
    groups = [
        {"params": net.body.parameters(), "learning_rate": 0.1, "weight_decay": 0.0},
        {"params": net.head.parameters(), "weight_decay": 0.1},
    ]
    return paddle.optimizer.AdamW(schedule, parameters=groups)


def _float_rate_that_a_hook_lowers(net: Any) -> Any:
    return paddle.optimizer.Momentum(0.05, parameters=net.parameters())


class LowersItsRate(Net):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.trainer.optimizers[0]
        optimizer.set_lr(optimizer.get_lr() * 0.97)


class HandsOut(Net):
    def train_dataloader(self) -> Any:
        return loader(batch_size=4 + self.trainer.current_epoch)


VARIANTS: dict[str, Callable[[], Setup]] = {
    "plain": plain,
    "accumulate 4": partial(plain, accumulate_grad_batches=4, max_epochs=8),
    "accumulate by epoch": partial(plain, accumulate_grad_batches={0: 1, 1: 3, 2: 2}, max_epochs=4),
    "workers 2": partial(plain, train=lambda: loader(num_workers=2)),
    "workers 2 persistent": partial(plain, train=lambda: loader(num_workers=2, persistent_workers=True)),
    "workers 2 spawned": partial(
        plain,
        train=lambda: loader(num_workers=2, persistent_workers=True),
        multiprocessing_context="spawn",
    ),
    "two optimizers": partial(plain, net=lambda: Adversaries(two_optimizers), gradient_clip_val=None),
    "val_check_interval 4": partial(plain, val_check_interval=4),
    "val_check_interval 0.5": partial(plain, val_check_interval=0.5),
    "validation every 7 batches": partial(plain, val_check_interval=7, check_val_every_n_epoch=None),
    "validation in the middle of windows": partial(
        plain, val_check_interval=3, accumulate_grad_batches=2, max_epochs=4
    ),
    "check_val_every_n_epoch 2": partial(plain, check_val_every_n_epoch=2, max_epochs=4),
    "max_steps": partial(plain, max_epochs=-1, max_steps=37),
    "limit_train_batches": partial(plain, limit_train_batches=0.5, max_epochs=5),
    "overfit_batches": partial(plain, overfit_batches=6, max_epochs=5),
    "no validation": lambda: Setup(Net(), loader(), None, {"max_epochs": 2}),
    "64-true": partial(plain, precision="64-true"),
    "iterable, own state": partial(
        plain, train=lambda: DataLoader(StreamWithState(), batch_size=BATCH, collate_fn=collate)
    ),
    "iterable, read again": partial(plain, train=lambda: DataLoader(Stream(), batch_size=BATCH, collate_fn=collate)),
    "iterable, workers 2": partial(
        plain, train=lambda: DataLoader(Stream(30), batch_size=BATCH, collate_fn=collate, num_workers=2)
    ),
    "iterable, workers 2 spawned": partial(
        plain,
        train=lambda: DataLoader(
            Stream(30), batch_size=BATCH, collate_fn=collate, num_workers=2, persistent_workers=True
        ),
        multiprocessing_context="spawn",
    ),
    "any iterable": partial(plain, train=Batches, max_epochs=3),
    "list of batches": partial(plain, train=lambda: list(Batches(augment=False)), max_epochs=3),
    "WeightedRandomSampler": partial(
        plain,
        train=lambda: loader(
            batch_sampler=BatchSampler(
                sampler=WeightedRandomSampler(np.arange(1.0, SAMPLES + 1), SAMPLES), batch_size=BATCH
            )
        ),
    ),
    "DistributedBatchSampler": partial(
        plain,
        train=lambda: loader(
            batch_sampler=DistributedBatchSampler(Points(), BATCH, num_replicas=1, rank=0, shuffle=True)
        ),
    ),
    "own batch sampler": partial(plain, train=lambda: loader(batch_sampler=BackAndForth()), max_epochs=3),
    "own batch sampler with state": partial(plain, train=lambda: loader(batch_sampler=SeededOnce()), max_epochs=3),
    "reload_dataloaders_every_n_epochs": lambda: Setup(
        HandsOut(), None, None, {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    ),
    "gradients accumulated by hand": partial(
        plain, net=lambda: AccumulatesByHand(two_optimizers), gradient_clip_val=None, max_epochs=5
    ),
    "moving average, early stopping, rates logged": with_callbacks,
    "frozen, then not": partial(plain, net=HalfFrozen, max_epochs=3),
    "tied weights": partial(plain, net=Tied),
    "parameter groups": partial(plain, _groups),
    "learning rate set by a hook": partial(plain, net=lambda: LowersItsRate(_float_rate_that_a_hook_lowers)),
    "LBFGS": partial(
        plain,
        lambda net: paddle.optimizer.LBFGS(0.05, max_iter=3, history_size=4, parameters=net.parameters()),
        gradient_clip_val=None,
    ),
}

# Too long to be gone on with from each of its steps.
LONG: dict[str, Callable[[], Setup]] = {
    "storm": partial(plain, max_epochs=40, accumulate_grad_batches={0: 1, 20: 2}, val_check_interval=9)
}

SCHEDULES: dict[str, Callable[[], Any]] = {
    "NoamDecay": lambda: lr.NoamDecay(d_model=8, warmup_steps=9, learning_rate=0.1),
    "ExponentialDecay": lambda: lr.ExponentialDecay(0.01, 0.95),
    "NaturalExpDecay": lambda: lr.NaturalExpDecay(0.01, 0.05),
    "InverseTimeDecay": lambda: lr.InverseTimeDecay(0.01, 0.1),
    "PolynomialDecay": lambda: lr.PolynomialDecay(0.01, 12, cycle=True),
    "LinearWarmup": lambda: lr.LinearWarmup(lr.StepDecay(0.01, 4), 9, 0.0, 0.01),
    "PiecewiseDecay": lambda: lr.PiecewiseDecay([5, 14, 22], [0.01, 0.005, 0.002, 0.001]),
    "CosineAnnealingDecay": lambda: lr.CosineAnnealingDecay(0.01, 9),
    "MultiStepDecay": lambda: lr.MultiStepDecay(0.01, [4, 13, 21]),
    "StepDecay": lambda: lr.StepDecay(0.01, 6),
    "LambdaDecay": lambda: lr.LambdaDecay(0.01, lambda step: 0.97**step),
    "MultiplicativeDecay": lambda: lr.MultiplicativeDecay(0.01, lambda step: 0.97),
    "OneCycleLR": lambda: lr.OneCycleLR(0.02, 40),
    "CyclicLR": lambda: lr.CyclicLR(0.001, 0.02, 7),
    "CosineAnnealingWarmRestarts": lambda: lr.CosineAnnealingWarmRestarts(0.01, T_0=4, T_mult=2),
    "LinearLR": lambda: lr.LinearLR(0.01, 12),
}
VARIANTS.update({name: _schedule(make) for name, make in SCHEDULES.items() if hasattr(lr, name)})
VARIANTS["ReduceOnPlateau"] = partial(
    _schedule(
        lambda: lr.ReduceOnPlateau(0.05, factor=0.5, patience=1, cooldown=1), interval="epoch", monitor="val_loss"
    ),
    max_epochs=7,
    limit_train_batches=5,
)
VARIANTS["ReduceOnPlateau on every step"] = _schedule(
    lambda: lr.ReduceOnPlateau(0.05, factor=0.7, patience=2), monitor="loss"
)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.05},
    "Momentum": {"learning_rate": 0.05, "use_nesterov": True},
    "Adam": {"learning_rate": 0.01},
    "AdamW": {"learning_rate": 0.01},
    "Adamax": {"learning_rate": 0.01},
    "Adagrad": {"learning_rate": 0.05},
    "Adadelta": {"learning_rate": 0.5},
    "RMSProp": {"learning_rate": 0.005, "centered": True, "momentum": 0.5},
    "Lamb": {"learning_rate": 0.01},
    "NAdam": {"learning_rate": 0.01},
    "RAdam": {"learning_rate": 0.01},
    "ASGD": {"learning_rate": 0.05, "batch_num": 4},
    "Rprop": {"learning_rate": 0.01},
}
VARIANTS.update(
    {
        f"optimizer {name}": _optimizer(
            lambda parameters, name=name, options=options: getattr(paddle.optimizer, name)(
                parameters=parameters, **options
            )
        )
        for name, options in OPTIMIZERS.items()
        if hasattr(paddle.optimizer, name)
    }
)
VARIANTS["Adam with use_multi_tensor"] = _optimizer(
    lambda parameters: paddle.optimizer.Adam(0.01, parameters=parameters, use_multi_tensor=True)
)
