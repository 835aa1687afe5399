"""Lets a bare checkout import callbacks/ as paddlelite_trainer.callbacks, as the installed package does."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Loops by hand, which tests compare with, run on one thread: some operators round otherwise with several.
os.environ.setdefault("PADDLELITE_CPU_THREADS", "1")


def _map_callbacks() -> None:
    if importlib.util.find_spec("paddlelite_trainer") is None:
        sys.path.insert(0, str(HERE))
    if importlib.util.find_spec("paddlelite_trainer.callbacks") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "paddlelite_trainer.callbacks",
        HERE / "callbacks/__init__.py",
        submodule_search_locations=[str(HERE / "callbacks")],
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


_map_callbacks()
