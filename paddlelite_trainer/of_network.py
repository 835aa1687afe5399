"""What `Module.of` makes a Module of: any network, with a loss, an optimizer and metrics."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import paddle

from .errors import ConfigurationError, ConfigurationTypeError, did_you_mean
from .factories import by_name, make_optimizer
from .optimizers import parameters_of

Made = TypeVar("Made", bound="MadeOfNetwork")

MADE_BY = "made_by"
"""The hyper-parameter by which a checkpoint tells that its module was made by `Module.of`."""
_OF = "Module.of"
_SHORT = {"acc": "Accuracy", "accuracy": "Accuracy", "mse": "mse_loss", "mae": "l1_loss", "l1": "l1_loss"}


class MadeOfNetwork:
    """What a Module has for who wants no class of their own."""

    @classmethod
    def of(
        cls: type[Made],
        net: paddle.nn.Layer,
        loss: Any = None,
        optimizer: Any = None,
        metrics: Any = (),
        *,
        learning_rate: Any = None,
        lr_scheduler: Any = None,
    ) -> Made:
        """A module of any network; what each argument takes is in docs/without-a-class.md."""
        base: Any = cls
        made: Made = _class(base, _inputs_of(_network(net)))(net, loss, optimizer, metrics, learning_rate, lr_scheduler)
        return made


class NetworkSteps:
    """Steps of a module that was made of a network; `Module.of` puts it before Module.

    A batch is (input, ..., labels), as many inputs as `net.forward` needs, or inputs alone for predict.
    """

    net: Any
    log: Callable[..., None]
    parameters: Callable[[], Any]

    def __init__(
        self, net: Any, loss: Any, optimizer: Any, metrics: Any, learning_rate: Any, lr_scheduler: Any
    ) -> None:
        super().__init__()
        self.net = _network(net)
        self._loss_given, self._loss = loss, _loss(loss)
        self._optimizer, self._learning_rate, self._lr_scheduler = optimizer, learning_rate, lr_scheduler
        self._inputs = _inputs_of(self.net)
        named = _metrics(metrics)
        self.metrics = {  # in one dict, in which a checkpoint finds them and keeps what they have counted
            f"{stage}_{name}": copy.deepcopy(one) for stage in ("train", "val", "test") for name, one in named.items()
        }
        _refuse_optimizer(self.net, optimizer, learning_rate, lr_scheduler)
        kept = {
            MADE_BY: _OF,
            "loss": _name(loss),
            "optimizer": _name(optimizer),
            "metrics": [_name(one) for one in named],
        }
        if isinstance(learning_rate, (int, float)):
            kept["learning_rate"] = learning_rate
        self.save_hyperparameters(kept)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        parts = list(batch) if isinstance(batch, (list, tuple)) else [batch]
        return self(*parts[: self._inputs or len(parts)])  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        if self._loss is None or self._optimizer is None:
            missing = "loss" if self._loss is None else "optimizer"
            raise ConfigurationError(
                f"{_OF}(net, ...) was given no {missing}, which fit needs: "
                f"{_OF}(net, loss='cross_entropy', optimizer='adamw', learning_rate=1e-3)"
            )
        scheduler = self._lr_scheduler
        schedule = scheduler["scheduler"] if isinstance(scheduler, Mapping) else scheduler
        rate = schedule if schedule is not None else self._learning_rate
        made = _optimizer(self._optimizer, rate, self.parameters())
        return made if scheduler is None else {"optimizer": made, "lr_scheduler": scheduler}

    def _step(self, batch: Any, stage: str) -> Any:
        inputs, labels = self._parts(batch, stage)
        outputs = self(*inputs)  # type: ignore[operator]
        loss = None
        if self._loss is not None:
            loss = self._loss(outputs, *labels)
            if loss.size != 1:
                raise ConfigurationError(
                    f"the loss of {_OF}(net, loss={_name(self._loss_given)}) must be one number, and is a tensor of "
                    f"shape {list(loss.shape)}: let it take the mean"
                )
            self.log(f"{stage}_loss", loss, prog_bar=stage != "train")
        with paddle.no_grad():
            for name, metric in self.metrics.items():
                if name.startswith(f"{stage}_"):
                    self._log_metric(name, metric, outputs, labels)
        return loss

    def _log_metric(self, name: str, metric: Any, outputs: Any, labels: Sequence[Any]) -> None:
        if not isinstance(metric, paddle.metric.Metric):
            self.log(name, metric(outputs, *labels), on_step=False, on_epoch=True)
            return
        found = metric.compute(outputs, *labels)
        metric.update(*(found if isinstance(found, (list, tuple)) else (found,)))
        self.log(name, metric, on_step=False, on_epoch=True)

    def _parts(self, batch: Any, stage: str) -> tuple[list[Any], list[Any]]:
        if not isinstance(batch, (list, tuple)) or len(batch) < 2:
            what = f"{len(batch)} part" if isinstance(batch, (list, tuple)) else f"a {type(batch).__name__}"
            raise ConfigurationError(
                f"a batch for {_OF}(net, ...) is (inputs, ..., labels), and this one of {stage} is {what}. For other "
                "batches write a Module with a training_step."
            )
        count = self._inputs or len(batch) - 1
        if count >= len(batch):
            raise ConfigurationError(
                f"{type(self.net).__name__}.forward needs {count} inputs, and a batch of {stage} has {len(batch)} "
                "parts: the labels are missing"
            )
        return list(batch[:count]), list(batch[count:])


def made_again(base: type, kept: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The module of a checkpoint that was made by `Module.of`, of the network that is given again.

    Raises:
        ConfigurationError: none is given.
    """
    if "net" not in arguments:
        raise ConfigurationError(
            f"this checkpoint's module was made by {_OF}(net, ...): it holds weights and no network. Give it one of "
            "the same layers: Module.load_from_checkpoint(path, net=net), or put the weights into it: "
            "paddlelite_trainer.load_weights(net, path)"
        )
    names = ("loss", "optimizer", "metrics", "learning_rate")
    known = {name: kept[name] for name in names if _is_known(kept.get(name))}
    return base.of(**{**known, **arguments})  # type: ignore[attr-defined]


