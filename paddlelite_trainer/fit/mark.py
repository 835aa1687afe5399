"""Mark: a moment of a fit that a checkpoint can still be made of when what came after it failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..callback import Callback, keyed, overridden
from ..machine.rng import isolated_random_states, random_snapshot, set_random_snapshot

if TYPE_CHECKING:
    from ..module import Module
    from ..progress import Progress

# Of an open window a batch may have ended; else on_train_batch_end comes when the weights have moved.
BATCH = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
VALIDATION = tuple(
    f"on_validation_{name}" for name in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
)
EPOCH_END = ("on_train_epoch_end", "on_train_epoch_start", "on_train_end", "on_fit_end")


class Part(Protocol):
    """A part of a fit that knows how to go back to where it was."""

    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...


class Mark:
    """Remembers, in tens of microseconds, all that may change before the next optimizer step; weights it does not copy.

    So it holds until an optimizer moves. Beside the parts' own snapshots it has random states, buffers and running
    means, and the state of those callbacks that one of `hooks` could change.
    """

    def __init__(
        self,
        hooks: tuple[str, ...],
        progress: Progress,
        parts: Sequence[Part],
        module: Module,
        source: dict[str, Any] | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.gradients_hold = hooks is not BATCH
        """Whether the gradients that wait are the same still; a batch adds to them, and a mark before one has none."""
        self.source = source
        """The position in the training data."""
        self._progress, self._holds_for = progress, progress.steps_begun
        self._parts = [(part, part.snapshot()) for part in parts]
        self._random = random_snapshot()
        self._unlearned = {
            name: tensor.clone() for name, tensor in module.state_dict().items() if _may_change_in_forward(tensor)
        }
        self.callbacks = {
            key: _copied(callback.state_dict())
            for key, callback in keyed(callbacks)
            if overridden(callback, "state_dict", Callback)
            and any(overridden(callback, hook, Callback) for hook in hooks)
        }
        """{state key: state}, which a checkpoint takes instead of what these callbacks say later."""
        self.loggers: list[Any] | None = None
        """Positions in the logs; None while nothing was logged since: asking costs a write to the files."""

    def remember_logs(self, positions: list[Any]) -> None:
        """Where the logs are, before anything is written to them."""
        self.loggers = positions

    @property
    def holds(self) -> bool:
        """Whether no optimizer has moved since."""
        return self._progress.steps_begun == self._holds_for

    def weights(self, present: Mapping[str, Any]) -> dict[str, Any]:
        """The module's state_dict as it was."""
        return {**present, **self._unlearned}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parts are as they were; afterwards as they have become."""
        now = [(part, part.snapshot()) for part, _ in self._parts]
        try:
            with isolated_random_states():
                set_random_snapshot(self._random)
                for part, snapshot in self._parts:
                    part.restore(snapshot)
                yield
        finally:
            for part, snapshot in now:
                part.restore(snapshot)


def _may_change_in_forward(tensor: Any) -> bool:
    # Buffers; and running means, which Paddle makes parameters that are not trained. A frozen weight has more axes.
    return bool(tensor.stop_gradient) and (not hasattr(tensor, "trainable") or tensor.ndim <= 1)


def _copied(tree: Any) -> Any:
    """A copy of everything but tensors, which callbacks change in optimizer steps and not between them."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copied(value) for value in tree] if isinstance(tree, list) else tuple(map(_copied, tree))
    return tree.copy() if isinstance(tree, np.ndarray) else tree
