"""Copying the next batch ahead, on the CPU: never, and at no cost; on_fake_gpu/test_prefetch.py has the rest."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
from loaders import augmented
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.data import prefetch
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError


class CountsThreads(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.threads = threading.active_count()
        return self.loss(make_batches(1)[0])


@pytest.fixture
def nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("made on the CPU")

    monkeypatch.setattr(prefetch.Prefetch, "__init__", refuse)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["auto", True, False])
def test_on_the_cpu_there_is_no_thread_for_it(mode: Any, workers: int, nothing_of_it: None) -> None:
    before, module = threading.active_count(), CountsThreads()
    trainer = quiet_trainer(prefetch_to_device=mode, accelerator="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no effect")
        trainer.fit(module, augmented(num_workers=workers), make_batches(1))
    assert (module.threads, trainer.prefetches_to_device) == (before, False)


def test_asking_for_it_on_the_cpu_warns_once_and_auto_does_not() -> None:
    with pytest.warns(
        UserWarning, match=r"prefetch_to_device=True\) has no effect: on the CPU there is nothing"
    ) as told:
        quiet_trainer(prefetch_to_device=True, accelerator="cpu").fit(Classifier(), make_batches(), make_batches(1))
    assert len([warning for warning in told if "prefetch" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet_trainer(accelerator="cpu").fit(Classifier(), make_batches())


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [("atuo", ConfigurationError, "Did you mean 'auto'"), (2, ConfigurationTypeError, "'auto', True or False, got 2")],
)
def test_a_wrong_setting_is_refused(value: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        quiet_trainer(prefetch_to_device=value)
