"""Tests in this directory run on the fake accelerator only, started by tests/test_on_fake_gpu.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if "FAKE_GPU_COUNT" in os.environ else ["test_*.py"]


@pytest.fixture(autouse=True)
def _on_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    import paddle

    paddle.set_device("fake_gpu:0")
    paddle.seed(0)
    yield
    paddle.set_device("fake_gpu:0")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Paddle compute in bfloat16 here: 3.x knows by name which devices can, 2.6 says none."""
    import paddle

    module = sys.modules[paddle.amp.auto_cast.__module__]
    gate = "_is_custom_device_bfloat16_supported"
    if not hasattr(module, gate):
        pytest.skip("this Paddle has no bfloat16 on custom devices")
    monkeypatch.setattr(module, gate, lambda: True)
