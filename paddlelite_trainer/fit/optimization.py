"""Optimization: from a loss to a moved weight: backward, accumulation windows, clipping, optimizer steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError, TrainingError
from ..gradients import clip_gradients_by_norm, clip_gradients_by_value, refuse_sparse, scale_gradient
from ..machine.paddle_internals import hold_back
from ..module import Module, is_written
from ..optimizers import ManualOptimizer, add_param_group, parameters_of, structured_names
from .steps import step_of

if TYPE_CHECKING:
    from ..machine.engine import Engine
    from ..machine.precision import Precision
    from ..progress import Progress
    from ..settings import Settings
    from .hooks import Hooks

_TENSOR = paddle.Tensor
_SCALAR_SHAPES: tuple[list[int], ...] = ([], [1])

_STEPS = ("step", "minimize")
_MOST_SKIPPED = 1000  # batches without a loss in a row: with max_steps alone a fit would never end


class Optimization:
    """The optimizers of one fit. Only it moves them, and raises `global_step`.

    `window` is the accumulation window of the running epoch, whatever is set meanwhile; `length` gives the batches of
    an epoch or None.
    """

    def __init__(
        self,
        module: Module,
        optimizers: Sequence[Any],
        settings: Settings,
        precision: Precision,
        progress: Progress,
        hooks: Hooks,
        length: Callable[[], int | None],
        *,
        schedules_follow: bool,
    ) -> None:
        self.module, self.optimizers, self.precision, self.progress = module, list(optimizers), precision, progress
        self.settings, self.hooks, self.length = settings, hooks, length
        self.is_automatic = module.automatic_optimization and bool(self.optimizers)  # else there is nothing to step
        self.training_step = step_of(module, "train")
        self.parameter_names = structured_names(module)
        self.manual_optimizers = [ManualOptimizer(optimizer, self._manual_step) for optimizer in self.optimizers]
        self.added_param_groups: list[dict[str, Any]] = []
        self.gradient_norm: Any = None
        self.engine: Engine | None = None
        self.stepping = self.optimizers
        """What steps in each optimizer's place."""
        self.last_loss: Any = None
        self.stepped_in = -1
        """`total_batches` when the last optimizer step was made: of the batch at hand, or of one before."""
        self.skips_step = self._is_stepping = False
        self._skipped, self._skipped_at = 0, (0, 0)  # batches without a loss in a row, and where the row began
        self._steps_before_epoch: int | None = None  # None where this process has not seen the epoch's first batch
        self._left_out = self._without_an_optimizer()
        self.toggled: list[tuple[Any, bool]] = []
        self.clips = settings.gradient_clip_val is not None or is_written(module, "configure_gradient_clipping")
        self.needs_closure = self.is_automatic and type(self.optimizers[0]).__name__ == "LBFGS"
        self.schedules_follow = schedules_follow
        """Whether a step makes a schedule due."""
        self.window = self.window_length = 1
        self.before_backward = hooks.of("on_before_backward")
        self.after_backward = hooks.of("on_after_backward")
        if not self.is_automatic:
            for optimizer in self.optimizers:
                for name in _STEPS:
                    self._count_raw_steps(optimizer, name)
        self.backward: Callable[..., None] = self._users_backward if is_written(module, "backward") else self._backward
        self.step: Callable[[], None] = self._step

    def use_engine(self, engine: Engine) -> None:
        """Let the ranks' gradients be shared by it."""
        self.engine, self.stepping = engine, [engine.stepping(optimizer) for optimizer in self.optimizers]
        self.backward = (engine.automatic if self.is_automatic else engine.manual)(self.backward)

    # -- the end of a batch --------------------------------------------------------------------------------------------
    def open_window(self) -> None:
        """An epoch begins, or goes on: accumulate over as many batches as are set for it."""
        self.window = self.settings.window_of(self.progress.current_epoch)
        if self.window != 1 and not self.is_automatic:
            refuse_what_manual_steps_ignore(self.settings)  # a hook has just set it
        self.window_length = self._length_of_window()
        self._steps_before_epoch = None if self.progress.epoch_is_open else self.progress.global_step

    def learn(self, outputs: Any, is_last: bool) -> None:
        """Backward through what training_step returned, and at a window's end the optimizer's step."""
        progress = self.progress
        if type(outputs) is _TENSOR:
            loss = outputs
        elif outputs is None:
            self._skip_batch(is_last)
            return
        else:
            loss = self._loss_in(outputs)
        if loss.stop_gradient or loss.shape not in _SCALAR_SHAPES:
            _refuse(loss)
        for hook in self.before_backward:
            hook(loss)
        if progress.batches_in_window == 0 and self.window != 1:
            self.window_length = self._length_of_window()
        self.backward(loss if self.window == 1 else loss / self.window_length)
        for hook in self.after_backward:
            hook()
        progress.batches_in_window += 1
        if progress.batches_in_window == self.window or is_last:
            self.step()

    def _backward(self, loss: Any, retain_graph: bool = False) -> None:
        try:
            self.precision.scale(loss).backward(retain_graph=retain_graph)
        except Exception as error:
            if self.is_automatic and "TensorWrappers" in str(error):
                raise TrainingError(
                    f"{type(self.module).__name__}.training_step has called backward of the loss that it returns, in "
                    f"batch {self.progress.batches_in_epoch}. Only return the loss: backward, optimizer.step() and "
                    "clear_grad() are the trainer's. To do them yourself, set automatic_optimization = False in the "
                    "module and call self.manual_backward(loss)."
                ) from error
            raise

    def _users_backward(self, loss: Any, retain_graph: bool = False) -> None:
        options = {"retain_graph": True} if retain_graph else {}  # one without the argument is called without it
        self.module.backward(self.precision.scale(loss), **options)

    def _step(self) -> None:
        """The end of an accumulation window."""
        progress, calls, optimizer = self.progress, self.hooks.calls, self.optimizers[0]
        stepping = self.stepping[0]
        if self.engine is not None:
            self.engine.gather_gradients()
        if progress.batches_in_window != self.window_length:
            self._rescale_gradients(self.window_length / progress.batches_in_window)
        progress.batches_in_window = 0
        scaler = self.precision.scaler
        if scaler is not None:
            self._refuse_what_cannot_be_unscaled(optimizer)
            self.precision.unscale(stepping)
        self.skips_step = False
        for hook in calls.get("on_before_optimizer_step", ()):
            hook(optimizer)
        if self.clips and not self.skips_step:
            settings = self.settings
            self.module.configure_gradient_clipping(
                optimizer, settings.gradient_clip_val, settings.gradient_clip_algorithm
            )
        progress.steps_begun += 1  # before the step, which may fail halfway
        if self.skips_step:
            self.precision.discard(stepping)
        elif scaler is None:
            stepping.step()
        else:
            self.precision.step(stepping)
            self.precision.update()
        for hook in calls.get("on_before_zero_grad", ()):
            hook(optimizer)
        stepping.clear_grad(False)  # to None: with zeros, parameters the loss does not use would still move
        progress.global_step += 1
        progress.schedulers_are_due = self.schedules_follow
        self.stepped_in = progress.total_batches

    def closure_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of an optimizer that evaluates the loss several times (LBFGS)."""
        outputs: Any = None
        (optimizer,), progress = self.optimizers, self.progress

        def closure() -> Any:
            nonlocal outputs
            optimizer.clear_grad(False)
            outputs = self.training_step(batch, batch_idx)
            loss = self._loss_in(outputs)
            self.hooks.call("on_before_backward", loss)
            self.backward(loss)
            self.hooks.call("on_after_backward")
            return loss

        self.hooks.call("on_before_optimizer_step", optimizer)
        progress.begin_step()
        optimizer.step(closure)
        optimizer.clear_grad(False)
        progress.end_step(schedulers_are_due=self.schedules_follow)
        self.stepped_in = progress.total_batches
        return outputs

    def end_open_window(self) -> bool:
        """Step with what waits, where an epoch ended inside a window; whether there was anything."""
        if not self.progress.batches_in_window:
            return False
        self.step()
        return True

    def _skip_batch(self, is_last: bool) -> None:
        """There is no loss: a window is so many losses, and the last of an epoch ends with it."""
        progress = self.progress
        where = f"{type(self.module).__name__}.training_step returned None"
        instead = "If that is not meant, return the loss."
        if not self._skipped:
            warnings.warn(
                f"{where} in batch {progress.batches_in_epoch}, so the batch is skipped: it makes no step. {instead}",
                stacklevel=2,
            )
        moved = progress.steps_begun, progress.batches_in_window
        self._skipped = 1 + (self._skipped if moved == self._skipped_at else 0)
        self._skipped_at = moved
        if is_last and self._skipped > progress.batches_in_epoch:
            epoch, count = progress.current_epoch, self._skipped
            raise TrainingError(f"{where} for all {count} batches of epoch {epoch}: nothing was learned. {instead}")
        if self._skipped == _MOST_SKIPPED:
            raise TrainingError(f"{where} for {_MOST_SKIPPED} batches in a row: nothing was learned. {instead}")
        progress.note_skipped()
        if is_last and progress.batches_in_window:
            self.step()

    def _length_of_window(self) -> int:
        length, progress = self.length(), self.progress
        if not progress.batches_in_window:
            progress.forget_skipped()
        first = progress.batches_in_epoch - progress.batches_in_window - progress.skipped_in_window
        return self.window if length is None else max(1, min(self.window, length - first))

    def _rescale_gradients(self, factor: float) -> None:
        # Only where a loader of unknown length ended inside a window, or a hook ended the epoch there.
        for parameter in self.gradients():
            scale_gradient(parameter, factor)

    def _loss_in(self, outputs: Any) -> Any:
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), _TENSOR):
            return outputs["loss"]
        if isinstance(outputs, _TENSOR):
            return outputs
        if isinstance(outputs, Mapping):
            got = f"a dict with keys {sorted(map(str, outputs))}"
        else:
            got = repr(outputs) if outputs is None else type(outputs).__name__
        raise TrainingError(
            f"{type(self.module).__name__}.training_step returned {got} in batch {self.progress.batches_in_epoch}. "
            "Return the loss tensor, or a dict that has it under 'loss'; "
            "to step optimizers yourself, set automatic_optimization = False in the module."
        )

    # -- what a module calls -------------------------------------------------------------------------------------------
    def manual_backward(self, loss: Any, retain_graph: bool) -> None:
        with self.precision.outside_autocast():
            self.backward(loss, retain_graph)

    def _manual_step(self, optimizer: Any, closure: Callable[[], Any] | None) -> Any:
        if closure is not None:
            return self._counted(optimizer, lambda: optimizer.step(closure))
        self._counted(optimizer, lambda: self.precision.step(optimizer))
        return None

    def _counted(self, optimizer: Any, take: Callable[[], Any]) -> Any:
        """One step in manual optimization, which `take` takes."""
        result = None
        with self.precision.outside_autocast():
            self.skips_step = False
            self._refuse_what_cannot_be_unscaled(optimizer)
            self.hooks.call("on_before_optimizer_step", optimizer)
            self.progress.begin_step()
            self._is_stepping = True
            try:
                if self.skips_step:
                    self.precision.discard(optimizer)
                else:
                    result = take()
            finally:
                self._is_stepping = False
        self.progress.end_step(schedulers_are_due=False)
        self.stepped_in = self.progress.total_batches
        return result

    def _count_raw_steps(self, optimizer: Any, name: str) -> None:
        """Let a step of the optimizer that the user has kept be one of `self.optimizers()`, until `let_go`."""
        own = getattr(optimizer, name)

        def step(*arguments: Any, **named: Any) -> Any:
            if self._is_stepping:
                return own(*arguments, **named)
            if self.precision.scaler is not None:
                raise TrainingError(
                    f"{name} of the optimizer itself knows nothing of float16's loss scale: in training_step use "
                    "optimizer = self.optimizers(), self.manual_backward(loss) and optimizer.step()"
                )
            return self._counted(optimizer, lambda: own(*arguments, **named))

        vars(optimizer)[name] = step

    def _refuse_what_cannot_be_unscaled(self, optimizer: Any) -> None:
        if self.precision.scaler is not None:
            with_gradients = [parameter for parameter in parameters_of(optimizer) if parameter.grad is not None]
            refuse_sparse(with_gradients, "float16's loss scale cannot be divided out of")

    def clip(self, optimizer: Any, value: float | None, algorithm: str | None) -> Any:
        """Clip the optimizer's gradients in place; returns their norm before, for "norm"."""
        if value is None:
            return None
        # The norm is over parameters that have a gradient, in the optimizer's order; as Paddle's own clips have it,
        # ParamAttr(need_clip=False) is left out of norm and clipping.
        parameters = [
            parameter
            for parameter in parameters_of(optimizer)
            if parameter.grad is not None and getattr(parameter, "need_clip", True)
        ]
        engine = self.engine
        if not parameters and (engine is None or not engine.is_sharded):
            return None
        with self.precision.outside_autocast():
            own = getattr(optimizer, "optimizer", optimizer)
            self.precision.unscale(own if engine is None else engine.stepping(own))
            if algorithm == "value":
                clip_gradients_by_value(parameters, value)
                return None
            norm = engine.norm(parameters) if engine is not None else None
            self.gradient_norm = clip_gradients_by_norm(parameters, value, norm)
            return self.gradient_norm

    def toggle(self, optimizer: Any) -> None:
        """Let only this optimizer's parameters collect gradients."""
        self.untoggle()
        wanted = {id(parameter) for parameter in parameters_of(getattr(optimizer, "optimizer", optimizer))}
        held_back = {id(parameter): parameter for other in self.optimizers for parameter in parameters_of(other)}
        for key, parameter in held_back.items():  # each once, though several optimizers may share it
            if key not in wanted:
                self.toggled.append((parameter, parameter.stop_gradient))
                hold_back(parameter, True)

    def untoggle(self) -> None:
        for parameter, stop_gradient in self.toggled:
            if parameter.stop_gradient:  # else somebody has unfrozen it meanwhile
                hold_back(parameter, stop_gradient)
        self.toggled.clear()

    def let_go(self) -> None:
        """Keep no batch's results, and leave every parameter as the user has it."""
        self.last_loss = None
        self.untoggle()
        if self.engine is not None:
            self.engine.let_go()
        for optimizer in () if self.is_automatic else self.optimizers:
            for name in _STEPS:
                vars(optimizer).pop(name, None)

    def skip_step(self) -> None:
        if self.needs_closure:
            raise ConfigurationError("skip_optimizer_step() cannot hold back LBFGS, which steps by itself")
        self.skips_step = True

    def add_param_group(
        self, parameters: Iterable[Any], *, optimizer_index: int, learning_rate: float, weight_decay: float | None
    ) -> None:
        if self.engine is not None:
            self.engine.refuse_new_parameters()
        added = list(parameters)
        optimizer = self.optimizers[optimizer_index]
        add_param_group(optimizer, added, learning_rate=learning_rate, weight_decay=weight_decay)
        self.added_param_groups.append(
            {
                "optimizer_index": optimizer_index,
                "parameters": [self.parameter_names[parameter.name] for parameter in added],
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
            }
        )

    # -- looking -------------------------------------------------------------------------------------------------------
    def gradients(self) -> Iterator[Any]:
        """Parameters that have a gradient now, of all the optimizers."""
        for optimizer in self.optimizers:
            for parameter in parameters_of(optimizer):
                if parameter.grad is not None:
                    yield parameter

    @property
    def last_loss_tensor(self) -> Any:
        """The last batch's loss, on the device; None where there is none, or its step was skipped."""
        outputs = self.last_loss
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        return loss if isinstance(loss, _TENSOR) and loss.is_floating_point() and loss.size else None

    def what_is_not_finite(self) -> str | None:
        """The last batch's loss, or weights stepped by hand where there is none; a copy to the host."""
        loss = self.last_loss_tensor
        if loss is not None:
            what, values = "the loss", [loss]
        elif self.is_automatic:
            return None  # the step was skipped, or there was none
        else:
            what = "a weight"
            of_optimizers = (parameter for optimizer in self.optimizers for parameter in parameters_of(optimizer))
            values = [value for value in of_optimizers if value.is_floating_point() and value.size]
        with paddle.no_grad():
            are_finite = [paddle.isfinite(value).all() for value in values]
            return None if not are_finite or bool(paddle.stack(are_finite).all().item()) else what

    def _without_an_optimizer(self) -> set[str]:
        held = {id(parameter) for optimizer in self.optimizers for parameter in parameters_of(optimizer)}
        learning = ((name, p) for name, p in self.module.named_parameters() if not p.stop_gradient)
        return {name for name, parameter in learning if id(parameter) not in held}

    def without_an_optimizer_since(self) -> list[str]:
        """Parameters that learn and have no optimizer, and were not so when the optimizers were made."""
        return sorted(self._without_an_optimizer() - self._left_out) if self.optimizers else []

    @property
    def manual_epoch_without_a_step(self) -> bool:
        """Whether the epoch that is over was handled wholly here, by hand, and no optimizer has stepped in it."""
        may_step = not self.is_automatic and bool(self.optimizers) and self.progress.batches_in_epoch > 0
        return may_step and self.progress.global_step == self._steps_before_epoch

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.backward, self.step = timed("backward", self.backward), timed("optimizer step", self.step)
        self.before_backward = self.hooks.of("on_before_backward")
        self.after_backward = self.hooks.of("on_after_backward")


