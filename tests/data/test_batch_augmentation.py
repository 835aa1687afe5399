"""Mixup and CutMix through the hooks around a batch's transfer: drawn, mixed, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.io import DataLoader, Dataset

from paddlelite_trainer import Callback, DataModule, Module, Trainer, seed_everything

CLASSES, SIZE = 3, 6


class Images(Dataset):
    """Image i is all i, so that what a mixed image is made of can be read off it."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return np.full([1, SIZE, SIZE], index, "float32"), index % CLASSES


def mixup(images: Any, labels: Any, alpha: float = 0.4) -> tuple[Any, Any]:
    """Each image mixed with another of its batch, and so its one-hot labels. (Zhang et al. 2018, arXiv:1710.09412.)"""
    share = float(np.random.beta(alpha, alpha))
    order = paddle.randperm(images.shape[0])
    return share * images + (1 - share) * images[order], share * labels + (1 - share) * labels[order]


def cutmix(images: Any, labels: Any, alpha: float = 1.0) -> tuple[Any, Any]:
    """A rectangle of each image replaced by another's, labels by area. (Yun et al. 2019, arXiv:1905.04899.)"""
    height, width = images.shape[-2:]
    side = np.sqrt(1 - np.random.beta(alpha, alpha))
    tall, wide = int(height * side), int(width * side)
    top, left = np.random.randint(height - tall + 1), np.random.randint(width - wide + 1)
    order = paddle.randperm(images.shape[0])
    inside = paddle.zeros([height, width])
    inside[top : top + tall, left : left + wide] = 1.0
    share = 1 - tall * wide / (height * width)
    return images * (1 - inside) + images[order] * inside, share * labels + (1 - share) * labels[order]


class Classifier(Module):
    """Labels become one-hot before the transfer, and training batches are mixed after it."""

    mix = staticmethod(mixup)

    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Sequential(
            paddle.nn.Flatten(), paddle.nn.Linear(SIZE * SIZE, 8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, CLASSES)
        )
        self.trained_on: list[Any] = []
        self.validated_on: list[Any] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return images, paddle.nn.functional.one_hot(labels, CLASSES)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.mix(*batch) if self.trainer.training else batch

    def loss(self, batch: Any) -> Any:
        images, labels = batch
        return paddle.nn.functional.cross_entropy(self.net(images / 24), labels, soft_label=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trained_on.append([part.numpy() for part in batch])
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated_on.append([part.numpy() for part in batch])
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(0.01, parameters=self.parameters())


class CutMixed(Classifier):
    mix = staticmethod(cutmix)


def fit(
    root: Path, kind: type[Classifier], workers: int = 0, ckpt_path: str | None = None, **settings: Any
) -> Classifier:
    seed_everything(4)
    module = kind()
    defaults = {"max_epochs": 2, "accelerator": "cpu", "seed": 4, "num_sanity_val_steps": 1, "default_root_dir": root}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(**{**defaults, **quiet, **settings}).fit(
        module,
        DataLoader(Images(), batch_size=8, shuffle=True, num_workers=workers),
        DataLoader(Images(), batch_size=8),
        ckpt_path=ckpt_path,
    )
    return module


def test_mixup_mixes_images_and_labels_alike_in_training_alone(tmp_path: Path) -> None:
    module = fit(tmp_path, Classifier)
    assert len(module.trained_on) == 6
    for _, labels in module.trained_on:
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
    assert any(((labels > 0.01) & (labels < 0.99)).any() for _, labels in module.trained_on)
    assert any((images % 1 > 1e-3).any() for images, _ in module.trained_on)
    for images, labels in module.validated_on:
        assert set(np.unique(labels)) <= {0.0, 1.0}
        assert (images % 1 == 0).all()


def test_cutmix_puts_a_rectangle_of_another_image_in_and_shares_labels_by_area(tmp_path: Path) -> None:
    module = fit(tmp_path, CutMixed)
    mixed = 0
    for images, labels in module.trained_on:
        for image, label in zip(images, labels):
            values, counts = np.unique(image, return_counts=True)
            assert len(values) <= 2
            expected = np.zeros(CLASSES)
            for value, count in zip(values, counts):
                expected[int(value) % CLASSES] += count / image.size
            np.testing.assert_allclose(label, expected, atol=1e-6)
            mixed += len(values) == 2
    assert mixed > 0


@pytest.mark.parametrize("kind", [Classifier, CutMixed])
@pytest.mark.parametrize("cut", range(1, 6))
def test_a_run_resumed_at_any_step_mixes_the_same_batches(tmp_path: Path, kind: type[Classifier], cut: int) -> None:
    whole = fit(tmp_path / "whole", kind)
    first = fit(tmp_path / "parts", kind, max_steps=cut)
    second = fit(tmp_path / "parts", kind, ckpt_path="last")
    mixed = first.trained_on + second.trained_on
    assert len(mixed) == len(whole.trained_on)
    assert all(np.array_equal(a, b) for one, other in zip(mixed, whole.trained_on) for a, b in zip(one, other))
    ends = whole.state_dict(), second.state_dict()
    assert all(np.array_equal(ends[0][name].numpy(), ends[1][name].numpy()) for name in ends[0])


def test_workers_do_not_change_what_is_mixed(tmp_path: Path) -> None:
    one, other = fit(tmp_path / "none", Classifier).trained_on, fit(tmp_path / "two", Classifier, workers=2).trained_on
    assert all(np.array_equal(a, b) for batch, same in zip(one, other) for a, b in zip(batch, same))


def test_a_datamodules_hooks_are_used_in_place_of_the_modules(tmp_path: Path) -> None:
    class Data(DataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Images(), batch_size=8)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0], paddle.nn.functional.one_hot(batch[1], CLASSES)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 0 + 7, batch[1]

    module = Classifier()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, datamodule=Data())
    assert all((images == 7).all() for images, _ in module.trained_on)


def test_callbacks_see_the_mixed_batch(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
            seen.append(batch[1].numpy())

    module = fit(tmp_path, Classifier, callbacks=[Looks()])
    assert all(np.array_equal(labels, batch[1]) for labels, batch in zip(seen, module.trained_on))
