"""Logs: what modules and callbacks log by: numbers, and images, texts, histograms, figures and audio."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigurationError
from .reporting import media_forms

if TYPE_CHECKING:
    from .reporting.log_target import LogTarget


class Logs:
    """Base class of Module and Callback. A number goes to callbacks, the progress bar and loggers; the rest to loggers.

    What is no number is logged at logging steps and costs nothing in between: in training at each `log_every_n_steps`,
    elsewhere, as in validation_step or on_train_epoch_end, always. Of a name one is taken at a step, the first, so that
    `log_image` in validation_step shows the first batch of each validation. Instead of the thing itself a function that
    makes it may be given, which is called at logging steps alone. It goes to every logger that can show it, and the
    others are told of once. Shapes and types: each method; what they cannot take is a ConfigurationError.
    """

    log_target: LogTarget | None
    """Where what is logged goes at this moment; None where there is no trainer."""

    def log(
        self,
        name: str,
        value: Any,
        *,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[list[float]], float] = "mean",
        sync_dist: bool = True,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a number under a name, for callbacks, the progress bar and loggers; no copy to the host is made.

        Args:
            name: under which it is found; with `on_step` and `on_epoch` both, `<name>_step` and `<name>_epoch`.
            value: a number, a tensor with one element, or a paddle.metric.Metric.
            prog_bar: show it in the progress bar and in an epoch's line.
            logger: send it to the loggers.
            on_step: keep each step's value; by default in training_step.
            on_epoch: keep the epoch's value, over all ranks; by default everywhere else.
            reduce_fx: what an epoch's value is: "mean", weighted by batch size, "sum", "min", "max", or a function of
                the list of values.
            add_dataloader_idx: end the name in `/dataloader_idx_<i>` where there are several loaders.
            batch_size: what the batch weighs; by default the samples that the DataLoader drew for it, and where there
                is no DataLoader what the parts of the batch agree on.
            sync_dist: accepted for Lightning's sake.
            rank_zero_only: likewise.

        Raises:
            ConfigurationError: not a single number; the name was logged before with other options.
        """
        target = self.log_target
        if target is None:
            warnings.warn("self.log() was called on a module without a trainer; nothing was recorded", stacklevel=2)
            return
        collector = target.collector
        if collector is None:
            raise ConfigurationError(
                f"self.log({name!r}, ...) cannot be used here: no epoch is running whose metrics it could join. "
                "Log from on_train_start on, in a stage's hooks and steps."
            )
        if on_step is None:
            on_step = target.on_step
        if on_epoch is None:
            on_epoch = not target.on_step
        if add_dataloader_idx and target.suffix:
            name += target.suffix
        collector.log(name, value, on_step, on_epoch, prog_bar, logger, reduce_fx, batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], **options: Any) -> None:
        """`log` for every entry, with the same options."""
        for name, value in dictionary.items():
            self.log(name, value, **options)

    def log_image(self, name: str, image: Any, *, dataformats: Literal["CHW", "HWC", "HW"] | None = None) -> None:
        """Log one image: a Tensor, an array or a PIL image, [height, width] or with 1, 3 or 4 channels, first or last.

        uint8 from 0 to 255, floats from 0 to 1, truth values black and white; what lies beyond is cut off and told.
        `dataformats` is needed only where first and last axis may both be the channels.
        """
        self._log_media("image", name, image, dataformats)

    def log_text(self, name: str, text: str | Callable[[], str]) -> None:
        """Log a text, which may be Markdown."""
        self._log_media("text", name, text)

    def log_histogram(self, name: str, values: Any) -> None:
        """Log how numbers are distributed: a Tensor or an array of any shape. NaN and infinity are left out."""
        self._log_media("histogram", name, values)

    def log_figure(self, name: str, figure: Any, *, close: bool = True) -> None:
        """Log a matplotlib Figure, or that of an Axes, as an image; `close` lets pyplot forget it, logged or not."""
        try:
            self._log_media("figure", name, figure)
        finally:
            if close:
                media_forms.close(figure)

    def log_audio(self, name: str, audio: Any, *, sample_rate: int) -> None:
        """Log a sound: a Tensor or an array [samples], [samples, channels] or [channels, samples].

        Floats from -1 to 1, or integers of their type's whole range; `sample_rate` in samples a second.
        """
        self._log_media("audio", name, audio, sample_rate)

    def _log_media(self, kind: str, name: str, value: Any, *options: Any) -> None:
        target = self.log_target
        media = target.media if target is not None else None
        if target is None or media is None:
            return
        if target.suffix:
            name += target.suffix
        if media.wants(name, on_step=target.on_step):
            media.log(kind, name, value, *options)