def _refuse(loss: Any) -> None:
    if loss.shape not in _SCALAR_SHAPES:
        raise TrainingError(
            f"the loss must be a single number, got a tensor of shape {list(loss.shape)}. Return its mean() or sum()."
        )
    raise TrainingError(
        "the loss is not attached to any parameter, so there is nothing to learn from (its stop_gradient is True). "
        "It was detached, computed under paddle.no_grad(), passed through NumPy, or every parameter is frozen."
    )


def refuse_what_manual_steps_ignore(settings: Settings) -> None:
    """Raise ConfigurationError for what the Trainer does before its own steps of an optimizer, where there are none."""
    ignored, instead = "", ""
    if max(settings.accumulation.values()) > 1:
        windows = settings.accumulation if len(settings.accumulation) > 1 else settings.accumulation[0]
        ignored = f"accumulate_grad_batches={windows}"
        instead = "call optimizer.step() after as many batches as you want"
    if settings.gradient_clip_val is not None:
        value = settings.gradient_clip_val
        ignored = f"gradient_clip_val={value}"
        instead = f"call self.clip_gradients(optimizer, {value}) before optimizer.step()"
    if ignored:
        raise ConfigurationError(
            f"{ignored} would have no effect: with automatic_optimization = False the optimizers' steps are yours. "
            f"Leave it out, and in training_step {instead}."
        )
