"""Several training loaders at once: a batch of each, in the dict, list or tuple that they came in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import paddle

from ..errors import ConfigurationError, ConfigurationTypeError, DataError, explains_unknown_arguments
from ..machine.rng import derive_seed
from .fetch import END
from .share import Share
from .streams import Replay, Stream

Mode = Literal["min_size", "max_size_cycle"]
_MODES = ("min_size", "max_size_cycle")


class CombinedLoader:
    """Loaders that are read together: `training_step` is given a batch of each, in a dict, list or tuple as given here.

        trainer.fit(module, CombinedLoader({"labelled": small, "unlabelled": large}, mode="max_size_cycle"))

    A dict, list or tuple of loaders that `fit` is given, or train_dataloader returns, is one of mode "min_size".

    Args:
        iterables: the loaders, in a dict, list or tuple.
        mode: "min_size" ends an epoch with the shortest loader; "max_size_cycle" ends it with the longest and begins
            the shorter ones anew, each time in another order, and needs to know how long all are.

    Raises:
        ConfigurationError: there is no such mode, there are no loaders, or loaders within loaders.
        ConfigurationTypeError: it is no dict, list or tuple of loaders.
    """

    @explains_unknown_arguments({})
    def __init__(self, iterables: Mapping[Any, Any] | Sequence[Any], mode: Mode = "min_size") -> None:
        if mode not in _MODES:
            raise ConfigurationError(f"CombinedLoader(mode=...) must be one of {', '.join(_MODES)}, got {mode!r}")
        if not isinstance(iterables, (Mapping, list, tuple)):
            raise ConfigurationTypeError(
                f"CombinedLoader takes a dict, a list or a tuple of loaders, got {type(iterables).__name__}"
            )
        if not iterables:
            raise ConfigurationError(f"CombinedLoader was given no loader, but an empty {type(iterables).__name__}")
        self.iterables, self.mode = iterables, mode
        named = iterables.items() if isinstance(iterables, Mapping) else enumerate(iterables)
        self.by_key: dict[Any, Any] = dict(named)
        for key, loader in self.by_key.items():
            if isinstance(loader, (Mapping, CombinedLoader)) or are_several_loaders(loader):
                raise ConfigurationTypeError(
                    f"CombinedLoader was given several loaders, a {type(loader).__name__}, as its loader {key!r}: "
                    "loaders are not nested here, give all of them side by side"
                )

    def together(self, batches: list[Any]) -> Any:
        """One batch of each, as the loaders came."""
        if isinstance(self.iterables, Mapping):
            return dict(zip(self.by_key, batches))
        return tuple(batches) if isinstance(self.iterables, tuple) else batches

    def __len__(self) -> int:
        """Batches of an epoch.

        Raises:
            ConfigurationTypeError: a loader that counts has no length.
        """
        lengths = []
        for key, loader in self.by_key.items():
            try:
                lengths.append(len(loader))
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise ConfigurationTypeError(
                    f"len(CombinedLoader): its loader {key!r}, a {type(loader).__name__}, has no length"
                ) from error
        return min(lengths) if self.mode == "min_size" else max(lengths)

    def __bool__(self) -> bool:
        return True  # where there is no length too

    def __iter__(self) -> Iterator[Any]:
        raise ConfigurationError("a CombinedLoader is read by a Trainer, which knows the epoch: pass it to fit")


def are_several_loaders(given: Any) -> bool:
    """A list of loaders, as against one list of batches."""
    plain = (list, tuple, dict, paddle.Tensor)
    return (
        isinstance(given, (list, tuple))
        and bool(given)
        and all(
            hasattr(item, "__iter__") and not isinstance(item, plain) and not hasattr(item, "shape") for item in given
        )
    )


class CombinedStream(Stream):
    """The streams of several loaders, each under a seed of its own; a position is one in each of them."""

    def __init__(self, combined: CombinedLoader, make: Callable[..., Stream], **settings: Any) -> None:
        super().__init__(**settings)
        self.combined = combined
        self.parts = [
            make(
                loader,
                share=self.share,
                seed=derive_seed(self.seed, "part", str(key)),
                limit=None,
                name=f"{self.name}[{key!r}]",
                multiprocessing_context=self.multiprocessing_context,
            )
            for key, loader in combined.by_key.items()
        ]
        unknown = [part.name for part in self.parts if part.length is None]
        if unknown and combined.mode == "max_size_cycle":
            raise ConfigurationError(
                f"CombinedLoader(mode='max_size_cycle') needs the number of batches of every loader, and "
                f"{', '.join(unknown)} has no length. Give it a __len__, or take mode='min_size'."
            )
        self._need_count(None if unknown else 1)
        self._is_over = False

    @property
    def length(self) -> int | None:
        return self.whole_length if self.share.end is None else self.share.count(self.share.end)

    @property
    def whole_length(self) -> int | None:
        return self._of_lengths([part.whole_length for part in self.parts])

    def _of_lengths(self, lengths: Sequence[int | None]) -> int | None:
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            return None
        return self._limited(max(known) if self.combined.mode == "max_size_cycle" else min(known))

    def length_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        return self._of_lengths([part.length_before(saved, ranks) for part, saved in self._saved_parts(state)])

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> str | None:
        if self.combined.mode == "max_size_cycle":
            return f"{self.name} begins its shorter loaders anew, at places that go by the number of processes"
        return next(
            filter(None, (part.why_not_dealt_again(one, ranks) for part, one in self._saved_parts(state))), None
        )

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        done = {"batches_done": state["batches_done"]}
        parts = [part.dealt_again({**saved, **done}, ranks) for part, saved in self._saved_parts(state)]
        ends = [part["share"]["end"] for part in parts]
        return {
            **self._dealt(state, ranks, None if None in ends else min(ends)),
            "parts": parts,
        }

    def deal(self, share: Share) -> None:
        super().deal(share)
        for part in self.parts if share.first == 0 else ():
            part.deal(part.share.whole)

    def _saved_parts(self, state: Mapping[str, Any]) -> list[tuple[Stream, Mapping[str, Any]]]:
        return list(zip(self.parts, state.get("parts", [{}] * len(self.parts))))

    @property
    def samples(self) -> int | None:
        return self.parts[0].samples

    @property
    def can_look_ahead(self) -> bool:
        return False

    def look_ahead_never(self) -> None:
        for part in self.parts:
            part.look_ahead_never()

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        count = self.length
        end = self._least() if count is None else count
        if count is not None:
            self._check_start(start_batch, count)
        for part in self.parts:
            part.go_back()
        is_over, self._is_over = self._is_over and epoch == self.current_epoch, False
        self._begin(epoch, start_batch)
        self.batch_size = self.parts[0].batch_size
        if is_over or (end is not None and start_batch >= end):
            self.is_last = True
            return
        with contextlib.ExitStack() as stack:
            readers = [self._reader(part, epoch, start_batch, end, on_replay) for part in self.parts]
            for reader in readers:
                stack.callback(reader.close)
            for number in range(start_batch + 1, (end or 2**62) + 1):
                batches = [next(reader, END) for reader in readers]
                if any(batch is END for batch in batches):
                    return  # shorter than it said, which the loop refuses
                self.batches_done = number
                self.is_last = number == end or (count is None and any(part.is_last for part in self.parts))
                yield self.combined.together(batches)
                if self.is_last:
                    return

    def _least(self) -> int | None:
        """The most batches that an epoch of mode "min_size" can have, as far as it is known."""
        limit = [self.limit] if isinstance(self.limit, int) else []
        return min([*limit, *(part.length for part in self.parts if part.length is not None)], default=None)

    def _reader(self, part: Stream, epoch: int, start_batch: int, end: int | None, on_replay: Replay) -> Any:
        """A part's batches from a position of the whole on; a shorter one goes round, each pass an epoch of its own."""
        if self.combined.mode == "min_size":
            yield from part.epoch(epoch, start_batch, on_replay)
            return
        length = part.length
        assert length is not None and end is not None
        passes = -(-end // length)
        for turn in range(start_batch // length, passes):
            yield from part.epoch(epoch * passes + turn, start_batch % length, on_replay)
            start_batch = 0
            if part.batches_done < length:
                raise DataError(
                    f"{part.name} said that it has {length} batches and ended after {part.batches_done}: "
                    "correct its __len__"
                )

    def tell_epoch(self, epoch: int) -> None:
        for part in self.parts:
            part.tell_epoch(epoch)

    def go_along_with(self, other: Stream) -> None:
        if isinstance(other, CombinedStream):
            for mine, theirs in zip(self.parts, other.parts):
                mine.go_along_with(theirs)

    def state_dict(self) -> dict[str, Any]:
        share = {"share": self.share.as_state()}
        return {**super().state_dict(), **share, "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._is_over = self.is_last
        for part, saved in zip(self.parts, state.get("parts", ())):
            part.load_state_dict(saved)

    def close(self) -> None:
        super().close()
        for part in self.parts:
            part.close()
