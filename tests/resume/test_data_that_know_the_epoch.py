"""Data that know the epoch: told at each epoch's start, and where a run goes on inside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.io import BatchSampler, DataLoader, Dataset, IterableDataset, Subset

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint


class Curriculum(Dataset):
    """A sample is its index, the epoch that the dataset was told, and whether mosaic is on."""

    epoch, mosaic = -1, True

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return np.array([index, self.epoch, self.mosaic], "float32")


class Told(Curriculum):
    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ToldStream(IterableDataset):
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        for index in range(8):
            yield np.array([index, self.epoch, 1], "float32")


class Collate:
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, samples: list[Any]) -> Any:
        batch = np.stack(samples)
        batch[:, 1] = self.epoch
        return batch


class Loader:
    """An iterable of the user's own."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        for index in range(4):
            yield paddle.to_tensor(np.array([[index, self.epoch, 1]], "float32"))


class Told2(BatchSampler):
    epoch = -1

    def __init__(self) -> None:
        pass

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return iter([[(index + self.epoch) % 8] for index in range(4)])


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = paddle.nn.Linear(3, 1)
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.trainer.current_epoch, batch.numpy().tolist()))
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class Dies(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("planned")


def seen_by(net: Net, loader: Any, root: Path, *callbacks: Callback, context: Any = "auto", **fit: Any) -> list[Any]:
    trainer = Trainer(
        max_epochs=3,
        seed=1,
        default_root_dir=str(root),
        run_name="r",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        multiprocessing_context=context,
        callbacks=[ModelCheckpoint(every_n_train_steps=1), *callbacks],
    )
    trainer.fit(net, loader, **fit)
    return net.seen


def whole_and_resumed(
    root: Path, make: Any, step: int, make_net: Any = Net, **settings: Any
) -> tuple[list[Any], list[Any]]:
    whole = seen_by(make_net(), make(), root / "whole", **settings)
    with pytest.raises(RuntimeError, match="planned"):
        seen_by(make_net(), make(), root / "killed", Dies(step), **settings)
    return whole, seen_by(make_net(), make(), root / "killed", ckpt_path="last", **settings)


def over(dataset: Any, **settings: Any) -> DataLoader:
    return DataLoader(dataset, batch_size=2, **settings)


KINDS = {
    "dataset": lambda: over(Told()),
    "workers": lambda: over(Told(), num_workers=1),
    "persistent workers": lambda: over(Told(), num_workers=1, persistent_workers=True),
    "collate_fn": lambda: over(Curriculum(), collate_fn=Collate()),
    "collate_fn in persistent workers": lambda: over(
        Curriculum(), collate_fn=Collate(), num_workers=1, persistent_workers=True
    ),
    "subset": lambda: over(Subset(Told(), list(range(8)))),
    "stream": lambda: over(ToldStream()),
    "stream in workers": lambda: over(ToldStream(), num_workers=1, persistent_workers=True),
    "loader": Loader,
}


SPAWNED = [pytest.param(kind, "spawn", marks=pytest.mark.soak) for kind in KINDS if "workers" in kind]


@pytest.mark.parametrize("step", [6, 8])
@pytest.mark.parametrize(("kind", "context"), [*((kind, "auto") for kind in KINDS), *SPAWNED])
def test_what_has_a_set_epoch_is_told_the_epoch_and_again_on_a_resume(
    tmp_path: Path, kind: str, context: str, step: int
) -> None:
    whole, resumed = whole_and_resumed(tmp_path, KINDS[kind], step, context=context)
    assert [(epoch, batch[0][1]) for epoch, batch in whole] == [(epoch, epoch) for epoch in range(3) for _ in range(4)]
    assert resumed == whole[step:]


def test_a_batch_sampler_is_told_too(tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(tmp_path, lambda: DataLoader(Curriculum(), batch_sampler=Told2()), 6)
    assert [batch[0][0] for _, batch in whole] == [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5]
    assert resumed == whole[6:]


class MosaicOff(Net):
    """A user's own switch, set from epoch 1 on."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset
        self.events: list[str] = []

    def switch(self) -> None:
        self.dataset.mosaic = self.trainer.current_epoch < 1

    def on_train_epoch_start(self) -> None:
        self.events.append("start")
        self.switch()


class MosaicOffAgain(MosaicOff):
    def on_train_epoch_resume(self) -> None:
        self.events.append("resume")
        np.random.rand(3)
        self.switch()


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}])
def test_on_train_epoch_resume_comes_before_data_are_read_and_only_inside_an_epoch(
    tmp_path: Path, workers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for step, expected in ((6, ["resume", "start"]), (8, ["start"])):
        datasets = [Curriculum() for _ in range(3)]
        nets = [MosaicOffAgain(dataset) for dataset in datasets]
        loaders = iter([over(dataset, **workers) for dataset in datasets])
        whole, resumed = whole_and_resumed(tmp_path / str(step), loaders.__next__, step, iter(nets).__next__)
        assert [batch[0][2] for _, batch in whole] == [1] * 4 + [0] * 8
        assert resumed == whole[step:]
        assert nets[2].events == expected
    assert "is not called again" not in capsys.readouterr().out


def test_a_note_tells_of_an_epoch_start_that_is_not_called_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, notes in ((6, 1), (8, 0)):
        datasets = [Curriculum() for _ in range(3)]
        nets, loaders = iter([MosaicOff(item) for item in datasets]), iter([over(item) for item in datasets])
        whole_and_resumed(tmp_path / str(step), loaders.__next__, step, nets.__next__)
        assert capsys.readouterr().out.count("MosaicOff.on_train_epoch_start is not called again") == notes
