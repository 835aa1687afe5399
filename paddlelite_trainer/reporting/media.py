"""Media: images, texts, histograms, figures and audio on their way to the loggers that can show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigurationTypeError, LogWriteError
from .media_forms import as_audio, as_figure, as_histogram, as_image, as_text, drawn

if TYPE_CHECKING:
    from ..machine.ranks import Ranks
    from ..progress import Progress
    from .loggers import Logger


class Writes(Protocol):
    """What Media needs of the Book."""

    progress: Progress
    ranks: Ranks
    loggers: list[Logger]
    next_log: int
    log_every_n_steps: int
    print: Callable[..., None]
    before_log: Callable[[], None]

    def loggers_to_write(self) -> list[Logger]: ...
    def after_failed_log(self, error: LogWriteError) -> None: ...


_PREPARE: dict[str, Callable[..., Any]] = {
    "image": as_image,
    "text": as_text,
    "histogram": as_histogram,
    "figure": as_figure,
    "audio": as_audio,
}


class Media:
    """Takes what is not a number at logging steps, one of a name at a step, and is done with it in between.

    In training a logging step is one whose numbers go to the loggers, each `log_every_n_steps`; where a batch makes
    several steps by hand, the first batch that begins past it. Elsewhere, in a validation or at an epoch's end, every
    moment is one. `skips` are names that are not logged again. Only its Book makes it.
    """

    def __init__(self, book: Writes, skips: frozenset[str] = frozenset()) -> None:
        self._book, self._skips = book, skips
        self.has_stepped: Callable[[], bool] = lambda: False
        self._due: int | None = None
        self.next: int | None = None
        """The step at which training is to log next; None before the first."""
        self._step: int | None = None
        self._of_step: set[str] = set()
        self._names: set[str] = set()
        self._told: set[tuple[str, str]] = set()

    def ask_whether_stepped(self, has_stepped: Callable[[], bool]) -> None:
        """Whether the batch at hand has made its optimizer step."""
        self.has_stepped = has_stepped

    def apart(self) -> Media:
        """For an evaluation after the fit: what the fit has logged of its own is not logged again."""
        return Media(self._book, frozenset(self._names))

    def wants(self, name: str, *, on_step: bool) -> bool:
        """Whether what has this name is to be logged now; the rest costs nothing where not."""
        book = self._book
        if not book.ranks.is_zero or not book.loggers:
            return False
        step = book.progress.global_step
        if on_step:
            step += not self.has_stepped()  # that the batch at hand is about to make
            if self.next is None:
                self.next = book.next_log
            if step != self._due:
                if step < self.next:
                    return False
                every = book.log_every_n_steps
                self._due, self.next = step, (step // every + 1) * every
        if step != self._step:
            self._step, self._of_step = step, set()
        return name not in self._of_step and name not in self._skips

    def log(self, kind: str, name: str, value: Any, *options: Any) -> None:
        """Bring what `wants` has said yes to into its form, and send it to the loggers that can."""
        assert self._step is not None
        loggers = self._book.loggers_to_write()
        if not loggers:
            return
        if not isinstance(name, str):
            raise ConfigurationTypeError(f"log_{kind}({name!r}, ...): the name is a str, got {type(name).__name__}")
        self._of_step.add(name)
        self._names.add(name)
        content = _PREPARE[kind](name, value() if _is_function(value) else value, *options)
        if content is None:
            return
        self._book.before_log()
        picture = None
        for logger in loggers:
            send = getattr(logger, f"log_{kind}", None)
            arguments = content if kind == "audio" else (content,)
            if send is None and kind == "figure" and hasattr(logger, "log_image"):
                picture = drawn(content) if picture is None else picture
                send, arguments = logger.log_image, (picture,)
            if send is None:
                self._tell_once(type(logger).__name__, kind)
                continue
            try:
                send(name, *arguments, self._step)
            except LogWriteError as error:
                self._book.after_failed_log(error)

    def _tell_once(self, logger: str, kind: str) -> None:
        if (logger, kind) not in self._told:
            self._told.add((logger, kind))
            self._book.print(f"note: {logger} has no place for what log_{kind} logs, and leaves it out")


def _is_function(value: Any) -> bool:
    """Whether it makes what is to be logged; a Tensor or a pyplot module does not."""
    return callable(value) and not hasattr(value, "shape") and not hasattr(value, "savefig")
