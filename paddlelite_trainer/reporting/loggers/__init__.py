"""Loggers: where metrics go, in files and at services that a resumed run goes on with as if nothing had happened."""

from .base import Logger
from .csv import CSVLogger
from .tensorboard import TensorBoardLogger

BY_NAME: dict[str, type[Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
"""What Trainer(logger="...") means."""

__all__ = ["BY_NAME", "CSVLogger", "Logger", "TensorBoardLogger"]
