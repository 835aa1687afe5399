"""Loggers: where metrics go, in files and at services that a resumed run goes on with as if nothing had happened."""

from .base import FileLogger, Logger
from .csv import CSVLogger
from .mlflow import MLFlowLogger
from .service import ServiceLogger
from .swanlab import SwanLabLogger
from .tensorboard import TensorBoardLogger
from .visualdl import VisualDLLogger
from .wandb import WandbLogger

BY_NAME: dict[str, type[Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "visualdl": VisualDLLogger,
    "wandb": WandbLogger,
    "mlflow": MLFlowLogger,
    "swanlab": SwanLabLogger,
}
"""What Trainer(logger="...") means."""

__all__ = [
    "BY_NAME",
    "CSVLogger",
    "FileLogger",
    "Logger",
    "MLFlowLogger",
    "ServiceLogger",
    "SwanLabLogger",
    "TensorBoardLogger",
    "VisualDLLogger",
    "WandbLogger",
]
