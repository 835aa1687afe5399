"""LogTarget: where `self.log` writes at this moment of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .media import Media
    from .metrics import MetricCollector


class LogTarget:
    """What a running fit or evaluation collects into. Only its own run writes it; Module.log reads it."""

    def __init__(self) -> None:
        self.collector: MetricCollector | None = None
        """None where there is no epoch that a value could join."""
        self.on_step = False
        """Whether a value is one of a step, unless said otherwise; else it joins the epoch's mean."""
        self.suffix = ""
        """What a name gets behind it where there are several loaders."""
        self.media: Media | None = None
        """Where images and the like go; None where nothing is logged."""

    def collect(self, collector: MetricCollector | None, *, on_step: bool) -> None:
        """Collect there from now on."""
        self.collector, self.on_step = collector, on_step

    def send_media_to(self, media: Media | None) -> None:
        self.media = media

    def expect_steps(self, on_step: bool) -> None:
        self.on_step = on_step

    def add_to_names(self, suffix: str) -> None:
        self.suffix = suffix

    @contextlib.contextmanager
    def into(self, collector: MetricCollector | None) -> Iterator[None]:
        """Within, values are collected there as an epoch's; afterwards as before."""
        before = self.collector, self.on_step, self.suffix
        self.collector, self.on_step, self.suffix = collector, False, ""
        try:
            yield
        finally:
            self.collector, self.on_step, self.suffix = before
