"""ModelCheckpoint: says at each save point whether a checkpoint is due, and which checkpoints are kept."""

from __future__ import annotations

import itertools
import math
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paddlelite_trainer import Callback, Module, SavePoint, Trainer
from paddlelite_trainer.callback import from_here
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, explains_unknown_arguments

from .monitoring import Mode, MonitoredMetric, check_monitor, not_logged, should_be_there
from .ranking import Ranking

if TYPE_CHECKING:
    from paddlelite_trainer.checkpoint import Entry

_PLACEHOLDER = re.compile(r"\{([^{}:]+)(:[^{}]*)?\}")
_COUNTERS = ("epoch", "step")
"""What a checkpoint has without anybody logging it."""
_RESERVED = {"latest", "last", "best", "recent", "checkpoints"}


class ModelCheckpoint(Callback):
    """Keeps the latest checkpoint, and with a `monitor` the best ones.

        ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=3)

    A checkpoint is written once; each reason to keep it is a *pin*, a link in the run directory with `.pdparams` and
    `.pdopt` beside it, and what no pin holds is deleted:

    - `latest`: the newest, refreshed whenever anything is saved, whatever top-k thinks (`save_last`).
    - `best_<monitor>`: the `save_top_k` best, the link leads to the first; `best` is the same for the first
      ModelCheckpoint in the list that has a monitor. Without a monitor nothing is called best.
    - a name made from `filename`, such as "{epoch:02d}-{val_acc:.3f}", for each checkpoint kept.
    - `recent`: the last `keep_last_n`.
    - `epoch_<N>`: every `archive_every_n_epochs`, for good.
    - `before-lr-drop-epoch_<N>`, or `before-lr-drop-step_<N>` where the schedule goes by steps: with
      `save_before_lr_drop`, the state at the old learning rate just before a step, piecewise or plateau schedule lowers
      it, for good.

    A score counts only for the weights that earned it: a checkpoint between two validations refreshes `latest` and is
    not compared. Ties keep the earlier checkpoint, NaN and infinity are never best, and a checkpoint whose weights are
    not finite never pushes out a finite one. All of this is decided from what is on disk, so it holds across
    resumes, crashes and moved run directories.

    `{epoch}` is the number of completed epochs, as everywhere in a checkpoint.

    Args:
        verbose: tell of each checkpoint kept.
        save_last: whether `latest` is kept; "link" is the same as True.
        mode: whether "min" or "max" of `monitor` is better.
        auto_insert_metric_name: names of `filename` tell the metric's name too.
        keep_last_n: how many of the newest are kept, whatever their score; None: no more than `latest`.
        save_before_lr_drop: keep the state before each drop of the learning rate.
        archive_every_n_epochs: keep a checkpoint every so many epochs for good; None: none.
        dirpath: checkpoints live in the run directory; a folder given here gets links to this callback's pins.
        filename: names for the checkpoints kept; `auto_insert_metric_name` writes `val_acc=0.912` instead of `0.912`.
        save_top_k: how many of the best are kept; 0 for none, -1 for every checkpoint. Without a monitor only -1, 0
            and 1 (the newest).
        monitor: the name of a logged metric, or "epoch" or "step": `monitor="step", mode="max"` keeps the newest.
        save_weights_only: write no optimizer and no training state. `latest` is then left alone: it is there to go on
            from.
        every_n_train_steps: save every so many optimizer steps; of this and the next two at most one is given.
        train_time_interval: save every so often: "00:00:30:00", a timedelta, or {"minutes": 30}.
        every_n_epochs: save every so many epochs, 1 by default. {0: 5, 0.3: 20} saves every 5 epochs, and every 20
            after 30 % of max_epochs; whole numbers are epochs. The last epoch of a run always refreshes `latest`.
        save_on_train_epoch_end: None saves at each epoch's end and after validations within an epoch; True leaves out
            the latter, False leaves out epochs' ends without a validation.
        save_on_exception: save what the last complete batch left when something raises. Like what a signal saves, it is
            `latest` and no more: not ranked, not named and not one of `keep_last_n`, as an undisturbed run has it not.
    """

    @explains_unknown_arguments({"enable_version_counter": "a name that is taken moves to the newer checkpoint"})
    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = True,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: Mode = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | float | None = None,
        every_n_epochs: int | Mapping[int | float, int] | None = None,
        save_on_train_epoch_end: bool | None = None,
        *,
        keep_last_n: int | None = None,
        save_before_lr_drop: bool = False,
        archive_every_n_epochs: int | None = None,
    ) -> None:
        check_monitor("ModelCheckpoint", monitor, mode)
        _refuse_url(dirpath)
        self.monitor = monitor
        self._ranks_by_counter = monitor in _COUNTERS
        self.mode = mode
        self.verbose = verbose
        self.save_last = bool(save_last)
        self.save_top_k = _whole("save_top_k", save_top_k, at_least=-1)
        _refuse_top_k_of_nothing(save_top_k, monitor)
        self.save_weights_only = save_weights_only
        self.every_n_train_steps = _whole_or_none("every_n_train_steps", every_n_train_steps)
        self.train_time_interval = _seconds(train_time_interval)
        self.every_n_epochs = _epoch_schedule(every_n_epochs)
        if _one_way(self, "every_n_train_steps", "train_time_interval", "every_n_epochs") is None:
            self.every_n_epochs = {0: 1} if every_n_epochs is None and not every_n_train_steps else {}
        self.save_on_train_epoch_end = save_on_train_epoch_end
        self.save_on_exception = save_on_exception
        self.keep_last_n = _whole_or_none("keep_last_n", keep_last_n)
        self.save_before_lr_drop = save_before_lr_drop
        self.archive_every_n_epochs = _whole_or_none("archive_every_n_epochs", archive_every_n_epochs)
        self.auto_insert_metric_name = auto_insert_metric_name
        if filename is not None:
            _check_filename(filename, auto_insert_metric_name)
        needs_a_name = save_top_k == -1 or (monitor is None and save_top_k == 1 and not self.save_last)
        self.filename = filename or ("{epoch}-{step}" if needs_a_name else None)  # else nothing keeps the checkpoint
        self._current_score: float | None = None
        self._dirpath = None if dirpath is None else Path(dirpath).expanduser().absolute()
        self._trainer: Trainer | None = None
        self._metric = MonitoredMetric(monitor or "")
        self._validated_at: int | None = None  # the step of the last validation
        self._ranks_scores = self._told_that_it_cannot = False
        self._owes_loggers_word = False  # of a checkpoint that was not there yet when it was asked for
        self._saved_at: int | None = None  # the step of this fit's last save that was due
        self._best_pins: list[str] = []
        self._ranking = Ranking(self._rank_key, self._name_of if self.filename else None)
        self._may_save_after_a_batch = bool(self.every_n_train_steps or self.train_time_interval)
        self._last_save = time.monotonic()
        self._step_due: int | None = None  # the step of the last save that was due; None until training starts
        self._epoch_starts: list[tuple[float, int]] = []

    # -- what is kept of this callback: when it saved last ---------------------------------------------------------
    @property
    def state_key(self) -> str:
        when = self.every_n_train_steps or self.train_time_interval or self.every_n_epochs
        return f"ModelCheckpoint(monitor={self.monitor!r}, mode={self.mode!r}, every={when!r})"

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds_since_save": time.monotonic() - self._last_save,
            "current_score": self._current_score,
            "step_due": self._step_due,
            "validated_at": self._validated_at,
            "metric": self._metric.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_save = time.monotonic() - state_dict["seconds_since_save"]
        self._current_score = state_dict["current_score"]
        self._step_due = state_dict.get("step_due")
        self._validated_at = state_dict.get("validated_at")
        self._metric.load_state_dict(state_dict.get("metric"))

    # -- when --------------------------------------------------------------------------------------------------------
    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        self._trainer = trainer
        self._step_due, self._validated_at, self._owes_loggers_word = None, None, False
        if not trainer.enable_checkpointing and not trainer.fast_dev_run:
            raise ConfigurationError(
                "a ModelCheckpoint was passed together with enable_checkpointing=False: drop one of the two"
            )
        ranking = [other for other in trainer.checkpoint_callbacks if other.monitor and other.save_top_k]
        if self in ranking:
            rivals = [other for other in ranking if _pin_name(other.monitor) == _pin_name(self.monitor or "")]
            number = rivals.index(self) + 1
            own = f"best_{_pin_name(self.monitor or '')}" + (f"_{number}" if number > 1 else "")
            self._best_pins = [own, "best"] if ranking[0] is self else [own]
        if self.keep_last_n and any(other.keep_last_n for other in trainer.checkpoint_callbacks if other is not self):
            raise ConfigurationError("keep_last_n counts all checkpoints: give it to one ModelCheckpoint only")
        self._epoch_starts = self._schedule_for(trainer.max_epochs)

    def _schedule_for(self, max_epochs: int | None) -> list[tuple[float, int]]:
        starts = []
        for start, interval in self.every_n_epochs.items():
            if isinstance(start, float) and 0.0 < start < 1.0:
                if max_epochs is None or max_epochs < 0:
                    raise ConfigurationError(
                        f"ModelCheckpoint(every_n_epochs={dict(self.every_n_epochs)}): "
                        f"{start} is a share of max_epochs, which is not set; give a number of epochs"
                    )
                starts.append((start * max_epochs, interval))
            else:
                starts.append((start, interval))
        return sorted(starts)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if self._step_due is None:
            self._step_due = trainer.global_step
        imported, store = trainer.imported_best, trainer.checkpoint_store
        if imported is not None and store is not None and self.monitor in imported.metrics and self._best_pins:
            store.set_pins({pin: [imported.name] for pin in self._best_pins})
        self._ranks_scores = self._told_that_it_cannot = False
        self._saved_at = None
        if self.monitor is not None:
            self._metric.begin(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking and trainer.state == "fit":
            self._validated_at = trainer.global_step
            if self.monitor is not None:
                self._metric.look(trainer)

    def on_save_point(self, trainer: Trainer, module: Module, save_point: SavePoint) -> dict[str, list[str]] | None:
        reason = save_point.reason
        if reason == "train_batch" and not self._may_save_after_a_batch:
            return None
        if reason == "lr_drop":
            return self._pins_before_lr_drop(trainer, save_point) if self.save_before_lr_drop else None
        if save_point.is_added and not self.save_weights_only:
            return self._added(trainer, save_point)
        if self.monitor is not None and reason == "train_epoch" and not self._ranks_by_counter:
            self._metric.look(trainer)
            if self.monitor not in trainer.callback_metrics and should_be_there(
                trainer, self._validated_at is not None
            ):
                raise not_logged("ModelCheckpoint", self.monitor, trainer)
        is_due = self._is_due(trainer, reason)
        if is_due and reason not in ("exception", "stop"):  # an undisturbed run has none of these
            self._step_due = self._saved_at = trainer.global_step
        if is_due and self.monitor is not None:
            self._metric.look(trainer)
            self._ranks_scores = self._ranks_scores or self._metric.step == trainer.global_step
        if reason == "train_epoch":
            self._warn_where_no_save_meets_a_score(trainer)
        epoch = trainer.current_epoch
        archives = reason == "train_epoch" and self.archive_every_n_epochs and epoch % self.archive_every_n_epochs == 0
        if not (is_due or archives or (reason == "train_epoch" and _is_last_epoch(trainer))):
            return None
        self._tell_of_the_one_before(trainer, save_point)
        pins: dict[str, list[str]] = {}
        if is_due and self.monitor is None:
            pins.update(self._unranked(save_point))
        elif is_due:
            pins.update(self._ranked(trainer, save_point))
        if archives:
            pins[f"epoch_{epoch}"] = [save_point.candidate.name]
        pins.update(self._newest(save_point))
        if all(save_point.candidate.name not in names for names in pins.values()):
            return None  # nothing would keep it
        self._last_save = time.monotonic()
        self._link_from_dirpath(trainer, pins)
        self._owes_loggers_word = True
        return pins

    def _added(self, trainer: Trainer, save_point: SavePoint) -> dict[str, list[str]] | None:
        """What a crash or a signal adds: an undisturbed run has no such checkpoint, so it is the latest and no more.

        Neither ranked nor counted by keep_last_n nor named: what a run keeps depends on what it measured and saved, not
        on where it was interrupted.
        """
        if save_point.reason == "exception" and not self.save_on_exception:
            return None
        self._last_save = time.monotonic()
        pins = {"latest": [save_point.candidate.name, *self._sound(save_point)]}
        self._link_from_dirpath(trainer, pins)
        self._owes_loggers_word = True
        return pins

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit" and self._owes_loggers_word:
            self._tell_loggers(trainer)

    def _tell_of_the_one_before(self, trainer: Trainer, save_point: SavePoint) -> None:
        if self._owes_loggers_word and save_point.entries:  # asked for, it is there
            self._tell_loggers(trainer)

    def _tell_loggers(self, trainer: Trainer) -> None:
        self._owes_loggers_word = False
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)

    def _warn_where_no_save_meets_a_score(self, trainer: Trainer) -> None:
        """Once, at the first epoch's end that has both scores and saves of this fit, and none of them together."""
        if self._told_that_it_cannot or self._ranks_scores or not self._best_pins:
            return
        if self._saved_at is None or not self._metric.times or not trainer.is_global_zero:
            return
        self._told_that_it_cannot = True
        if self.every_n_train_steps:
            when = f"every_n_train_steps={self.every_n_train_steps}"
            remedy = "choose a divisor of the steps between two of its values, or leave every_n_train_steps out"
        elif self.train_time_interval:
            when = f"train_time_interval={self.train_time_interval:g}"
            remedy = "use a ModelCheckpoint of its own for the best, without train_time_interval"
        else:
            when = f"save_on_train_epoch_end={self.save_on_train_epoch_end}"
            remedy = "leave save_on_train_epoch_end out, to save after each validation too"
        warnings.warn(
            f"ModelCheckpoint(monitor={self.monitor!r}, {when}) keeps no best so far: it saved at step "
            f"{self._saved_at} and {self.monitor!r} came at step {self._metric.step}, and a score counts only for the "
            f"weights that earned it. To keep the best, {remedy}.",
            stacklevel=2,
        )

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._best_pins and not self._ranks_by_counter:
            has_validated = self._validated_at is not None
            self._metric.warn_if_it_never_came("ModelCheckpoint", trainer, has_validated=has_validated)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        self._tell_the_best(trainer)

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        self._tell_the_best(trainer)

    def _tell_the_best(self, trainer: Trainer) -> None:
        """One line where a fit ends: whose weights are best, and where they are."""
        best = self._best()[:1] if self._best_pins and trainer.is_global_zero else []
        for entry in best:
            score = f"{self._metric.name} {self._score_in(entry):.6g}"
            where = from_here(f"{trainer.run_dir}/{self._best_pins[0]}.pdparams")
            trainer.print(f"Best: {score}, of epoch {entry.epoch}, step {entry.step}: {where}")

    def _is_due(self, trainer: Trainer, reason: str) -> bool:
        if reason in ("exception", "stop"):
            return self.save_on_exception or reason == "stop"
        if self.every_n_train_steps:
            return self._is_step_due(trainer.global_step, self.every_n_train_steps, reason)
        if self.train_time_interval:
            return time.monotonic() - self._last_save >= self.train_time_interval
        if reason == "train_epoch":
            if self.save_on_train_epoch_end is False and self._validated_at != trainer.global_step:
                return False
            return self._is_epoch_due(trainer.current_epoch)
        return self.save_on_train_epoch_end is not True and self._is_epoch_due(trainer.current_epoch + 1)

    def _is_step_due(self, step: int, every_n: int, reason: str) -> bool:
        """Whether a multiple was reached or, where a batch takes several steps, passed since the save before."""
        before = self._step_due or 0
        # What a validation or an epoch's end adds to a step that was saved belongs to its checkpoint.
        return step // every_n > before // every_n or (
            step == before and step % every_n == 0 and step > 0 and reason != "train_batch"
        )

    def _is_epoch_due(self, epoch: int) -> bool:
        """Whether the schedule wants the `epoch`-th epoch, counted from 1."""
        interval = 0
        for start, every_n in self._epoch_starts:
            if start < epoch:
                interval = every_n
        return interval > 0 and epoch % interval == 0

    # -- which ---------------------------------------------------------------------------------------------------------
    def _newest(self, save_point: SavePoint) -> dict[str, list[str]]:
        candidate, entries = save_point.candidate, save_point.entries
        sound = self._sound(save_point)
        pins = {}
        if self.save_last and not self.save_weights_only:
            pins["latest"] = [candidate.name, *sound]
        if self.keep_last_n:
            # The same step saved again holds the same weights: the newer one takes the place.
            recent = (one for one in reversed(entries) if "recent" in one.pins and one.step != candidate.step)
            earlier = [entry.name for entry in itertools.islice(recent, self.keep_last_n - 1)]
            pins["recent"] = [candidate.name, *earlier, *(name for name in sound if name not in earlier)]
        return pins

    def _sound(self, save_point: SavePoint) -> list[str]:
        """The newest that is finite, which must stay where this one is not, so that something sound is left."""
        if save_point.candidate.healthy:
            return []
        healthy = (entry.name for entry in reversed(save_point.entries) if entry.healthy)
        return list(itertools.islice(healthy, 1))

    def _ranked(self, trainer: Trainer, save_point: SavePoint) -> dict[str, list[str]]:
        """The best checkpoints, if the candidate is among them."""
        candidate = save_point.candidate
        score = self._current_score = self._score_of(candidate)
        earned_here = self._ranks_by_counter or self._metric.step == candidate.step
        pins: dict[str, list[str]] = {}
        if earned_here and score is not None and math.isfinite(score) and candidate.healthy and self._best_pins:
            pins.update(self._with_candidate(trainer, save_point, score))
        if self.save_top_k < 0 and not pins:
            pins.update(self._named([candidate], []))
        return pins

    def _with_candidate(self, trainer: Trainer, save_point: SavePoint, score: float) -> dict[str, list[str]]:
        candidate, ranking = save_point.candidate, self._ranking
        held = trainer.checkpoints.pins()
        is_new = not ranking.is_of(held.get(self._best_pins[0], ()))
        if is_new:
            ranking.read(self._kept(save_point.entries), held.get(self._best_pins[0], ()))
        place = ranking.place_of(candidate)
        if 0 <= self.save_top_k <= place:
            return {}
        dropped = ranking.add(candidate, self.save_top_k)
        names = ranking.names
        if self.verbose:
            trainer.print(
                f"Epoch {candidate.epoch}, step {candidate.step}: {self.monitor} {score:.6g} is number {place + 1} of "
                f"the best {len(names)}"
            )
        pins = dict.fromkeys(self._best_pins, names)
        if self.filename is not None:
            named = [entry for entry in dropped if self._has_name(entry)]
            pins.update(ranking.all_named() if is_new else ranking.named([candidate, *named]))
            for entry in named:
                name = self._name_of(entry)
                if entry.name in held.get(name, ()) and not self._is_archive(name, entry):
                    pins.setdefault(name, [])
        return pins

    def _unranked(self, save_point: SavePoint) -> dict[str, list[str]]:
        if self.save_top_k == 0:
            return {}
        return self._named([save_point.candidate], save_point.entries if self.save_top_k == 1 else [])

    def _kept(self, entries: Sequence[Entry]) -> list[Entry]:
        return [
            entry
            for entry in entries
            if self._best_pins and self._best_pins[0] in entry.pins and self._score_of(entry) is not None
        ]

    def _by_score(self, entries: list[Entry]) -> list[Entry]:
        return sorted(entries, key=self._rank_key)

    def _rank_key(self, entry: Entry) -> tuple[float, tuple[int, int]]:
        return (self._score_in(entry) if self.mode == "min" else -self._score_in(entry)), entry.order

    def _score_of(self, entry: Entry) -> float | None:
        if self._ranks_by_counter:
            return float(entry.epoch if self.monitor == "epoch" else entry.step)
        return entry.metrics.get(self._metric.name)

    def _score_in(self, entry: Entry) -> float:
        """Of an entry that is known to have one."""
        score = self._score_of(entry)
        assert score is not None
        return score

    def _pins_before_lr_drop(self, trainer: Trainer, save_point: SavePoint) -> dict[str, list[str]]:
        candidate = save_point.candidate
        by_step = trainer.progress.schedulers_are_due
        where = f"step_{candidate.step}" if by_step else f"epoch_{candidate.epoch + 1}"
        return {f"before-lr-drop-{where}": [candidate.name], **self._newest(save_point)}

    # -- names ---------------------------------------------------------------------------------------------------------
    def _named(self, kept: Sequence[Entry], dropped: Sequence[Entry]) -> dict[str, list[str]]:
        """A pin for each kept checkpoint's own name, and the removal of the others'."""
        if self.filename is None:
            return {}
        pins: dict[str, list[str]] = {}
        for entry in kept:
            pins.setdefault(self._name_of(entry), []).append(entry.name)
        for entry in filter(self._has_name, dropped):
            name = self._name_of(entry)
            if name in entry.pins and not self._is_archive(name, entry):
                pins.setdefault(name, [])
        return pins

    def _has_name(self, entry: Entry) -> bool:
        return all(name in entry.metrics or name in _COUNTERS for name in _placeholders(self.filename or ""))

    def _name_of(self, entry: Entry) -> str:
        def fill(match: re.Match[str]) -> str:
            name, spec = match[1], (match[2] or ":")[1:]
            known: dict[str, Any] = {"epoch": entry.epoch, "step": entry.step, **entry.metrics}
            if name not in known:
                raise not_logged(f"ModelCheckpoint(filename={self.filename!r})", name, self._of_trainer(), "names")
            text = format(known[name], spec)
            return f"{name}={text}" if self.auto_insert_metric_name else text

        return _pin_name(_PLACEHOLDER.sub(fill, self.filename or ""))

    def _is_archive(self, name: str, entry: Entry) -> bool:
        every = self.archive_every_n_epochs
        return every is not None and name == f"epoch_{entry.epoch}" and entry.epoch % every == 0

    def _link_from_dirpath(self, trainer: Trainer, pins: Mapping[str, Sequence[str]]) -> None:
        folder, run_dir = self._dirpath, trainer.run_dir
        if (
            folder is None
            or run_dir is None
            or not trainer.is_global_zero
            or folder in (run_dir, run_dir / "checkpoints")
        ):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for pin, names in pins.items():
                for suffix in ("", ".pdparams", ".pdopt"):
                    link = folder / f"{pin}{suffix}"
                    if link.is_symlink():
                        link.unlink()
                    if names:
                        link.symlink_to(run_dir / f"{pin}{suffix}")
        except OSError as error:
            warnings.warn(
                f"ModelCheckpoint(dirpath={str(folder)!r}): no links there ({error}); the checkpoints are in {run_dir}",
                stacklevel=2,
            )

    # -- to read, on every rank ---------------------------------------------------------------------------------------
    def _of_trainer(self) -> Trainer:
        if self._trainer is None:
            raise ConfigurationError("this ModelCheckpoint has not been in a fit yet")
        return self._trainer

    def _best(self) -> list[Entry]:
        if self._trainer is None or self._trainer.run_dir is None:
            return []
        return self._by_score(self._kept(self._trainer.checkpoints.entries()))

    @property
    def current_score(self) -> float | None:
        """The monitored value at the last save; on ranks above 0, which do not save, of the newest checkpoint."""
        if self._trainer is None or self._trainer.is_global_zero or self._trainer.run_dir is None:
            return self._current_score
        entries = self._trainer.checkpoints.entries()
        return self._score_of(entries[-1]) if entries else None

    @property
    def best_model_path(self) -> str:
        """The best checkpoint's directory; "" where nothing is best."""
        best = self._best()
        return str(best[0].path) if best else ""

    @property
    def best_model_score(self) -> float | None:
        """The monitored value of the best checkpoint, None where there is none."""
        best = self._best()
        return self._score_in(best[0]) if best else None

    @property
    def best_k_models(self) -> dict[str, float]:
        """{directory: score}, best first."""
        return {str(entry.path): self._score_in(entry) for entry in self._best()}

    @property
    def kth_best_model_path(self) -> str:
        """The directory of the one that the next better checkpoint pushes out; "" where nothing is best."""
        best = self._best()
        return str(best[-1].path) if best else ""

    @property
    def kth_value(self) -> float | None:
        """Its score."""
        best = self._best()
        return self._score_in(best[-1]) if best else None

    @property
    def last_model_path(self) -> str:
        """The newest checkpoint's directory; "" where there is none."""
        if self._trainer is None or self._trainer.run_dir is None:
            return ""
        latest = [entry for entry in self._trainer.checkpoints.entries() if "latest" in entry.pins]
        return str(latest[-1].path) if latest else ""

    @property
    def dirpath(self) -> str | None:
        """Where checkpoints are; None before a run has a directory."""
        run_dir = None if self._trainer is None else self._trainer.run_dir
        return None if run_dir is None else str(run_dir / "checkpoints")


