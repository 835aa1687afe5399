"""Runs tests/on_fake_gpu/ in processes in which a fake accelerator exists: its short files in one, the others alone."""

from __future__ import annotations

from pathlib import Path

import fake_gpu
import paddle
import pytest

FILES = sorted(Path(__file__).with_name("on_fake_gpu").glob("test_*.py"))
ALONE = [[path] for path in FILES if path.stem in ("test_prefetch", "test_training")]
SHORT = [path for path in FILES if [path] not in ALONE]


@pytest.mark.fake_gpu
@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device")
@pytest.mark.parametrize("paths", [*ALONE, SHORT], ids=lambda paths: paths[0].stem if len(paths) == 1 else "short")
def test_on_the_fake_accelerator(paths: list[Path]) -> None:
    fake_gpu.run_pytest(*paths)
