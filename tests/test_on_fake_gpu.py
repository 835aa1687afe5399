"""Runs each file of tests/on_fake_gpu/ in a process in which a fake accelerator exists."""

from __future__ import annotations

from pathlib import Path

import fake_gpu
import paddle
import pytest

FILES = sorted(Path(__file__).with_name("on_fake_gpu").glob("test_*.py"))


@pytest.mark.fake_gpu
@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_the_fake_accelerator(path: Path) -> None:
    fake_gpu.run_pytest(path)
