"""What `configure_optimizers` returned, in one form; when schedulers step; optimizer state by structured name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import paddle
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler, ReduceOnPlateau

from .errors import CheckpointMismatchError, ConfigurationError, ConfigurationTypeError, did_you_mean
from .machine import paddle_internals

_SCHEDULER_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name")


@dataclass
class LRSchedulerConfig:
    """One scheduler and when it steps. Lightning's names and meanings."""

    scheduler: LRScheduler
    optimizer_index: int = 0
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None

    @property
    def needs_metric(self) -> bool:
        return isinstance(self.scheduler, ReduceOnPlateau)

    def describe(self) -> str:
        every = self.interval if self.frequency == 1 else f"{self.frequency} {self.interval}s"
        return f"{self.name or type(self.scheduler).__name__} steps every {every}" + (
            f" on {self.monitor}" if self.monitor else ""
        )


def normalise(returned: Any, *, steps_schedulers: bool = True) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Optimizers and schedulers from any form `configure_optimizers` may return.

    Forms: an optimizer; a list or tuple of optimizers; (optimizer, scheduler); ([optimizers], [schedulers]);
    {"optimizer": ..., "lr_scheduler": ...}; a list of such dicts; None. A scheduler is an LRScheduler or a dict with
    "scheduler" and any of interval, frequency, monitor, strict, name. A scheduler given as an optimizer's learning rate
    need not be named: it is found. Where the trainer `steps_schedulers`, one that watches a metric needs its name.

    Raises:
        ConfigurationError, ConfigurationTypeError: another form, an unknown key, a scheduler no optimizer uses.
    """
    pairs = _pairs(returned)
    optimizers = [optimizer for optimizer, _ in pairs]
    for optimizer in optimizers:
        _refuse_wrapped(optimizer)
        if next(parameters_of(optimizer), None) is None:
            what = f"configure_optimizers returned {type(optimizer).__name__} without parameters"
            raise ConfigurationError(f"{what}: pass it parameters=self.parameters(), or those that it is to move")
    if len({id(optimizer) for optimizer in optimizers}) != len(optimizers):
        raise ConfigurationError("configure_optimizers returned the same optimizer twice")
    configs: list[LRSchedulerConfig] = []
    for index, (optimizer, scheduler) in enumerate(pairs):
        own = paddle_internals.learning_rate(optimizer)
        if scheduler is None:
            if isinstance(own, LRScheduler):
                configs.append(_config({"scheduler": own}, index, steps_schedulers))
            continue
        config = _config(scheduler, index, steps_schedulers)
        if not isinstance(own, LRScheduler):
            # In Paddle a scheduler works only as the optimizer's learning rate; apart from it, it would do nothing.
            optimizer.set_lr_scheduler(config.scheduler)
        elif own is not config.scheduler and not _wraps(own, config.scheduler):
            raise ConfigurationError(
                f"configure_optimizers returned the scheduler {type(config.scheduler).__name__} for an optimizer whose "
                "learning rate is another "
                f"scheduler ({type(own).__name__}). Pass it as the optimizer's learning_rate, or return that one."
            )
        configs.append(config)
    return optimizers, configs


def _refuse_wrapped(optimizer: Optimizer) -> None:
    inner = next((value for value in vars(optimizer).values() if isinstance(value, Optimizer)), None)
    if inner is not None:
        raise ConfigurationError(
            f"configure_optimizers returned {type(optimizer).__name__} around {type(inner).__name__}: a checkpoint "
            "would not hold what is within, and its schedule would not step. "
            f"Return the {type(inner).__name__} itself; "
            "weights are averaged by the callbacks ExponentialMovingAverage and StochasticWeightAveraging."
        )


def _pairs(returned: Any) -> list[tuple[Optimizer, Any]]:
    if returned is None:
        return []
    if isinstance(returned, Optimizer):
        return [(returned, None)]
    if isinstance(returned, Mapping):
        unknown = set(returned) - {"optimizer", "lr_scheduler", "monitor"}
        if unknown or "optimizer" not in returned:
            word = next(iter(unknown), "")
            raise ConfigurationError(
                f"configure_optimizers returned a dict with keys {sorted(returned)}; "
                "it takes 'optimizer' and 'lr_scheduler'." + did_you_mean(word, ["optimizer", "lr_scheduler"])
            )
        scheduler = returned.get("lr_scheduler")
        if returned.get("monitor") is not None and scheduler is not None and not isinstance(scheduler, Mapping):
            scheduler = {"scheduler": scheduler, "monitor": returned["monitor"]}
        return [(_checked(returned["optimizer"]), scheduler)]
    if isinstance(returned, (list, tuple)) and returned:
        if len(returned) == 2 and isinstance(returned[0], (list, tuple)) and isinstance(returned[1], (list, tuple)):
            return _matched([_checked(optimizer) for optimizer in returned[0]], list(returned[1]))
        if (
            len(returned) == 2
            and isinstance(returned[0], Optimizer)
            and isinstance(returned[1], (LRScheduler, Mapping))
            and not (isinstance(returned[1], Mapping) and "optimizer" in returned[1])
        ):
            return [(returned[0], returned[1])]
        return [pair for item in returned for pair in _pairs(item if isinstance(item, Mapping) else _checked(item))]
    raise ConfigurationTypeError(
        f"configure_optimizers must return an optimizer, (optimizer, scheduler), lists or a dict, got {returned!r}"
    )


def _matched(optimizers: list[Optimizer], schedulers: list[Any]) -> list[tuple[Optimizer, Any]]:
    """Lists of both: each scheduler goes to the optimizer whose learning rate it is, else to that at its position."""
    given: dict[int, Any] = {}
    for position, item in enumerate(schedulers):
        scheduler = item["scheduler"] if isinstance(item, Mapping) and "scheduler" in item else item
        rates = map(paddle_internals.learning_rate, optimizers)
        owner = next((index for index, rate in enumerate(rates) if rate is scheduler), position)
        if owner >= len(optimizers):
            raise ConfigurationError(
                f"configure_optimizers returned {len(schedulers)} schedulers for {len(optimizers)} optimizers"
            )
        given[owner] = item
    return [(optimizer, given.get(index)) for index, optimizer in enumerate(optimizers)]


def _checked(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationTypeError(
            f"configure_optimizers must return paddle.optimizer.Optimizer objects, got {type(optimizer).__name__}"
        )
    return optimizer


def _config(given: Any, index: int, is_stepped: bool) -> LRSchedulerConfig:
    if isinstance(given, Mapping):
        for key in given:
            if key not in _SCHEDULER_KEYS:
                raise ConfigurationError(
                    f"unknown key {key!r} in an lr_scheduler dict; known: "
                    f"{_SCHEDULER_KEYS}.{did_you_mean(key, _SCHEDULER_KEYS)}"
                )
        if "scheduler" not in given:
            raise ConfigurationError("an lr_scheduler dict needs the key 'scheduler'")
        config = LRSchedulerConfig(**given, optimizer_index=index)
    else:
        config = LRSchedulerConfig(given, optimizer_index=index)
    if not isinstance(config.scheduler, LRScheduler):
        raise ConfigurationTypeError(
            f"a scheduler must be a paddle.optimizer.lr.LRScheduler, got {type(config.scheduler).__name__}"
        )
    if config.interval not in ("epoch", "step"):
        raise ConfigurationError(f"lr_scheduler interval must be 'epoch' or 'step', got {config.interval!r}")
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise ConfigurationError(f"lr_scheduler frequency must be an integer >= 1, got {config.frequency!r}")
    if is_stepped and config.needs_metric and config.monitor is None:
        raise ConfigurationError(
            "ReduceOnPlateau needs a metric: return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': "
            "scheduler, 'monitor': 'val_loss'}} "
            "from configure_optimizers"
        )
    return config


def _wraps(outer: LRScheduler, inner: LRScheduler) -> bool:
    return any(value is inner for value in vars(outer).values())


coefficient = paddle_internals.coefficient
default = paddle_internals.default
master_weights = paddle_internals.master_weights
parameter_groups = paddle_internals.parameter_groups


def parameters_of(optimizer: Optimizer) -> Iterator[Any]:
    """Every parameter of an optimizer, of all groups."""
    for item in paddle_internals.parameter_list(optimizer):
        if isinstance(item, Mapping):
            yield from item["params"]
        else:
            yield item


def add_param_group(
    optimizer: Optimizer, parameters: Sequence[Any], *, learning_rate: float = 1.0, weight_decay: float | None = None
) -> None:
    """Let a live optimizer train more, at `learning_rate` times its own rate; see Trainer.add_param_group."""
    present = {id(parameter) for parameter in parameters_of(optimizer)}
    twice = [parameter.name for parameter in parameters if id(parameter) in present]
    if twice:
        raise ConfigurationError(f"{type(optimizer).__name__} trains these parameters already: {', '.join(twice)}")
    if paddle_internals.has_groups(optimizer):
        group: dict[str, Any] = {"params": list(parameters), "learning_rate": learning_rate}
        if weight_decay is not None:
            group["weight_decay"] = weight_decay
        paddle_internals.append_group(optimizer, group)
    elif weight_decay is not None:
        raise ConfigurationError(
            f"weight_decay of its own needs a {type(optimizer).__name__} that was built with parameter groups: "
            f"parameters=[{{'params': ...}}]"
        )
    else:
        for parameter in parameters:
            parameter.optimize_attr["learning_rate"] = learning_rate
        paddle_internals.append_parameters(optimizer, parameters)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Make the next steps use this rate: until its scheduler's next step, where it has one."""
    own = paddle_internals.learning_rate(optimizer)
    if isinstance(own, LRScheduler):
        own.last_lr = learning_rate
    else:
        optimizer.set_lr(learning_rate)


