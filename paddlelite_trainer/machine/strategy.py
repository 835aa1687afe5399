"""Strategy: how training is spread over ranks, as `Trainer(strategy=)` asks for it, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import paddle

from ..errors import ConfigurationError, ConfigurationTypeError, did_you_mean

NAMES = ("auto", "ddp", "sharding_stage1", "sharding_stage2", "sharding_stage3")
# Other frameworks' words with the same meaning: Paddle's levels, fairscale's, FSDP's and DeepSpeed's.
_MEANT = {
    "single_device": "auto",
    "data_parallel": "ddp",
    "ddp_find_unused_parameters_true": "ddp",
    "ddp_find_unused_parameters_false": "ddp",
    "os": "sharding_stage1",
    "os_g": "sharding_stage2",
    "p_g_os": "sharding_stage3",
    "fsdp": "sharding_stage3",
    "deepspeed": "sharding_stage2",
    **{f"{word}{stage}": f"sharding_stage{stage}" for stage in (1, 2, 3) for word in ("deepspeed_stage_", "zero")},
}
_NOT_HERE = {
    "dp": "one process with several devices is not how Paddle trains: use 'ddp'",
    "ddp_spawn": "Trainer(devices=2) starts the processes itself: use 'ddp'",
    "ddp_fork": "Trainer(devices=2) starts the processes itself: use 'ddp'",
    "ddp_notebook": "a notebook cannot start processes: put the training into a script, and use 'ddp'",
    "deepspeed_stage_2_offload": "nothing is moved to the host's memory here: use 'sharding_stage3'",
    "deepspeed_stage_3_offload": "nothing is moved to the host's memory here: use 'sharding_stage3'",
    "fsdp_cpu_offload": "nothing is moved to the host's memory here: use 'sharding_stage3'",
    "sharding": "say how much of it: 'sharding_stage1', 'sharding_stage2' or 'sharding_stage3'",
    "model_parallel": "layers are not split over ranks here; for weights that do not fit use 'sharding_stage3'",
    "horovod": "use 'ddp'",
    "xla": "use 'ddp' with accelerator='xpu' or a custom device",
}


@dataclass(frozen=True)
class Strategy:
    """How training is spread over ranks.

    `name` is "single_device" (one process), "ddp" (each rank has everything, gradients are averaged), or
    "sharding_stage1" (each rank keeps the optimizer's state of its share of the parameters), "sharding_stage2" (and
    their gradients), "sharding_stage3" (and the large parameters themselves are cut, `segment_size` numbers or more).

    Args:
        name: one of these, or "auto": "ddp" with several ranks; names of other frameworks are understood.
        find_unused_parameters: whether a step may leave parameters without a gradient; None: in "ddp" it may.
        sync_batchnorm: let BatchNorm see the batches of all ranks.
        num_nodes: how many machines there must be, a check alone.
        segment_size: how many numbers a parameter has at least to be cut in stage 3.
        keep_cut: in stage 3 each rank saves its slices of the weights, and none gathers them for it.
    """

    name: str = "auto"
    find_unused_parameters: bool | None = None
    """Whether a step may leave parameters without a gradient; None: "ddp" lets it, sharding does not."""
    sync_batchnorm: bool = False
    num_nodes: int | None = None
    """Machines of the job; None: as it was started."""
    segment_size: int = 2**20
    """Numbers that a parameter has at least to be cut in stage 3; Paddle's default."""
    keep_cut: bool = False
    """In stage 3 let no rank gather all weights during the fit: each writes its slices into a checkpoint, and a
    validation gathers layer by layer, where loaders can tell how many batches they have."""

    @property
    def stage(self) -> int:
        """0, or the stage of sharding."""
        return int(self.name[-1]) if self.name.startswith("sharding_stage") else 0

    @property
    def finds_unused(self) -> bool:
        """Whether a step may leave parameters without a gradient."""
        return self.stage == 0 if self.find_unused_parameters is None else self.find_unused_parameters

    def __str__(self) -> str:
        return self.name

    def on(self, world_size: int) -> Strategy:
        """What it is on so many processes."""
        if world_size == 1:
            return replace(self, name="single_device")
        return replace(self, name="ddp") if self.name == "auto" else self


