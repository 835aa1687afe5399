"""Autocast, loss scaling and the parameters' type, as one stateful part."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import paddle
from paddle.optimizer import Optimizer

from ..errors import CheckpointMismatchError, ConfigurationError, did_you_mean
from . import paddle_internals
from .device import Device, resolve_device
from .trees import mapped

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}
_ELSEWHERE = {
    **dict.fromkeys(("fp16", "float16", "half", "amp"), "16-mixed"),
    **dict.fromkeys(("fp32", "float32"), "32-true"),
    **dict.fromkeys(("fp64", "float64", "double"), "64-true"),
    "bfloat16": "bf16-mixed",
}
_LEVELS = {"O0": "'32-true'", "O1": "'16-mixed' or 'bf16-mixed'", "O2": "'16-true' or 'bf16-true'"}
_HALF = {"16-mixed": "float16", "16-true": "float16", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16"}
HOPELESS = 20  # skipped steps in a row; from Paddle's first scale, 65536, 16 lead to a scale of 1
_SCALER_OPTIONS = (
    "init_loss_scaling",
    "incr_ratio",
    "decr_ratio",
    "incr_every_n_steps",
    "decr_every_n_nan_or_inf",
    "use_dynamic_loss_scaling",
)


def parse_precision(precision: str | int) -> str:
    """The full name (one of PRECISIONS) of a precision or of a short form of Lightning's: 32, 16, "bf16", 64."""
    name = _SHORT.get(str(precision), str(precision))
    if isinstance(precision, bool) or name not in PRECISIONS:
        known = [*PRECISIONS, *_SHORT]
        hint = f" Did you mean {_ELSEWHERE[name]!r}?" if name in _ELSEWHERE else did_you_mean(name, known)
        if name in _LEVELS:
            hint = f" Paddle's level {name} is {_LEVELS[name]} here."
        raise ConfigurationError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.{hint}")
    return name