def _is_known(value: Any) -> bool:
    """Whether a kept name is one that can be looked up again; what was an object or a function is not."""
    values = value if isinstance(value, list) else [value]
    return value is not None and not any(isinstance(one, str) and one.startswith("<") for one in values)


@functools.cache
def _class(base: type, inputs: int | None) -> type:
    """A class whose forward names as many inputs as the network's, since Paddle's export knows no others."""

    def one(self: Any, x: Any) -> Any:
        return self.net(x)

    def two(self: Any, x: Any, y: Any) -> Any:
        return self.net(x, y)

    def three(self: Any, x: Any, y: Any, z: Any) -> Any:
        return self.net(x, y, z)

    def several(self: Any, *inputs: Any) -> Any:
        return self.net(*inputs)

    forward = {1: one, 2: two, 3: three}.get(inputs or 0, several)
    doc = "A module that was made of a network."
    return type("NetworkModule", (NetworkSteps, base), {"__doc__": doc, "__module__": __name__, "forward": forward})


def _network(net: Any) -> Any:
    if isinstance(net, type):
        raise ConfigurationTypeError(f"{_OF} got the class {net.__name__}; pass an object: {net.__name__}()")
    if not isinstance(net, paddle.nn.Layer):
        hint = ": pass its network" if type(net).__name__ == "Model" else ""
        raise ConfigurationTypeError(f"{_OF} takes a paddle.nn.Layer, got a {type(net).__name__}{hint}")
    return net


