"""Compiled: forwards that paddle.jit.to_static has translated, for `Trainer(compile=...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError
from ..export.refusal import why_not_traced
from ..machine.stand_ins import StandIn, lifted
from ..module import Module
from .chosen_layers import chosen
from .recomputing import recompute_layers

if TYPE_CHECKING:
    from ..settings import Settings


class Compiled(StandIn):
    """Calls the translated forward; where that fails once and the layer's own does not, its own from there on."""

    def __init__(self, layer: Any, name: str, options: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        super().__init__(layer)
        self.name, self.tell = name, tell
        self.translated: Callable[..., Any] | None = paddle.jit.to_static(
            self.own, full_graph=options.get("full_graph", True), backend=options.get("backend")
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.translated is None:
            return self.own(*args, **kwargs)
        try:
            return self.translated(*args, **kwargs)
        except Exception as error:
            failure = error
        self.translated = None
        outputs = self.own(*args, **kwargs)  # what is the user's own error is raised here, as without compile
        self.tell(f"WARNING: compile: {self.name} runs as it is, not compiled. {why_not_traced(failure)}")
        return outputs


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