class Precision:
    """How a run computes: "mixed" is Paddle's AMP level O1; "16-true" and "bf16-true" are O2 with float32 masters.

    `requested` is what was asked for, `effective` what this device does; where they differ, `note` is a sentence that
    says so. `autocast` makes the context for forward passes (training, validation, prediction; never backward), or is
    None where there is nothing to enter. `scaler` exists for float16 alone. `convert_input`, where it is not None, must
    be applied to each batch. `outside_autocast` is for what must leave the context from inside of it: backward,
    clipping and steps that a training step takes itself. Only this class and Paddle write the scaler.

    Makes `device` Paddle's current device: Paddle asks the current one whether it has AMP at all.

        precision = Precision("16-mixed", device)
        precision.prepare(module, optimizers)
        with precision.autocast() if precision.autocast else nullcontext():
            loss = module.training_step(batch, batch_idx)
        precision.backward(loss)
        precision.unscale(optimizer)          # only where gradients are looked at or clipped before the step
        stepped = precision.step(optimizer)   # False: an infinity or NaN in the gradients, nothing was changed
        precision.update()                    # once, after every optimizer has stepped
    """

    autocast: Callable[[], AbstractContextManager[Any]] | None
    outside_autocast: Callable[[], AbstractContextManager[Any]]
    convert_input: Callable[[Any], Any] | None
    scaler: LossScaler | None

    def __init__(
        self,
        precision: str | int = "32-true",
        device: Device | None = None,
        *,
        custom_white_list: Iterable[str] | None = None,
        custom_black_list: Iterable[str] | None = None,
        scaler_options: Mapping[str, Any] | None = None,
    ) -> None:
        device = device or resolve_device()
        self.requested = self.effective = parse_precision(precision)
        self.note: str | None = None
        white, black = (
            _op_names("custom_white_list", custom_white_list),
            _op_names("custom_black_list", custom_black_list),
        )
        self._scaler_options = _checked_scaler_options(scaler_options or {})
        if white & black:
            raise ConfigurationError(
                f"in custom_white_list and in custom_black_list: {', '.join(sorted(white & black))}"
            )
        half = _HALF.get(self.requested)
        self._warn_of_settings_without_effect(half, lists=bool(white or black))

        device.activate()
        if half and not _computes_in(half, device):
            self.effective = "32-true"
            self.note = (
                f"precision={self.requested!r} has no effect on {device.name}, where Paddle {paddle.__version__} does "
                f"not compute in {half}: this run computes in float32."
            )
        self.autocast = self.convert_input = self.scaler = None
        self.outside_autocast = contextlib.nullcontext
        if self.effective in _HALF:
            self.autocast = functools.partial(
                paddle.amp.auto_cast,
                custom_white_list=white or None,
                custom_black_list=black or None,
                level="O1" if self.effective.endswith("mixed") else "O2",
                dtype=half,
            )
            self.outside_autocast = functools.partial(paddle.amp.auto_cast, enable=False)
            if half == "float16":
                self.scaler = LossScaler(**self._scaler_options)
        elif self.effective == "64-true":
            self.autocast, self.convert_input = _float64_by_default, _to_float64

    def prepare(self, module: paddle.nn.Layer, optimizers: Sequence[Optimizer] = ()) -> None:
        """Give the module's parameters their type, in place, and the optimizers their master weights.

        Call it before the module is wrapped for several processes, before the first step and before state is restored.
        Repeating it changes nothing.
        """
        if self.scaler is not None:
            for optimizer in optimizers:
                if type(optimizer).__name__ == "LBFGS":
                    raise ConfigurationError(
                        f"precision={self.requested!r} scales the loss, and LBFGS searches along unscaled losses: "
                        "use '32-true' or '64-true' with it"
                    )
        if self.effective == "64-true":
            paddle_internals.move_to(module, dtype="float64")
            for optimizer in optimizers:
                paddle_internals.set_dtype(optimizer, paddle.float64)  # Paddle took the unconverted parameters'
        elif self.effective in ("16-true", "bf16-true"):
            # Returns the very objects that it was given; what it returns has another form in every case.
            paddle.amp.decorate(
                module, list(optimizers) or None, level="O2", dtype=_HALF[self.effective], master_weight=True
            )

    def scale(self, loss: Any) -> Any:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def backward(self, loss: Any) -> None:
        """Add the gradients of `loss`, times the loss scale, to the parameters'. Outside autocast."""
        self.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the loss scale; a second time does nothing."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Take the optimizer's step unless its gradients hold an infinity or NaN; returns whether it was taken.

        The check is the one copy to the host that a float16 step costs; other precisions make none.
        """
        if self.scaler is not None:
            return self.scaler.step(optimizer)
        optimizer.step()
        return True

    def update(self) -> None:
        """Adapt the loss scale to the steps since the last update. Once a batch: while gradients wait, it must stay."""
        if self.scaler is not None:
            self.scaler.update()

    def discard(self, optimizer: Optimizer) -> None:
        """Forget an unscaled window whose gradients were cleared without a step."""
        if self.scaler is not None:
            self.scaler.discard(optimizer)

    def state_dict(self) -> dict[str, Any]:
        if self.effective == "32-true":
            return {}
        state: dict[str, Any] = {"precision": self.effective}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
            state["skipped_steps"] = self.scaler.skipped_steps
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what state_dict gave; options of the scaler that were passed win over saved ones, with a warning.

        Raises:
            CheckpointMismatchError: the state was saved by a run that computed in another precision.
        """
        saved = state.get("precision", "32-true")
        if saved != self.effective:
            note = f" {self.note}" if self.note else ""
            raise CheckpointMismatchError(
                "the checkpoint's precision does not fit this run's:",
                [
                    f"precision: saved {saved}, now {self.effective}.{note} Pass precision={saved!r} to go on as "
                    "saved, or override=('precision',) to change it"
                ],
            )
        if self.scaler is None:
            return
        scaler = dict(state["scaler"])
        for name, value in self._scaler_options.items():
            if name in scaler and scaler[name] != value:
                warnings.warn(
                    f"scaler option {name}: {scaler[name]} in the checkpoint, {value} from now on", stacklevel=2
                )
                scaler[name] = value
        self.scaler.load_state_dict(scaler)
        self.scaler.skipped_steps = state["skipped_steps"]

    def _warn_of_settings_without_effect(self, half: str | None, *, lists: bool) -> None:
        without = ["custom_white_list or custom_black_list"] if lists and half is None else []
        without += ["scaler_options"] if self._scaler_options and half != "float16" else []
        for name in without:
            warnings.warn(f"{name} has no effect with precision={self.requested!r}", stacklevel=3)