def structured_names(module: paddle.nn.Layer) -> dict[str, str]:
    """{Paddle's generated parameter name: name in the module's tree}; of tied parameters the first name."""
    names: dict[str, str] = {}
    for structured, parameter in module.named_parameters():
        if parameter.name in names:
            raise ConfigurationError(
                f"two different parameters carry Paddle's name {parameter.name!r} ({names[parameter.name]} and "
                f"{structured}), so an optimizer would mix their state. Build the layers without unique_name.guard()."
            )
        names[parameter.name] = structured
    return names


# -- state -------------------------------------------------------------------------------------------------------------


def optimizer_state(optimizer: Optimizer, names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors by `<structured parameter name>/<accumulator>`, what is not a tensor); tensors are the live ones."""
    tensors: dict[str, Any] = {}
    masters = paddle_internals.master_weights(optimizer)
    owner = {master.name: parameter_name for parameter_name, master in masters.items()}
    for accumulator, by_parameter in paddle_internals.accumulators(optimizer).items():
        for parameter_name, tensor in by_parameter.items():
            tensors[f"{names[owner.get(parameter_name, parameter_name)]}/{accumulator}"] = tensor
    for parameter_name, master in masters.items():
        tensors[f"{names[parameter_name]}/master_weight"] = master
    rest: dict[str, Any] = {
        "class": type(optimizer).__name__,
        "learning_rate": None if _has_scheduler(optimizer) else float(optimizer.get_lr()),
        "parameters": [names[parameter.name] for parameter in parameters_of(optimizer)],
    }
    if type(optimizer).__name__ == "LBFGS":
        rest["lbfgs"] = dict(optimizer.state)
    return tensors, rest


def restore_optimizer(
    optimizer: Optimizer,
    names: Mapping[str, str],
    tensors: Mapping[str, Any],
    rest: Mapping[str, Any],
    *,
    keep_learning_rate: bool = False,
) -> None:
    """Put back what `optimizer_state` gave, whatever Paddle calls the parameters in this process.

    Paddle's own set_state_dict goes by generated names and is silent when they differ (facts in docs/paddle.md), so
    accumulators are created here by the optimizer's own method and filled.

    Raises:
        CheckpointMismatchError: another optimizer class, or state for parameters that this optimizer does not have.
    """
    mine = {names[parameter.name]: parameter for parameter in parameters_of(optimizer)}
    by_parameter: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        structured, accumulator = key.rsplit("/", 1)
        by_parameter.setdefault(structured, {})[accumulator] = value
    _refuse_other_state(optimizer, rest, mine, by_parameter)
    paddle_internals.forget_state(optimizer)
    if by_parameter:
        paddle_internals.create_state(optimizer, {mine[structured].name for structured in by_parameter})
    for structured, values in by_parameter.items():
        _fill(optimizer, structured, mine[structured], values)
    if rest["learning_rate"] is not None and not _has_scheduler(optimizer) and not keep_learning_rate:
        optimizer.set_lr(rest["learning_rate"])
    if "lbfgs" in rest:
        optimizer.state.clear()
        optimizer.state.update(rest["lbfgs"])


def _refuse_other_state(
    optimizer: Optimizer, rest: Mapping[str, Any], mine: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    problems = []
    if rest["class"] != type(optimizer).__name__:
        problems.append(
            f"optimizer class: saved {rest['class']}, now {type(optimizer).__name__}. "
            "Use the saved class, or start from weights only with init_from="
        )
    problems += [
        f"optimizer state of parameter {structured}: saved, and this optimizer has no such "
        f"parameter.{did_you_mean(structured, mine)}"
        for structured in saved
        if structured not in mine
    ]
    if problems:
        raise CheckpointMismatchError("the checkpoint's optimizer does not fit this run's:", problems)


def _fill(optimizer: Optimizer, structured: str, parameter: Any, values: Mapping[str, Any]) -> None:
    """Put one parameter's saved state into what the optimizer keeps for it."""
    master = paddle_internals.master_weights(optimizer).get(parameter.name)
    kept = paddle_internals.accumulators(optimizer)
    for accumulator, value in values.items():
        if accumulator == "master_weight":
            if master is None:
                raise CheckpointMismatchError(
                    "the checkpoint's optimizer does not fit this run's:",
                    [
                        f"master weight of {structured}: saved, and this run keeps none. "
                        "Use the precision that the run was saved with"
                    ],
                )
            master.set_value(value)
            continue
        slots = kept.get(accumulator, {})
        slot = slots.get(parameter.name, slots.get(master.name) if master is not None else None)
        if slot is None or list(slot.shape) != list(value.shape):
            absent = f"absent: {type(optimizer).__name__} keeps {', '.join(sorted(kept)) or 'nothing'}"
            now = absent if slot is None else list(slot.shape)
            raise CheckpointMismatchError(
                "the checkpoint's optimizer does not fit this run's:",
                [f"{accumulator} of {structured}: saved shape {list(value.shape)}, now {now}"],
            )
        slot.set_value(value)


