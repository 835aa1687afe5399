"""The Trainer, the data and the module that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigurationError
from ..factories import make_optimizer, make_schedule
from ..module import Module
from ..trainer import Trainer
from .parser import class_of, instantiated

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..data.module import DataModule


class Made(NamedTuple):
    trainer: Trainer
    module: Module
    data: DataModule | None


def make(configuration: Namespace) -> Made:
    """The objects; the Trainer first, so that its seed decides about the weights of the module.

    Raises:
        TrainerError: an argument that a class of ours refuses. What a user's class raises is raised as it is.
    """
    optimizer, schedule = configuration.get("optimizer"), configuration.get("lr_scheduler")
    if schedule is not None and optimizer is None:
        raise ConfigurationError("lr_scheduler is given without optimizer: give both, or write configure_optimizers")

    def of_class(kind: type[Module], **arguments: Any) -> Module:
        if optimizer is not None:
            kind = _with_optimizer(kind, optimizer, schedule, configuration.lr_scheduler_config)
        return kind(**arguments)

    trainer = Trainer(**{name: instantiated(value) for name, value in vars(configuration.trainer).items()})
    return Made(trainer, instantiated(configuration.module, of_class), instantiated(configuration.get("data")))


def _with_optimizer(kind: type[Module], optimizer: Any, schedule: Any, options: Any) -> type[Module]:
    """A class like `kind` whose configure_optimizers is the configuration's."""

    def configure_optimizers(self: Module) -> Any:
        arguments = _arguments(optimizer)
        scheduler = None
        if schedule is not None:
            scheduler = make_schedule(class_of(schedule), _arguments(schedule), arguments.get("learning_rate"))
            arguments["learning_rate"] = scheduler
        made = make_optimizer(class_of(optimizer), arguments, self.parameters())
        if scheduler is None:
            return made
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, **vars(options.clone())}}

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**names, "configure_optimizers": configure_optimizers})


def _arguments(node: Any) -> dict[str, Any]:
    given = node.get("init_args")
    found: Mapping[str, Any] = given.as_dict() if given is not None else {}
    return dict(found)