class LossScaler(paddle.amp.GradScaler):  # type: ignore[misc]
    """Paddle's GradScaler with the same arithmetic and without its traps; its documented loops work on it unchanged.

    What differs, all of it explained in docs/precision.md:
    - `scale` never switches scaling off because somebody left an auto_cast of another type behind;
    - `update` neither prints nor fails with NumPy 2.4, and does nothing where no step was taken since the last one;
    - each optimizer is judged by its own gradients, and an overflow in any of them lowers the scale;
    - between two updates an optimizer may step as often as it has new gradients; the scale stays the same meanwhile.
    """

    _scale: Any  # these four are Paddle's
    _optimizer_states: dict[int, Any]
    _incr_count: int
    _decr_count: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        assert self.is_enable(), "Paddle disables scalers made while the CPU is the current device"
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._losses_scaled = 0
        # Since the last update, by id(optimizer): (overflow found, losses scaled by then); losses scaled by then.
        self._unscaled: dict[int, tuple[Any, int]] = {}
        self._stepped: dict[int, int] = {}
        self._overflowed = False
        self._find_overflow: Callable[[Optimizer], None] = super()._unscale

    def judge_over_ranks(self) -> None:
        """Let an infinity in any rank's gradients be one of all, where each rank has its share of them alone."""
        from .paddle_sharding import over_ranks

        self._find_overflow = over_ranks(self)

    def scale(self, loss: Any) -> Any:
        self._losses_scaled += 1
        return loss * self._scale

    def unscale_(self, optimizer: Optimizer) -> None:
        found = self._unscaled.get(id(optimizer))
        if found is None or found[1] != self._losses_scaled:  # else it holds the same gradients still
            self._unscale(optimizer)

    def _unscale(self, optimizer: Optimizer) -> None:
        self._allow_another_step(optimizer)
        self._find_overflow(optimizer)
        self._unscaled[id(optimizer)] = (self._found_inf, self._losses_scaled)

    def step(self, optimizer: Optimizer) -> bool:
        """Unscale, unless that was done, and step unless the gradients overflowed; returns whether it stepped."""
        self._allow_another_step(optimizer)
        if id(optimizer) in self._unscaled:
            self._found_inf = self._unscaled[id(optimizer)][0]  # Paddle keeps that of the optimizer unscaled last
        states = self._optimizer_states
        super().step(optimizer)
        self._optimizer_states = states  # with a fixed scale Paddle forgets here that other optimizers were unscaled
        overflowed = bool(paddle_internals.found_inf(optimizer))
        self._unscaled.pop(id(optimizer), None)
        self._stepped[id(optimizer)] = self._losses_scaled
        self._overflowed |= overflowed
        self._count(overflowed)
        return not overflowed

    def update(self) -> None:
        if self._stepped and self._use_dynamic_loss_scaling:
            self._update()
        self._optimizer_states.clear()
        self._unscaled.clear()
        self._stepped.clear()
        self._overflowed = False

    def _update(self) -> None:
        if self._overflowed:
            self._incr_count, self._decr_count = 0, self._decr_count + 1
            if self._decr_count == self._decr_every_n_nan_or_inf:
                self._scale, self._decr_count = self._scale * self._decr_ratio, 0
        else:
            self._decr_count, self._incr_count = 0, self._incr_count + 1
            if self._incr_count == self._incr_every_n_steps:
                self._scale, self._incr_count = self._scale * self._incr_ratio, 0

    def minimize(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
        """`step` and `update`; the arguments, which Paddle's static graphs need, are not used."""
        self.step(optimizer)
        self.update()
        return [], []

    def discard(self, optimizer: Optimizer) -> None:
        """Forget that the optimizer's gradients were unscaled."""
        self._unscaled.pop(id(optimizer), None)
        self._optimizer_states.pop(id(optimizer), None)

    def _allow_another_step(self, optimizer: Optimizer) -> None:
        losses = self._losses_scaled
        if id(optimizer) not in self._unscaled and self._stepped.get(id(optimizer), losses) != losses:
            self._optimizer_states.pop(id(optimizer), None)  # it stepped, and there was a backward since

    def _count(self, overflowed: bool) -> None:
        self.skipped_steps += overflowed
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if overflowed else 0
        if self._skipped_in_a_row == HOPELESS:
            warnings.warn(
                f"{HOPELESS} float16 steps in a row were skipped for infinite or NaN gradients, so a smaller loss "
                "scale does not help and the weights no longer change. Look for NaN in the loss; "
                "'bf16-mixed' has float32's range.",
                stacklevel=4,
            )


def is_out_of_memory(exception: BaseException) -> bool:
    """Whether Paddle raised this because memory ran out: the accelerator's, or the host's on the CPU."""
    if not isinstance(exception, (MemoryError, OSError, RuntimeError)):
        return False
    text = str(exception)
    return any(mark in text for mark in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "ResourceExhausted",  # Paddle's allocators
    "out of memory",  # the CUDA runtime, where it fails outside an allocator
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    "CustomDevice error, the error code is : 2",  # any failed call to a plugin; in practice an allocation
)


def _computes_in(half: str, device: Device) -> bool:
    """Whether autocast really computes in this type here (`paddle.amp.is_bfloat16_supported` says yes on the CPU)."""
    if not device.is_accelerator:
        return False
    one = paddle.ones([1, 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with paddle.amp.auto_cast(dtype=half):
                return bool(paddle.matmul(one, one).dtype == getattr(paddle, half))
    except (RuntimeError, NotImplementedError):  # no kernel of this type
        return False


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    default = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.set_default_dtype(default)


def _to_float64(batch: Any) -> Any:
    """The batch with every floating-point tensor in it as float64."""
    return mapped(_widened, batch)


def _widened(leaf: Any) -> Any:
    return leaf.astype("float64") if isinstance(leaf, paddle.Tensor) and paddle.is_floating_point(leaf) else leaf


def _op_names(setting: str, names: Iterable[str] | None) -> set[str]:
    if isinstance(names, str):
        raise ConfigurationError(f"{setting} must be a list of operator names, got the string {names!r}")
    return set(names or ())


def _checked_scaler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _SCALER_OPTIONS:
            raise ConfigurationError(
                f"unknown scaler option {name!r}; known: {', '.join(_SCALER_OPTIONS)}."
                + did_you_mean(name, _SCALER_OPTIONS)
            )
    return dict(options)
