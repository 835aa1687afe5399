"""What a run is about, and what it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..callback import Callback
    from ..data.module import DataModule
    from ..machine.device import Device
    from ..machine.precision import Precision
    from ..machine.ranks import Ranks
    from ..module import Module
    from .hooks import Hooks
    from .loading import Loading


@dataclass(frozen=True)
class Machine:
    """What a run runs on."""

    ranks: Ranks
    device: Device
    precision: Precision


@dataclass
class Subject:
    """What a run is about: the module, its data and who listens; known when a run begins."""

    module: Module
    datamodule: DataModule | None
    callbacks: Sequence[Callback]
    hooks: Hooks
    loading: Loading
