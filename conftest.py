"""Lets a bare checkout import the package without an install."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Loops by hand, which tests compare with, run on one thread: some operators round otherwise with several.
os.environ.setdefault("PADDLELITE_CPU_THREADS", "1")


if importlib.util.find_spec("paddlelite_trainer") is None:
    sys.path.insert(0, str(HERE))
