"""Fit: one fit and its parts, made for it and dropped after it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from ..data.batch_size import weight_of
from ..machine.rng import isolated_random_states
from ..module import is_written
from ..progress import Progress
from ..reporting.book import Book
from ..reporting.log_target import LogTarget
from ..reporting.metrics import MetricCollector, paddle_metrics_of
from ..reporting.train_log import TrainLog
from ..run.epochs import Epochs
from ..run.identity import Run
from ..run.journal import Journal
from .evaluation import Evaluation, InStep
from .plain_tensors import PlainTensors
from .stopping import StopRequests
from .subject import Machine, Subject

if TYPE_CHECKING:
    from ..machine.engine import Engine
    from ..module import Module
    from ..reporting.loggers import Logger
    from ..settings import Settings
    from .hooks import Hooks
    from .loading import Loading
    from .optimization import Optimization
    from .saving import Saver
    from .schedules import Schedules
    from .training_data import TrainingData

Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]
Phase = Literal["preparing", "sanity", "training", "ending"]


class Fit:
    """One fit. Parts that are there from the start; those that `preparation` adds, each once; and where the fit is."""

    def __init__(
        self, settings: Settings, machine: Machine, loggers: list[Logger], print_: Callable[..., None]
    ) -> None:
        self.settings, self.ranks, self.device, self.precision = (
            settings,
            machine.ranks,
            machine.device,
            machine.precision,
        )
        self.print = print_
        self.train_log = TrainLog(print_)
        # What is there from the start.
        self.progress = Progress()
        self.journal = Journal(self.progress, print_)
        self.target = LogTarget()
        self.stopping = StopRequests(settings, self.progress, self.ranks)
        self.book = Book(
            self.progress,
            self.ranks,
            loggers,
            self.target,
            print_,
            mark=self.journal.mark,
            log_every_n_steps=settings.log_every_n_steps,
            may_fail=settings.on_save_error == "warn",
        )
        self.run = Run(settings, self.ranks)
        self.epochs = Epochs()
        self.plain_tensors = PlainTensors()
        # What preparation adds, once.
        self.subject: Subject | None = None
        self.seed: int | None = settings.given_seed
        self.cpu_threads: int | None = None
        self.data: TrainingData | None = None
        self.optimization: Optimization | None = None
        self.engine: Engine | None = None
        self.schedules: Schedules | None = None
        self.saver: Saver | None = None
        # Where the fit is.
        self.phase: Phase = "preparing"
        self.batch: Any = None
        self.evaluation: Evaluation | None = None
        # What the loop calls, timed where a profiler wants it.
        self.take_step: Callable[[Any, int], Any] | None = None
        self.validate: Callable[[], None] = lambda: None
        self.is_interrupted = False
        self._told_of_bad_loss = False
        self._told: set[str] = set()
        self.book.call_on_bad_values(self.tell_of_a_bad_loss)

    # -- what it is about ----------------------------------------------------------------------------------------------
    @property
    def module(self) -> Module:
        assert self.subject is not None
        return self.subject.module

    @property
    def hooks(self) -> Hooks:
        assert self.subject is not None
        return self.subject.hooks

    @property
    def loading(self) -> Loading:
        assert self.subject is not None
        return self.subject.loading

    @property
    def validates(self) -> bool:
        """Whether there is validation data and a step for it."""
        return self.data is not None and bool(self.data.val) and is_written(self.module, "validation_step")

    def begin(self, subject: Subject) -> None:
        """Only once it is known who listens can anybody be told of an error."""
        self.subject = subject
        self.book.train.look_at(self.current_batch_size, functools.partial(paddle_metrics_of, subject.module))

    def use_threads(self, count: int) -> None:
        self.cpu_threads = count

    def use_seed(self, seed: int) -> None:
        self.seed = seed
        self.loading.use_seed(seed)

    def use_data(self, data: TrainingData) -> None:
        self.data = data

    def use_optimization(self, optimization: Optimization, schedules: Schedules) -> None:
        self.optimization, self.schedules = optimization, schedules
        self.book.media.ask_whether_stepped(lambda: optimization.stepped_in == self.progress.total_batches)

    def use_engine(self, engine: Engine) -> None:
        assert self.optimization is not None
        self.engine = engine
        self.optimization.use_engine(engine)

    def whole_weights(self) -> AbstractContextManager[None]:
        """Within, this rank has all weights; a collective."""
        return nullcontext() if self.engine is None else self.engine.whole()

    def use_verbs(self, take_step: Callable[[Any, int], Any], validate: Callable[[], None]) -> None:
        self.take_step, self.validate = take_step, validate

    def use_saver(self, saver: Saver) -> None:
        self.saver = saver

    def enter(self, phase: Phase) -> None:
        self.phase = phase

    def note_interruption(self) -> None:
        self.is_interrupted = True

    def current_batch_size(self) -> int:
        if self.data is None:
            return 1
        source = self.data.train
        return source.samples or weight_of(self.batch, source.batch_size)

    def call_apart(self, hook: str, *, counts: bool = True) -> None:
        """Call a hook that belongs to no epoch: what is logged in it is published and sent to the loggers right after.

        Unless it `counts` nothing of it is kept.
        """
        before, apart = self.target.collector, MetricCollector()
        self.target.collect(apart, on_step=self.target.on_step)
        self.hooks.call(hook)
        if counts:
            self.book.take(apart)
        self.target.collect(before, on_step=self.target.on_step)

    # -- validation within it ------------------------------------------------------------------------------------------
    def evaluate(self, *, limit: int | None = None, is_rehearsal: bool = False) -> list[Any]:
        """Run the validation data; a rehearsal is published and neither logged nor shown."""
        assert self.data is not None and self.subject is not None
        stopping = self.stopping
        stop_early = (lambda: stopping.signals.received is not None) if self.ranks.world_size == 1 else None
        take = self.book.take
        in_step = self._in_step(limit)
        self.evaluation = Evaluation(
            "validate",
            self.target,
            self.book.val,
            (lambda collector, is_final: take(collector, False)) if is_rehearsal else take,
            limit=limit,
            stop_early=stop_early,
            in_step=in_step,
        )
        try:
            with self.whole_weights() if in_step is None else nullcontext():
                return self.evaluation.run(self.subject, self.data.val)
        finally:
            self.evaluation = None

    def _in_step(self, limit: int | None) -> InStep | None:
        """Where weights stay cut: how many batches of each loader the ranks take together; None where nobody knows."""
        if self.engine is None or not self.engine.keeps_cut:
            return None
        assert self.data is not None
        lengths = [source.length for source in self.data.val]
        shares = [length if limit is None or length is None else min(limit, length) for length in lengths]
        everyones = self.ranks.gather_object(shares)
        if not all(share for shares in everyones for share in shares):
            return None  # one has none to go along with, or cannot tell
        return InStep(self.engine, [max(share or 0 for share in of_one) for of_one in zip(*everyones)])

    def rehearse(self) -> None:
        """The sanity check before training, which leaves no trace."""
        steps = self.settings.num_sanity_val_steps
        self.phase = "sanity"
        self.hooks.call("on_sanity_check_start")
        self.target.send_media_to(None)
        with isolated_random_states():
            self.evaluate(limit=None if steps < 0 else steps, is_rehearsal=True)
        self.target.send_media_to(self.book.media)
        self.book.forget_rehearsal()
        self.hooks.call("on_sanity_check_end")
        self.phase = "preparing"

    def before_drop(self, is_after_hooks: bool) -> None:
        """A schedule is about to lower the rate in one jump."""
        assert self.saver is not None
        if not self.hooks.rates_are_set_by_a_callback:
            self.book.log_steps()  # this step's row: a run that goes on from there does not log it again
            self.saver.save_before_drop(as_of_mark=is_after_hooks)

    def may_remember(self) -> bool:
        """Gradients that wait for a step of the user's own are not copied, and a window's are dropped."""
        assert self.optimization is not None
        if self.progress.batches_in_window:
            return False
        return self.optimization.is_automatic or next(self.optimization.gradients(), None) is None

    def tell_once(self, sentence: str) -> None:
        """Print a warning, unless this fit has said it before."""
        if sentence not in self._told:
            self._told.add(sentence)
            self.print(f"WARNING: {sentence}")

    def tell_of_a_bad_loss(self) -> None:
        """Warn once where the last loss, or a weight stepped by hand, is NaN or infinite; for where values are read."""
        if self._told_of_bad_loss or not self.ranks.is_zero or self.optimization is None:
            return
        what = self.optimization.what_is_not_finite()
        if what is not None:
            self._told_of_bad_loss = True
            warnings.warn(
                f"{what} is not finite, at or before step {self.progress.global_step}, and training goes on. "
                "Trainer(detect_anomaly=True) raises at the operation that makes it so, and the callback "
                "NonFiniteGuard stops before such a step, skips it or rolls back",
                stacklevel=2,
            )

    def tell_of_what_does_not_learn(self) -> None:
        """Warn once of parameters that came too late for the optimizers, and of a manual epoch without a step."""
        assert self.optimization is not None
        late = self.optimization.without_an_optimizer_since()
        if late:
            shown = ", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
            self.tell_once(
                f"{shown}: made or unfrozen after configure_optimizers, so no optimizer has them and they do "
                "not learn. Make layers in __init__ or configure_model, and give configure_optimizers all that will "
                "ever be trained; BackboneFinetuning and BaseFinetuning unfreeze with a parameter group"
            )
        if self.optimization.manual_epoch_without_a_step:
            self.tell_once(
                f"{type(self.module).__name__}.training_step made no optimizer step in a whole epoch, so nothing was "
                "learned, and max_steps is never reached so. With automatic_optimization = False call step() of what "
                "self.optimizers() returns"
            )

    # -- the end, and profiling ----------------------------------------------------------------------------------------
    def let_go(self) -> None:
        """Keep nothing of the last batch, and take no more values."""
        self.phase = "ending"
        self.target.collect(None, on_step=False)
        self.target.send_media_to(None)
        self.batch = None
        self.stopping.stop_clock()
        self.ranks.rest()
        if self.optimization is not None:
            self.optimization.let_go()

    def time_with(self, timed: Timed, timed_hook: Timed) -> None:
        """Let what the fit is made of be timed; nothing has to be undone, since the parts die with it."""
        assert self.take_step is not None
        self.hooks.time_with(timed_hook)
        for part in (self.optimization, self.schedules, self.book, self.saver, self.data):
            assert part is not None
            part.time_with(timed)
        self.take_step = timed("training_step", self.take_step)
        self.validate = timed("validation", self.validate)

    @property
    def prefetch_says(self) -> str:
        """How copying ahead has done, or nothing where there is none."""
        prefetch = self.data.train.prefetch if self.data is not None else None
        return "" if prefetch is None else prefetch.describe()