def _has_scheduler(optimizer: Optimizer) -> bool:
    return isinstance(paddle_internals.learning_rate(optimizer), LRScheduler)


_PLAIN = (int, float, str, bool, type(None))


def scheduler_snapshot(scheduler: LRScheduler) -> dict[str, Any]:
    """Every plain attribute of a scheduler and of those it wraps.

    Wider than Paddle's state_dict, which for CosineAnnealingWarmRestarts leaves out T_cur and T_i.
    """
    snapshot: dict[str, Any] = {"class": type(scheduler).__name__}
    for name, value in vars(scheduler).items():
        if isinstance(value, LRScheduler):
            snapshot[name] = scheduler_snapshot(value)
        elif isinstance(value, _PLAIN):
            snapshot[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value):
            snapshot[name] = list(value)
        elif hasattr(value, "item") and getattr(value, "size", 0) == 1:
            snapshot[name] = value.item()
    return snapshot


class SchedulerState:
    """One scheduler's state apart from its settings: what has changed since it was built, against what was built."""

    def __init__(self, config: LRSchedulerConfig) -> None:
        self.config = config
        self.built = scheduler_snapshot(config.scheduler)
        self._blank = copy.deepcopy(config.scheduler)

    def state_dict(self) -> dict[str, Any]:
        return {"built": self.built, "now": scheduler_snapshot(self.config.scheduler)}

    def load_state_dict(self, state: Mapping[str, Any]) -> str | None:
        """Restore; returns a sentence where the schedule was built otherwise than the saved one, None where alike.

        Rule: a changed schedule goes on where a fresh one with the new settings would be after as many steps.
        """
        scheduler, saved_built, saved_now = self.config.scheduler, state["built"], state["now"]
        if saved_now["class"] != type(scheduler).__name__:
            raise CheckpointMismatchError(
                "the checkpoint's schedule does not fit this run's:",
                [
                    f"scheduler class: saved {saved_now['class']}, now {type(scheduler).__name__}. "
                    "Use the saved class, or pass override=('lr_schedulers',)"
                ],
            )
        changed = sorted(_differences(saved_built, self.built))
        if not changed:
            apply_snapshot(scheduler, saved_now)
            return None
        old = copy.deepcopy(self._blank)
        apply_snapshot(old, saved_now)
        if self.config.needs_metric:
            apply_snapshot(scheduler, {key: value for key, value in saved_now.items() if saved_built.get(key) != value})
        else:
            for _ in range(int(saved_now["last_epoch"])):
                scheduler.step()
        settings = ", ".join(f"{key} {_at(saved_built, key)} -> {_at(self.built, key)}" for key in changed)
        following = [_next_rate(old), _next_rate(scheduler)]
        return (
            f"the schedule {type(scheduler).__name__} was built otherwise than in the checkpoint ({settings}). "
            "It goes on where the new one would be after "
            f"{saved_now['last_epoch']} steps: learning rate {scheduler.last_lr:.6g}, next {following[1]:.6g} (the "
            f"saved one had {saved_now['last_lr']:.6g}, next {following[0]:.6g})."
        )