def _inputs_of(net: Any) -> int | None:
    """How many inputs forward cannot do without; None where it takes any number."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return None
    return max(1, sum(one.default is one.empty and one.kind is not one.VAR_KEYWORD for one in parameters))


def _loss(given: Any) -> Any:
    """A function of outputs and labels."""
    if isinstance(given, type) and issubclass(given, paddle.nn.Layer):
        return given()
    if given is None or (callable(given) and not isinstance(given, type)):
        return given
    if not isinstance(given, str):
        raise ConfigurationTypeError(f"{_OF}(loss=...) takes a function, a layer or a name, got {given!r}")
    functions = {
        name: one
        for name, one in vars(paddle.nn.functional).items()
        if callable(one) and ("loss" in name or "cross_entropy" in name)
    }
    layers = {name: one for name, one in vars(paddle.nn).items() if name.endswith("Loss")}
    name = _SHORT.get(given.lower(), given)
    for candidate in (name, f"{name}_loss"):
        if candidate in functions:
            return functions[candidate]
    if name in layers:
        return layers[name]()
    raise ConfigurationError(
        f"{_OF}(loss={given!r}) is no loss of paddle.nn.functional or paddle.nn."
        + did_you_mean(name, [*functions, *layers])
    )


def _metrics(given: Any) -> dict[str, Any]:
    """{name in the logs: metric}"""
    found: dict[str, Any] = {}
    for one in _listed(given):
        if isinstance(one, str):
            one = by_name(_SHORT.get(one.lower(), one), paddle.metric, paddle.metric.Metric, f"{_OF}(metrics=...):")
        if isinstance(one, type):
            one = one()
        if not callable(one) and not isinstance(one, paddle.metric.Metric):
            raise ConfigurationTypeError(
                f"{_OF}(metrics=[...]) takes metrics of paddle.metric, names or functions, got {one!r}"
            )
        name = one.name() if isinstance(one, paddle.metric.Metric) else _name(one).strip("<>")
        # Accuracy(topk=(1, 5)) has two names, acc_top1 and acc_top5: what comes before is the pair's.
        name = name if isinstance(name, str) else next(iter(name)).split("_top")[0]
        if name in found:
            raise ConfigurationError(f"{_OF}(metrics=[...]) has two called {name!r}: give one of them name=")
        found[name] = one
    return found


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else () if given is None else (given,)


def _optimizer(given: Any, rate: Any, parameters: Any) -> Any:
    if isinstance(given, paddle.optimizer.Optimizer):
        return given
    kind = given
    if isinstance(given, str):
        kind = by_name(given, paddle.optimizer, paddle.optimizer.Optimizer, f"{_OF}(optimizer=...):")
    if isinstance(kind, type):
        return make_optimizer(kind, {} if rate is None else {"learning_rate": rate}, parameters)
    made = kind(list(parameters))
    if not isinstance(made, paddle.optimizer.Optimizer):
        raise ConfigurationTypeError(
            f"{_OF}(optimizer={_name(given)}) takes the parameters and returns an optimizer; it returned {made!r}"
        )
    return made


def _refuse_optimizer(net: Any, given: Any, rate: Any, scheduler: Any) -> None:
    if isinstance(given, str):
        by_name(given, paddle.optimizer, paddle.optimizer.Optimizer, f"{_OF}(optimizer=...):")
    elif given is not None and not callable(given) and not isinstance(given, paddle.optimizer.Optimizer):
        raise ConfigurationTypeError(
            f"{_OF}(optimizer=...) takes an optimizer, its class or name, or a function, got {given!r}"
        )
    has_own = isinstance(given, paddle.optimizer.Optimizer) or (callable(given) and not isinstance(given, type))
    if has_own and rate is not None:
        raise ConfigurationError(
            f"{_OF}(learning_rate=...) has no effect beside optimizer={_name(given)}, which has its own rate: leave it "
            "out"
        )
    if isinstance(given, paddle.optimizer.Optimizer):
        own = {id(parameter) for parameter in net.parameters()}
        strangers = [parameter.name for parameter in parameters_of(given) if id(parameter) not in own]
        if strangers:
            raise ConfigurationError(
                f"{_OF}(optimizer={_name(given)}) moves {', '.join(strangers[:3])}, which are no parameters of the "
                "network"
            )
    if isinstance(scheduler, Mapping) and "scheduler" not in scheduler:
        raise ConfigurationError(f"{_OF}(lr_scheduler={{...}}) needs the key 'scheduler', got {', '.join(scheduler)}")


def _name(given: Any) -> Any:
    """What a checkpoint keeps of it: a name that can be looked up again, or `<name>` of what cannot."""
    if given is None or isinstance(given, str):
        return given
    return f"<{getattr(given, '__name__', None) or type(given).__name__}>"
