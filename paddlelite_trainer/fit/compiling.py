"""Compiled: forwards that paddle.jit.to_static has translated, for `Trainer(compile=...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError
from ..export.refusal import why_not_traced
from ..machine.paddle_internals import forget_traces
from ..machine.rng import isolated_random_states, python_and_numpy
from ..machine.stand_ins import StandIn, lifted
from ..machine.trees import leaves
from ..module import Module
from .chosen_layers import chosen
from .recomputing import recompute_layers

if TYPE_CHECKING:
    from ..settings import Settings


_DRAWS = (
    "It draws from python's random or from NumPy: a translation draws once, and computes with that number ever after; "
    "a resumed run would translate, and draw, again. Draw with Paddle (paddle.rand), and choose by paddle.where"
)


class Compiled(StandIn):
    """Calls the translated forward; where that fails once and the layer's own does not, its own from there on."""

    def __init__(self, layer: Any, name: str, options: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        super().__init__(layer)
        self.name, self.tell = name, tell
        self.translated: Callable[..., Any] | None = paddle.jit.to_static(
            self.own, full_graph=options.get("full_graph", True), backend=options.get("backend")
        )
        self._is_whole = bool(options.get("full_graph", True))
        self._met: set[Any] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.translated is None:
            return self.own(*args, **kwargs)
        try:
            why_not = _DRAWS if self._is_whole and self._draws_when_translated(args, kwargs) else ""
            if not why_not:
                return self.translated(*args, **kwargs)
        except Exception as error:
            why_not = why_not_traced(error)
            forget_traces()
        self.translated = None
        outputs = self.own(*args, **kwargs)  # what is the user's own error is raised here, as without compile
        self.tell(f"WARNING: compile: {self.name} runs as it is, not compiled. {why_not}")
        return outputs

    def _draws_when_translated(self, args: Any, kwargs: Any) -> bool:
        """Translate for a call of a new kind, without computing; leaves no trace in the random numbers."""
        kind = (self.layer.training, paddle.is_grad_enabled(), *map(_kind, leaves([args, kwargs])))
        if kind in self._met:
            return False
        self._met.add(kind)
        translated: Any = self.translated
        with isolated_random_states():
            before = python_and_numpy()
            translated.get_concrete_program(*args, **kwargs, is_train=self.layer.training)
            return python_and_numpy() != before


def _kind(argument: Any) -> Any:
    """What Paddle makes a translation of its own for."""
    if isinstance(argument, paddle.Tensor):
        return tuple(argument.shape), str(argument.dtype), argument.stop_gradient
    return argument if isinstance(argument, (bool, int, float, str)) else type(argument)


def compile_forwards(
    module: Module, asked: bool | Mapping[str, Any], tell: Callable[[str], None]
) -> Callable[[], None]:
    """Let the module's forward, or those of the layers named, be compiled; calling the result undoes it.

    Raises:
        ConfigurationError: there is nothing to compile.
    """
    options: Mapping[str, Any] = asked if isinstance(asked, Mapping) else {}
    patterns = options.get("layers")
    name = type(module).__name__
    if patterns is not None:
        layers = {f"{name}.{path}": layer for path, layer in chosen(module, patterns, "compile").items()}
    elif type(module).forward is Module.forward:
        raise ConfigurationError(
            f"Trainer(compile=True) compiles forward, and {name} has none: name the layers that its steps call, "
            "compile={'layers': ['net']}"
        )
    else:
        layers = {f"{name}.forward": module}
    forget_traces()  # of translations that failed elsewhere
    put_back = lifted(module, all_of_them=False)
    for path, layer in layers.items():
        Compiled(layer, path, options, tell).take_place()
    return put_back


def exchange_forwards(module: Module, settings: Settings, tell: Callable[[str], None]) -> Callable[[], None]:
    """What `Trainer(compile=...)` and `Trainer(recompute=...)` ask for; calling the result undoes it."""
    if settings.compile:
        return compile_forwards(module, settings.compile, tell)
    if settings.recompute:
        return recompute_layers(module, settings.recompute)
    return lambda: None
