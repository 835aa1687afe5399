"""Engine: what moves gradients and weights between the ranks of one fit, always Paddle's own, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ranks import Ranks

Step = Callable[[Any, int], Any]


class Engine:
    """Base of what spreads a fit over ranks. Here each rank has all weights and the whole optimizer's state."""

    is_sharded = False

    def training_step(self, step: Step) -> Step:
        """The module's training_step, whose gradients the ranks share."""
        raise NotImplementedError

    def stepping(self, optimizer: Any) -> Any:
        """What is asked to unscale, step and clear in this optimizer's place."""
        return optimizer

    def gather_gradients(self) -> None:
        """A window is complete: each gradient that is here is from now on the mean over the ranks."""

    def keeps(self, name: str) -> bool:
        """Whether this rank has the optimizer's state of the parameter of that name in Paddle."""
        return True

    def norm(self, parameters: Sequence[Any]) -> Any:
        """The 2-norm of all ranks' gradients, of which these parameters' are here; None: all are here."""
        return None

    def put_gradient_back(self, parameter: Any, put: Callable[[Any], None]) -> None:
        """Let the parameter have a gradient again that waited within a window; `put` does it."""
        put(parameter)

    def refuse_new_parameters(self) -> None:
        """Raise ConfigurationError where an optimizer cannot get parameters that it did not have at first."""

    def let_go(self) -> None:
        """The fit is over."""


class WaitForRanks:
    """What is called last before a backward: a rank may be late in its data, in a hook or in the step."""

    def __init__(self, ranks: Ranks, ends_window: Callable[[], bool]) -> None:
        self.ranks, self.ends_window = ranks, ends_window

    def before_backward(self, loss: Any) -> None:
        if self.ends_window():
            self.ranks.begin_exchange()


def names_of(parameters: Iterable[Any], names: dict[str, str]) -> str:
    """The first few parameters by their names in the module."""
    named = [names.get(parameter.name, parameter.name) for parameter in parameters]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
