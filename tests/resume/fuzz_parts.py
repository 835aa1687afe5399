"""What a fuzzed configuration is made of: kinds of data, optimizers, schedules, and the module that learns by them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle.io import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedBatchSampler,
    IterableDataset,
    Subset,
    WeightedRandomSampler,
)
from paddle.optimizer import lr

from paddlelite_trainer import CombinedLoader, DataModule, Module

nn, F = paddle.nn, paddle.nn.functional
SAMPLES, BATCH = 22, 4  # six batches an epoch, the last one smaller


# -- data --------------------------------------------------------------------------------------------------------------
class Points(Dataset):  # type: ignore[misc]
    """Samples augmented by random numbers, and shifted by the epoch where it is told."""

    at_sample: Callable[[], None] = staticmethod(lambda: None)
    """Called for each sample: a place to die."""

    def __init__(self) -> None:
        numbers = np.random.RandomState(1)
        self.x = numbers.randn(SAMPLES, 4).astype("float32")
        self.y = numbers.randint(0, 3, SAMPLES)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        noise = np.random.rand() + random.random()
        Points.at_sample()
        return self.x[index] + np.float32(0.1 * noise + self.epoch), self.y[index]


class Batches(Dataset):  # type: ignore[misc]
    """Each sample is a whole batch."""

    def __init__(self) -> None:
        self.points = Points()

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        rows = [self.points[4 * index + row] for row in range(4)]
        return np.stack([x for x, _ in rows]), np.array([y for _, y in rows])


class Flow(IterableDataset):  # type: ignore[misc]
    def __init__(self) -> None:
        self.points = Points()

    def __iter__(self) -> Iterator[Any]:
        for index in np.random.permutation(SAMPLES):
            yield self.points[int(index)]


class ToldFlow(Flow):
    """Knows the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.points.epoch = epoch


class Counting(IterableDataset):  # type: ignore[misc]
    """A stream with a state of its own."""

    def __init__(self) -> None:
        self.points, self.position = Points(), 0
        self.left = SAMPLES

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            self.position += 7
            self.left -= 1
            yield self.points[self.position % SAMPLES]
        self.left = SAMPLES

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "left": self.left}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.left = state["position"], state["left"]


class WithMemory(BatchSampler):  # type: ignore[misc]
    """Draws from what it drew the epoch before."""

    def __init__(self, has_length: bool = True) -> None:
        self.order, self.has_length = list(range(SAMPLES)), has_length

    def __iter__(self) -> Iterator[list[int]]:
        self.order = self.order[3:] + self.order[:3]
        np.random.shuffle(self.order)
        for start in range(0, SAMPLES, BATCH):
            yield list(self.order[start : start + BATCH])

    def __len__(self) -> int:
        if not self.has_length:
            raise TypeError("no length")
        return -(-SAMPLES // BATCH)


class WithState(WithMemory):
    """The same, which can be told where it was."""

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])


class Iterable:
    """Batches from an iterable of the user's own."""

    def __init__(self, arrays: bool = False) -> None:
        self.points, self.arrays = Points(), arrays

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, SAMPLES, BATCH):
            rows = [self.points[index] for index in range(start, min(start + BATCH, SAMPLES))]
            batch = [np.stack([x for x, _ in rows]), np.array([y for _, y in rows])]
            yield batch if self.arrays else [paddle.to_tensor(part) for part in batch]


