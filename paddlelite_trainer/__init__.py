"""A trainer for PaddlePaddle: subclass `Module`, call `Trainer(max_epochs=100).fit(module, loader, ckpt_path="last")`.

Names are imported when first used, so that `paddlelite ckpt` runs on a machine without Paddle.
"""

from __future__ import annotations

import importlib
import os
import zlib  # noqa: F401  before paddle: 2.6 brings its own, with which .gz and .png files then crash the process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import callbacks
    from .callback import Callback, SavePoint
    from .checkpoint import average_checkpoints
    from .checkpoint.weights import load_weights
    from .data.combined import CombinedLoader
    from .data.module import DataModule
    from .fit.starting import InitFrom
    from .machine.ranks import rank_zero_info, rank_zero_only
    from .machine.rng import seed_everything
    from .machine.strategy import Strategy
    from .module import Module
    from .reporting.loggers import (
        CSVLogger,
        Logger,
        MLFlowLogger,
        ServiceLogger,
        SwanLabLogger,
        TensorBoardLogger,
        VisualDLLogger,
        WandbLogger,
    )
    from .trainer import Trainer
    from .tuner import Tuner

__version__ = "0.1.0"
__all__ = [
    "CSVLogger",
    "Callback",
    "CombinedLoader",
    "DataModule",
    "InitFrom",
    "Logger",
    "MLFlowLogger",
    "Module",
    "SavePoint",
    "ServiceLogger",
    "Strategy",
    "SwanLabLogger",
    "TensorBoardLogger",
    "Trainer",
    "Tuner",
    "VisualDLLogger",
    "WandbLogger",
    "average_checkpoints",
    "callbacks",
    "load_weights",
    "rank_zero_info",
    "rank_zero_only",
    "seed_everything",
]

_HOME = {
    "Trainer": ".trainer",
    "Tuner": ".tuner",
    "average_checkpoints": ".checkpoint",
    "Module": ".module",
    "CombinedLoader": ".data.combined",
    "DataModule": ".data.module",
    "InitFrom": ".fit.starting",
    "load_weights": ".checkpoint.weights",
    "Callback": ".callback",
    "SavePoint": ".callback",
    "Logger": ".reporting.loggers",
    "CSVLogger": ".reporting.loggers",
    "MLFlowLogger": ".reporting.loggers",
    "ServiceLogger": ".reporting.loggers",
    "SwanLabLogger": ".reporting.loggers",
    "TensorBoardLogger": ".reporting.loggers",
    "VisualDLLogger": ".reporting.loggers",
    "WandbLogger": ".reporting.loggers",
    "rank_zero_info": ".machine.ranks",
    "rank_zero_only": ".machine.ranks",
    "Strategy": ".machine.strategy",
    "seed_everything": ".machine.rng",
}

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "callbacks")):  # a checkout, in which callbacks/ stands beside the package
    __path__.append(os.path.dirname(_HERE))


if not TYPE_CHECKING:  # or type checkers would take any name

    def __getattr__(name: str) -> Any:
        if name == "callbacks":
            return importlib.import_module(".callbacks", __name__)
        if name not in _HOME:
            if not name.startswith("_"):
                importlib.import_module(".names_elsewhere", __name__).refuse_class(name, __name__)
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _require_paddle()
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _require_paddle() -> None:
    import importlib.util
    import warnings

    # Said at every import of Paddle 3, and of no use to those who build no operators of their own.
    warnings.filterwarnings("ignore", message="No ccache found")
    if importlib.util.find_spec("paddle") is None:
        raise ImportError(
            "paddlelite_trainer needs PaddlePaddle, which is not installed. Install exactly one of the two: "
            "`pip install 'paddlelite_trainer[cpu]'` for the CPU, `pip install 'paddlelite_trainer[gpu]'` for GPUs."
        )