def _is_last_epoch(trainer: Trainer) -> bool:
    if trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:
        return True
    return trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch


def _pin_name(text: str) -> str:
    """A name that is a file's on every system: anything but letters, digits and `._=+-` becomes `_`."""
    return re.sub(r"[^\w.=+-]", "_", text).lstrip(".")


def _placeholders(filename: str) -> list[str]:
    return [match[1] for match in _PLACEHOLDER.finditer(filename)]


def _check_filename(filename: str, auto_insert_metric_name: bool) -> None:
    if "{" in _PLACEHOLDER.sub("", filename) or "}" in _PLACEHOLDER.sub("", filename):
        raise ConfigurationError(f"ModelCheckpoint(filename={filename!r}): a brace is not closed, or holds no name")
    for match in _PLACEHOLDER.finditer(filename):
        example: Any = 0 if match[1] in ("epoch", "step") else 0.5
        try:
            format(example, (match[2] or ":")[1:])
        except ValueError as error:
            raise ConfigurationError(
                f"ModelCheckpoint(filename={filename!r}): {match[0]} cannot show {example!r}: {error}"
            ) from error
    only_numbers = not auto_insert_metric_name and not _PLACEHOLDER.sub("", filename).strip("0123456789")
    if only_numbers and set(_placeholders(filename)) <= {"epoch", "step"}:
        raise ConfigurationError(
            f"ModelCheckpoint(filename={filename!r}) makes a bare number, which means a step; "
            f"add something, for example 'at-{filename}'"
        )
    name = _pin_name(filename)
    if not name or name in _RESERVED or name.startswith("best_"):
        raise ConfigurationError(
            f"ModelCheckpoint(filename={filename!r}) is a name the run directory uses itself; "
            f"add something, for example '{{epoch}}'"
        )