class ToldIterable(Iterable):
    """Knows the epoch and its length."""

    def set_epoch(self, epoch: int) -> None:
        self.points.epoch = epoch

    def __len__(self) -> int:
        return -(-SAMPLES // BATCH)


class IterableWithState(Iterable):
    """Goes on from its state, within an epoch and over epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.position = self.given = 0

    def __iter__(self) -> Iterator[Any]:
        while self.given < 6:
            self.given += 1
            self.position += 5
            rows = [self.points[(self.position + row) % SAMPLES] for row in range(BATCH)]
            yield [paddle.to_tensor(np.stack([x for x, _ in rows])), paddle.to_tensor(np.array([y for _, y in rows]))]
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.given = state["position"], state["given"]


class Curriculum(DataModule):
    """Builds each epoch's loader by the epoch, and from a state that it is given back before."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs_seen = 0

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch
        self.epochs_seen = max(self.epochs_seen, epoch)  # a resume calls this for the epoch 0 first
        points = Points()
        points.x = points.x * np.float32(1 + 0.1 * (epoch + self.epochs_seen))
        return DataLoader(points, batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Points(), batch_size=BATCH)

    def state_dict(self) -> dict[str, int]:
        return {"epochs_seen": self.epochs_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs_seen = state["epochs_seen"]


def shuffled(workers: int = 0, **options: Any) -> Any:
    return DataLoader(Points(), batch_size=BATCH, shuffle=True, num_workers=workers, **options)


def weighted() -> Any:
    return WeightedRandomSampler(list(range(1, SAMPLES + 1)), 18)


DATA: dict[str, Callable[[int], Any]] = {
    "shuffled": shuffled,
    "in order": lambda workers: DataLoader(Points(), batch_size=BATCH, num_workers=workers),
    "drop last": lambda workers: shuffled(workers, drop_last=True),
    "a list": lambda _: list(Iterable()),
    "a list of arrays": lambda _: list(Iterable(arrays=True)),
    "an iterable": lambda _: Iterable(),
    "an iterable of arrays": lambda _: Iterable(arrays=True),
    "an iterable that knows the epoch": lambda _: ToldIterable(),
    "an iterable with a state": lambda _: IterableWithState(),
    "an iterable dataset": lambda _: DataLoader(Flow(), batch_size=BATCH),
    "an iterable dataset that knows the epoch": lambda _: DataLoader(ToldFlow(), batch_size=BATCH),
    "an iterable dataset and workers": lambda _: DataLoader(Flow(), batch_size=BATCH, num_workers=2),
    "a stream with a state": lambda _: DataLoader(Counting(), batch_size=BATCH),
    "a sampler with a memory": lambda workers: DataLoader(Points(), batch_sampler=WithMemory(), num_workers=workers),
    "a sampler without a length": lambda workers: DataLoader(
        Points(), batch_sampler=WithMemory(has_length=False), num_workers=workers
    ),
    "a sampler with a state": lambda _: DataLoader(Points(), batch_sampler=WithState()),
    "a sampler with a state, without a length": lambda _: DataLoader(Points(), batch_sampler=WithState(False)),
    "a distributed sampler": lambda workers: DataLoader(
        Points(),
        batch_sampler=DistributedBatchSampler(Points(), BATCH, num_replicas=1, rank=0, shuffle=True),
        num_workers=workers,
    ),
    "weighted": lambda _: DataLoader(Points(), batch_sampler=BatchSampler(sampler=weighted(), batch_size=BATCH)),
    "a subset": lambda workers: DataLoader(Subset(Points(), range(3, 20)), batch_size=BATCH, shuffle=True),
    "a dataset of batches": lambda _: DataLoader(Batches(), batch_size=None, shuffle=False),
    "workers": lambda _: shuffled(1),
    "persistent workers": lambda _: shuffled(2, persistent_workers=True),
    "two loaders": lambda _: {"a": shuffled(), "b": DataLoader(Points(), batch_size=2)},
    "two loaders, one goes round": lambda _: CombinedLoader([shuffled(), list(Iterable())[:2]], "max_size_cycle"),
    "a datamodule with a state": lambda _: Curriculum(),
}
UNKNOWN_LENGTH = (
    "an iterable",
    "an iterable of arrays",
    "an iterable with a state",
    "an iterable dataset",
    "an iterable dataset that knows the epoch",
    "an iterable dataset and workers",
    "a stream with a state",
    "a sampler without a length",
    "a sampler with a state, without a length",
)


def pair_in(batch: Any) -> Any:
    """x and y of a batch of whatever kind."""
    if isinstance(batch, dict):
        return batch["a"]
    return batch[0] if isinstance(batch[0], (list, tuple)) else batch


# -- what learns -------------------------------------------------------------------------------------------------------
class Steady(paddle.optimizer.Momentum):  # type: ignore[misc]
    """An optimizer of the user's own: it bounds gradients before its step."""

    def step(self) -> None:
        nn.utils.clip_grad_value_([one for one in self._parameter_list if one.grad is not None], 0.3)
        super().step()


Make = Callable[[Any, Any], Any]
_PLAIN = "SGD Momentum Adam AdamW Adamax Adagrad Adadelta RMSProp Lamb NAdam RAdam ASGD Rprop LBFGS"


def _plain(name: str, **options: Any) -> Make:
    return lambda rate, module: getattr(paddle.optimizer, name)(rate, parameters=module.parameters(), **options)


def _in_groups(name: str, **options: Any) -> Make:
    def make(rate: Any, module: Any) -> Any:
        first, rest = module.net[0].parameters(), [p for layer in list(module.net)[1:] for p in layer.parameters()]
        groups = [{"params": first, "learning_rate": 0.5}, {"params": rest, "weight_decay": 0.01}]
        return getattr(paddle.optimizer, name)(rate, parameters=groups, **options)

    return make


OPTIMIZERS: dict[str, Make] = {name: _plain(name) for name in _PLAIN.split() if hasattr(paddle.optimizer, name)}
OPTIMIZERS |= {f"{name} in groups": _in_groups(name) for name in ("SGD", "Momentum", "Adam", "AdamW")}
OPTIMIZERS |= {
    "Momentum, Nesterov": _plain("Momentum", use_nesterov=True, weight_decay=0.01),
    "Momentum at once": _plain("Momentum", use_multi_tensor=True),
    "Adam at once": _plain("Adam", use_multi_tensor=True),
    "Adam with L1": _plain("Adam", weight_decay=paddle.regularizer.L1Decay(0.01)),
    "AdamW, no decay of biases": _plain("AdamW", apply_decay_param_fun=lambda name: "b_0" not in name),
    "Adam that clips": _plain("Adam", grad_clip=nn.ClipGradByGlobalNorm(0.5)),
    "RMSProp, centered": _plain("RMSProp", centered=True, momentum=0.9),
    "one of my own": lambda rate, module: Steady(rate, parameters=module.parameters()),
}


class Zigzag(lr.LRScheduler):  # type: ignore[misc]
    """A schedule of the user's own, with a memory."""

    def __init__(self, rate: float) -> None:
        self.calls = 0
        super().__init__(rate)

    def get_lr(self) -> float:
        self.calls += 1
        return float(self.base_lr * (0.5 + 0.1 * (self.calls % 3)))

    def state_keys(self) -> None:
        self.keys = ["last_epoch", "last_lr", "calls"]


SCHEDULES: dict[str, Callable[[], Any]] = {
    "none": lambda: 0.05,
    "step": lambda: lr.StepDecay(0.05, 1),
    "multistep": lambda: lr.MultiStepDecay(0.05, [1, 3, 8]),
    "piecewise": lambda: lr.PiecewiseDecay([2, 7], [0.05, 0.02, 0.01]),
    "piecewise under a warm-up": lambda: lr.LinearWarmup(lr.PiecewiseDecay([2, 7], [0.05, 0.02, 0.01]), 3, 0.0, 0.05),
    "exponential": lambda: lr.ExponentialDecay(0.05, 0.9),
    "natural": lambda: lr.NaturalExpDecay(0.05, 0.1),
    "inverse": lambda: lr.InverseTimeDecay(0.05, 0.1),
    "noam": lambda: lr.NoamDecay(16, 4, 0.5),
    "noam under a warm-up": lambda: lr.LinearWarmup(lr.NoamDecay(16, 4, 0.5), 2, 0.0, 0.05),
    "polynomial": lambda: lr.PolynomialDecay(0.05, 9),
    "polynomial, again and again": lambda: lr.PolynomialDecay(0.05, 4, cycle=True),
    "lambda": lambda: lr.LambdaDecay(0.05, lambda epoch: 0.9**epoch),
    "multiplicative": lambda: lr.MultiplicativeDecay(0.05, lambda epoch: 0.95),
    "cosine": lambda: lr.CosineAnnealingDecay(0.05, T_max=7),
    "cosine under a warm-up": lambda: lr.LinearWarmup(lr.CosineAnnealingDecay(0.05, T_max=7), 2, 0.0, 0.05),
    "cosine with restarts": lambda: lr.CosineAnnealingWarmRestarts(0.05, T_0=2, T_mult=2),
    "linear": lambda: lr.LinearLR(0.05, 5),
    "one cycle": lambda: lr.OneCycleLR(0.05, 20),
    "one cycle of three": lambda: lr.OneCycleLR(0.05, 20, three_phase=True, anneal_strategy="linear"),
    "cyclic": lambda: lr.CyclicLR(0.01, 0.05, 4),
    "cyclic, smaller each time": lambda: lr.CyclicLR(0.01, 0.05, 2, mode="triangular2"),
    "cyclic, exponential": lambda: lr.CyclicLR(0.01, 0.05, 2, mode="exp_range", exp_gamma=0.9),
    "one of my own": lambda: Zigzag(0.05),
    "plateau of training": lambda: lr.ReduceOnPlateau(0.05, patience=0),
    "plateau of validation": lambda: lr.ReduceOnPlateau(0.05, patience=0),
}


class Net(Module):
    """Batch norm, dropout, a tensor that is no buffer, random numbers in a hook."""

    at_step: Callable[[], None] = staticmethod(lambda: None)
    """Called within each training step, when the loss is there: a place to die."""

    def __init__(self, choice: dict[str, Any]) -> None:
        super().__init__()
        self.choice = choice
        self.automatic_optimization = choice["manual"] == "no"
        numbers = np.random.RandomState(7)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1D(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
        for parameter in self.net.parameters():
            if not parameter.stop_gradient and parameter.ndim > 1:
                parameter.set_value((numbers.randn(*parameter.shape) * 0.3).astype("float32"))
        self.average = paddle.zeros([1])
        self.draws: list[float] = []

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = pair_in(batch)
        loss = F.cross_entropy(self(x), y)
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        self.log("loss", loss + 0 * self.average.sum(), on_step=True, on_epoch=True)
        Net.at_step()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            if (batch_idx + 1) % (1 if self.choice["manual"] == "every batch" else 3) == 0:
                optimizer.step()
                optimizer.clear_grad()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = float(np.random.rand()) * 0.01
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]) + noise)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(pair_in(batch)[0])

    def on_train_epoch_start(self) -> None:
        self.draws.append(float(np.random.rand()) + float(paddle.rand([1]).numpy()[0]))

    def on_train_epoch_resume(self) -> None:
        pass

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["draws"] = self.draws

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.draws = list(checkpoint["draws"])

    def configure_optimizers(self) -> Any:
        rate = SCHEDULES[self.choice["schedule"]]()
        optimizer = OPTIMIZERS[self.choice["optimizer"]](rate, self)
        if self.choice["schedule"] == "none":
            return optimizer
        config: dict[str, Any] = {"scheduler": rate, "interval": self.choice["interval"]}
        if self.choice["schedule"].startswith("plateau"):
            config["monitor"] = "val" if self.choice["schedule"].endswith("validation") else "loss"
        return {"optimizer": optimizer, "lr_scheduler": config}
