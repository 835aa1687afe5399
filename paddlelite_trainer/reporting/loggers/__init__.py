"""Loggers: where metrics go, in files that a resumed run continues as if nothing had happened."""

from .base import Logger
from .csv import CSVLogger
from .tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "Logger", "TensorBoardLogger"]