def _next_rate(scheduler: LRScheduler) -> float:
    if isinstance(scheduler, ReduceOnPlateau):
        return float(scheduler.last_lr)
    following = copy.deepcopy(scheduler)
    following.step()
    return float(following.last_lr)


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in saved.keys() | now.keys():
        one, other = saved.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other and not (one != one and other != other):
            yield f"{prefix}{key}"


def _at(tree: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree


def apply_snapshot(scheduler: LRScheduler, snapshot: Mapping[str, Any]) -> None:
    """Put back what `scheduler_snapshot` gave."""
    for name, value in snapshot.items():
        present = getattr(scheduler, name, None)
        if name == "class":
            continue
        if isinstance(value, Mapping):
            if isinstance(present, LRScheduler):
                apply_snapshot(present, value)
        else:
            setattr(scheduler, name, type(present)(value) if isinstance(present, (list, tuple)) else value)


def will_drop(config: LRSchedulerConfig, metric: float | None) -> bool:
    """Whether this scheduler's next step lowers the rate in one jump, as step, piecewise and plateau schedules do."""
    from paddle.optimizer.lr import MultiStepDecay, PiecewiseDecay, StepDecay

    inner: Any = config.scheduler
    while isinstance(getattr(inner, "learning_rate", None), LRScheduler):  # LinearWarmup wraps another
        inner = inner.learning_rate
    if not isinstance(inner, (StepDecay, MultiStepDecay, PiecewiseDecay, ReduceOnPlateau)):
        return False
    following = copy.deepcopy(config.scheduler)
    if not config.needs_metric:
        following.step()
    elif metric is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            following.verbose = False
            following.step(metric)
    return bool(following.last_lr < config.scheduler.last_lr)


# -- manual optimization -----------------------------------------------------------------------------------------------


class ManualOptimizer:
    """An optimizer as `self.optimizers()` gives it in manual optimization: its `step` counts, and asks the scaler."""

    def __init__(self, optimizer: Optimizer, step: Callable[[Optimizer, Callable[[], Any] | None], Any]) -> None:
        self.optimizer = optimizer
        self._step = step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one optimizer step; the trainer's global_step rises by one."""
        return self._step(self.optimizer, closure)

    def clear_grad(self, set_to_zero: bool = False) -> None:
        """Drop the gradients; unlike Paddle's default they become None, so that unused parameters do not move."""
        self.optimizer.clear_grad(set_to_zero)

    zero_grad = clear_grad

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)
