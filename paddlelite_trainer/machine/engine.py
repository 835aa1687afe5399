"""Engine: what moves gradients and weights between the ranks of one fit, always Paddle's own, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from .ranks import Ranks

Step = Callable[[Any, int], Any]
Backward = Callable[..., None]
"""backward(loss, retain_graph=False)"""


class Engine:
    """Base of what spreads a fit over ranks. Here each rank has all weights and the whole optimizer's state."""

    is_sharded = False
    everyone_keeps = False
    """Whether what is not cut of a sharded optimizer's state is on every rank."""

    def training_step(self, step: Step) -> Step:
        """The module's training_step, whose gradients the ranks share."""
        raise NotImplementedError

    def stepping(self, optimizer: Any) -> Any:
        """What is asked to unscale, step and clear in this optimizer's place."""
        return optimizer

    def automatic(self, backward: Backward) -> Backward:
        """The trainer's backward of a batch."""
        return backward

    def manual(self, backward: Backward) -> Backward:
        """A backward of the user's own in manual optimization, whose gradients the ranks share."""
        return backward

    def gather_gradients(self) -> None:
        """A window is complete: each gradient that is here is from now on the mean over the ranks."""

    def keeps(self, name: str) -> bool:
        """Whether this rank has the optimizer's state of the parameter of that name in Paddle."""
        return True

    def whole(self) -> AbstractContextManager[None]:
        """Within, every rank has all weights, which may be read and written; a collective."""
        return nullcontext()

    def begin_batch(self) -> None:
        """A batch of an evaluation begins that all ranks take together, each layer's weights being gathered."""

    def go_along(self) -> None:
        """Another rank takes a batch more, as the last one here: be there where it gathers weights."""

    def held(self, weights: list[Any]) -> list[Any]:
        """What this rank has of these weights: slices of those that are cut."""
        return weights

    def slices(self, weights: Mapping[str, Any]) -> dict[str, tuple[Any, int, int]]:
        """Of those weights that are cut what is here: {name: (flat and padded, its first number in the whole, its last
        + 1)}."""
        return {}

    @property
    def keeps_cut(self) -> bool:
        """Whether weights are to stay cut, in saves too."""
        return False

    def state_names(self, names: Mapping[str, str]) -> Mapping[str, str]:
        """{name in Paddle, by which an optimizer keeps state: name in the module}."""
        return names

    def cut(self, tensors: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """The whole shapes of those of the optimizers' tensors that are cut."""
        return {}

    def part_of(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Of a whole tensor of an optimizer's, for the parameter of that name in the module, the first number that is
        kept here and the last + 1; None: all of it."""
        return None

    def state_in(self, optimizer: Any) -> AbstractContextManager[None]:
        """Within, the optimizer's parameters are those that it keeps state of."""
        return nullcontext()

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


def refuse_changed(parameters: Sequence[Any], learns: Sequence[bool], names: dict[str, str], strategy: str) -> None:
    """Raise ConfigurationError where parameters do not learn as they did when the fit began."""
    changed = [one for one, learned in zip(parameters, learns) if one.trainable != learned]
    if changed:
        raise ConfigurationError(
            f"{names_of(changed, names)}: frozen or unfrozen during a fit with strategy={strategy!r}, where Paddle "
            "deals parameters out once, as the fit begins. Give what is to wait a learning rate of 0, or use "
            "strategy='ddp'"
        )


def refuse_skipping(outputs: Any, strategy: str) -> None:
    """Raise TrainingError where a step has no loss: the other ranks would wait for this one's gradients."""
    if outputs is None:
        raise TrainingError(
            f"training_step returned None, which skips a batch on one process alone: with strategy={strategy!r} each "
            "step is one of all ranks. Return loss * 0 where there is nothing to learn."
        )


@contextmanager
def refusing_what_paddle_cannot_shard(optimizer: Any, strategy: str) -> Iterator[None]:
    """Within, an assertion of Paddle's sharding is a ConfigurationError."""
    try:
        yield
    except AssertionError as error:
        raise ConfigurationError(
            f"strategy={strategy!r}: Paddle {paddle.__version__} cannot shard a {type(optimizer).__name__} here: "
            f"{error}. Use strategy='ddp'"
        ) from error


def names_of(parameters: Iterable[Any], names: dict[str, str]) -> str:
    """The first few parameters by their names in the module."""
    named = [names.get(parameter.name, parameter.name) for parameter in parameters]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