def strategy_of(
    strategy: Any, num_nodes: Any, sync_batchnorm: Any, find_unused_parameters: Any, precision: Any
) -> Strategy:
    """The strategy that Trainer's arguments ask for.

    Raises:
        ConfigurationError, ConfigurationTypeError: none is of that name, or two arguments contradict each other.
    """
    for name, value, values in (
        ("sync_batchnorm", sync_batchnorm, (True, False)),
        ("find_unused_parameters", find_unused_parameters, (True, False, None)),
    ):
        if not (isinstance(value, bool) or value is None) or value not in values:
            raise ConfigurationTypeError(f"Trainer({name}=...) must be {_listed(values)}, got {value!r}")
    if num_nodes is not None and (isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < 1):
        raise ConfigurationError(f"Trainer(num_nodes=...) must be an int >= 1, or None, got {num_nodes!r}")
    given = strategy if isinstance(strategy, Strategy) else _named(strategy)
    asked = given.find_unused_parameters if find_unused_parameters is None else find_unused_parameters
    if None not in (given.find_unused_parameters, find_unused_parameters) and given.find_unused_parameters != asked:
        raise ConfigurationError(
            f"strategy={strategy!r} contradicts find_unused_parameters={find_unused_parameters}: leave one of them out"
        )
    if given.segment_size < 0:
        raise ConfigurationError(f"Strategy(segment_size=...) must be >= 0, got {given.segment_size!r}")
    if given.keep_cut and given.stage != 3:
        raise ConfigurationError(f"Strategy(keep_cut=True) is for 'sharding_stage3': {given.name!r} cuts no weights")
    settled = replace(
        given,
        find_unused_parameters=asked,
        sync_batchnorm=sync_batchnorm or given.sync_batchnorm,
        num_nodes=given.num_nodes if num_nodes is None else num_nodes,
    )
    if settled.stage == 3 and asked:
        raise ConfigurationError(
            "find_unused_parameters=True cannot be with strategy='sharding_stage3': there Paddle takes a step only "
            "where each parameter has a gradient. Use 'sharding_stage2'"
        )
    if settled.stage and str(precision) in ("64", "64-true"):
        raise ConfigurationError(
            f"strategy={settled.name!r} cannot be with precision={precision!r}: Paddle shards float32, float16 and "
            "bfloat16 parameters. Use strategy='ddp'"
        )
    return settled


def _named(strategy: Any) -> Strategy:
    if not isinstance(strategy, str):
        kind = type(strategy).__name__
        meant = kind.lower().removesuffix("strategy")
        like = _MEANT.get(meant, meant if meant in NAMES else None)
        hint = f" For a {kind}: strategy={like!r}." if like else ""
        raise ConfigurationTypeError(
            f"Trainer(strategy=...) must be {_listed(NAMES)}, or a paddlelite_trainer.Strategy, got {strategy!r} "
            f"({kind}).{hint}"
        )
    word = strategy.lower().replace("-", "_")
    if word in _NOT_HERE:
        raise ConfigurationError(f"Trainer(strategy={strategy!r}) is not here: {_NOT_HERE[word]}.")
    name = _MEANT.get(word, word)
    if name not in NAMES:
        meant = did_you_mean(word, [*NAMES, *_MEANT])
        raise ConfigurationError(
            f"Trainer(strategy=...) must be {_listed(NAMES)}, or a Strategy, got {strategy!r}.{meant}"
        )
    told = {"true": True, "false": False}.get(word.rpartition("_")[2]) if "find_unused" in word else None
    return Strategy(name, find_unused_parameters=told)


def refuse_what_paddle_cannot(strategy: Strategy, device_type: str, processes: int) -> None:
    """Raise ConfigurationError where Paddle cannot shard on this kind of device, before processes are started."""
    if not strategy.stage or processes == 1 or device_type in ("gpu", "xpu"):
        return
    instead = "Use strategy='ddp'"
    if device_type == "cpu":
        raise ConfigurationError(
            f"strategy={strategy.name!r} needs accelerators: Paddle {paddle.__version__} does not shard on the CPU. "
            f"{instead}"
        )
    if paddle.__version__.startswith("2."):
        raise ConfigurationError(
            f"strategy={strategy.name!r} cannot be on {device_type!r}: group sharding of Paddle {paddle.__version__} "
            f"only supports gpu and xpu. {instead}, or Paddle 3"
        )


def _listed(values: tuple[Any, ...]) -> str:
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}"