def _epoch_schedule(every_n_epochs: int | Mapping[int | float, int] | None) -> dict[int | float, int]:
    if every_n_epochs is None:
        return {}
    if not isinstance(every_n_epochs, Mapping):
        number = _whole("every_n_epochs", every_n_epochs, at_least=0)
        return {0: number} if number else {}
    for start, interval in every_n_epochs.items():
        _whole("every_n_epochs", interval, at_least=1)
        if isinstance(start, bool) or not isinstance(start, (int, float)) or start < 0 or 1.0 <= start != int(start):
            raise ConfigurationError(
                f"ModelCheckpoint(every_n_epochs={dict(every_n_epochs)}): "
                f"a start is a number of epochs or a share of max_epochs between 0 and 1, got {start!r}"
            )
    return dict(every_n_epochs)


def _whole(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationTypeError(f"ModelCheckpoint({name}=...) must be an integer, got {value!r}")
    if value < at_least:
        raise ConfigurationError(f"ModelCheckpoint({name}=...) must be >= {at_least}, got {value}")
    return value


def _whole_or_none(name: str, value: Any) -> int | None:
    return None if value is None else _whole(name, value, at_least=0) or None


def _seconds(interval: timedelta | float | None) -> float | None:
    if interval is None:
        return None
    if isinstance(interval, bool) or not isinstance(interval, (timedelta, int, float)):
        raise ConfigurationTypeError(
            f"ModelCheckpoint(train_time_interval=...) is a timedelta or seconds, got {interval!r}"
        )
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
    if seconds <= 0:
        raise ConfigurationError(
            f"ModelCheckpoint(train_time_interval=...) must be longer than nothing, got {interval!r}"
        )
    return seconds


def _refuse_url(dirpath: object) -> None:
    if isinstance(dirpath, str) and "://" in dirpath:
        raise ConfigurationError(
            f"ModelCheckpoint(dirpath={dirpath!r}): checkpoints are written to a disk first. "
            f"To have them in an object storage too, add RemoteCopy({dirpath!r}) to the callbacks."
        )


def _refuse_top_k_of_nothing(save_top_k: int, monitor: str | None) -> None:
    if monitor is None and save_top_k > 1:
        raise ConfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}) needs a monitor: without one no checkpoint is better than "
            f"another. Pass monitor='val_loss', or keep_last_n={save_top_k} to keep the newest {save_top_k}."
        )


def _one_way(owner: ModelCheckpoint, *ways: str) -> str | None:
    """Which of the ways to say when to save was chosen, if any."""
    chosen = [name for name in ways if getattr(owner, name)]
    if len(chosen) > 1:
        raise ConfigurationError(
            f"ModelCheckpoint takes one of {' and '.join(chosen)}; "
            "for both use two ModelCheckpoints, which write one checkpoint where they agree"
        )
    return chosen[0] if chosen else None
