"""Seeds everything, and saves and restores every random state: python's, NumPy's and Paddle's on all devices."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError
from .paddle_internals import current_place, set_current_place

core: Any = paddle.base.core  # its stubs know only what one build has
_numpy: Any = np.random  # its stubs leave out get_bit_generator and set_bit_generator

SEED_VARIABLE = "PADDLELITE_GLOBAL_SEED"
MAX_SEED = 2**32 - 1  # what np.random.seed takes


def derive_seed(seed: int, *keys: int | str) -> int:
    """A seed in [0, 2**32) that depends on every argument, the same on every machine and version.

    >>> derive_seed(7, "batch", 0, 12) != derive_seed(7, "batch", 0, 13)
    True
    """
    text = "\x1f".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = False) -> int:
    """Seed python, NumPy and Paddle on all devices, and return the seed.

    The variable PADDLELITE_GLOBAL_SEED is set, so child processes follow.

    Args:
        seed: from 0 to 2**32 - 1; None: what PADDLELITE_GLOBAL_SEED says, else 0.
        workers: accepted for Lightning's sake; a Trainer seeds every batch in loader workers anyway.
        verbose: accepted for Lightning's sake; nothing is printed.

    Raises:
        ConfigurationError: the seed is out of this range, or the variable holds no number.
    """
    del workers, verbose
    if seed is None:
        seed = _seed_from_environment()
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ConfigurationError(f"seed must be an int from 0 to {MAX_SEED}, got {seed!r}")
    seed = int(seed)
    os.environ[SEED_VARIABLE] = str(seed)
    seed_generators(seed)
    return seed


def seed_generators(seed: int) -> None:
    """Seed python, NumPy and Paddle on all devices of this process."""
    random.seed(seed)
    np.random.seed(seed)
    for generator in _paddle_generators().values():
        generator.manual_seed(seed)


def draw_seed() -> int:
    """A seed from NumPy's global generator, so that whoever seeded that one has decided."""
    return int(np.random.randint(MAX_SEED + 1, dtype=np.int64))


def random_states() -> dict[str, Any]:
    """Every random state of this process as plain data: ints, bytes, lists, arrays.

    `["paddle"]["cpu"]` is None where Paddle cannot save it (see `paddle_cpu_generator_can_be_saved`).
    """
    version, words, gauss = random.getstate()
    saved: dict[str, list[Any] | None] = {
        name: _to_plain(generator.get_state()) for name, generator in _paddle_generators().items()
    }
    if not paddle_cpu_generator_can_be_saved():
        saved["cpu"] = None
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "paddle": saved,
        "device": paddle.get_device(),
    }


def set_random_states(state: dict[str, Any]) -> None:
    """Put back what `random_states` returned, here or in a fresh process."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    _set_numpy_state(state["numpy"])
    generators = _paddle_generators()
    for name, plain in _by_present_device(state).items():
        if plain is None or (name == "cpu" and not paddle_cpu_generator_can_be_saved()):
            continue
        if name in generators:
            generators[name].set_state(_from_plain(plain))
        else:
            warnings.warn(
                f"the saved random state of device {name!r} is not used: this process has {sorted(generators)}. "
                "Random numbers drawn on the device (dropout) go on differently.",
                stacklevel=2,
            )


def _by_present_device(state: dict[str, Any]) -> dict[str, Any]:
    """Paddle's states by device; what the process computed on is that of the device that it computes on now.

    A rank has another number on its machine where as many ranks are spread over more machines or fewer.
    """
    before, now = state.get("device", ""), paddle.get_device()  # an earlier version did not say
    saved = dict(state["paddle"])
    if before != now and before in saved and before.partition(":")[0] == now.partition(":")[0]:
        saved[now] = saved.pop(before)
    return saved


@lru_cache(maxsize=1)
def paddle_cpu_generator_can_be_saved() -> bool:
    """Whether Paddle's CPU generator goes on exactly from its state as plain data; Paddle 2.6 leaves the engine out."""
    generator = core.default_cpu_generator()
    before = generator.get_state()
    try:
        # Away from the start: a state without its engine restores to a freshly seeded one, which must not pass.
        generator.manual_seed(1)
        generator.random()
        state = generator.get_state()
        generator.set_state(_from_plain(_to_plain(state)))
        restored = generator.random()
        generator.set_state(state)
        return bool(restored == generator.random())
    finally:
        generator.set_state(before)


@contextmanager
def isolated_random_states() -> Iterator[None]:
    """Whatever is drawn or seeded inside leaves no trace outside."""
    before = random_snapshot()
    try:
        yield
    finally:
        set_random_snapshot(before)


def random_snapshot() -> tuple[Any, ...]:
    """Every random state for use in this process; exact on every Paddle version, other than `random_states`."""
    states = {name: generator.get_state() for name, generator in _paddle_generators().items()}
    return random.getstate(), _numpy.get_bit_generator(), np.random.get_state(legacy=False), states


def set_random_snapshot(snapshot: tuple[Any, ...]) -> None:
    """Put back what `random_snapshot` returned."""
    python, bit_generator, numpy, states = snapshot
    random.setstate(python)
    _numpy.set_bit_generator(bit_generator)
    np.random.set_state(numpy)
    for name, generator in _paddle_generators().items():
        generator.set_state(states[name])


def python_and_numpy() -> bytes:
    """Equal at two moments between which nobody drew from python's and NumPy's global generators; some 100 us."""
    return pickle.dumps((random.getstate(), np.random.get_state(legacy=False)))


class IsolatedSeed:
    """Seeds python, NumPy and Paddle's CPU generator for one fetch, then puts the surrounding states back.

    `enter(seed)` and `leave()` are for the batch path: 20 us together, no object made but the saved states. One object
    serves one iteration; different objects nest. `on_host` makes Paddle create tensors on the CPU meanwhile. NumPy's
    cached second Gaussian of the surroundings is dropped: it lives outside the bit generator, and saving it costs 45
    us. `drop_cached_gaussian` does the same where no fetch runs in this process, so that both draw the same numbers.
    """

    __slots__ = ("_numpy_outside", "_numpy_own", "_on_host", "_paddle", "_paddle_outside", "_place", "_python_outside")

    def __init__(self, *, on_host: bool = False) -> None:
        self._numpy_own = np.random.MT19937(0)
        self._paddle = core.default_cpu_generator()
        self._on_host = on_host

    def enter(self, seed: int) -> None:
        # Written out, as in `leave`: a function would be a call for every batch.
        memory = _python_memory
        self._python_outside: tuple[Any, Any]
        self._python_outside = (random.getstate(), None) if memory is None else (memory.raw, _python.gauss_next)
        self._numpy_outside = _numpy.get_bit_generator()
        self._paddle_outside = self._paddle.get_state()
        random.seed(seed)
        _numpy.set_bit_generator(self._numpy_own)  # swapping costs 0.6 us, get_state and set_state 90 us
        np.random.seed(seed)
        self._paddle.manual_seed(seed)
        self._place = None
        if self._on_host and not isinstance(place := current_place(), core.CPUPlace):
            self._place = place
            set_current_place(core.CPUPlace())

    def leave(self) -> None:
        state, gauss = self._python_outside
        if _python_memory is None:
            random.setstate(state)
        else:
            ctypes.memmove(_python_memory, state, len(state))
            vars(_python)["gauss_next"] = gauss
        _numpy.set_bit_generator(self._numpy_outside)
        self._paddle.set_state(self._paddle_outside)
        if self._place is not None:
            set_current_place(self._place)


def drop_cached_gaussian() -> None:
    """Forget the second Gaussian that np.random.randn keeps for its next call, as `IsolatedSeed` does."""
    _numpy.set_bit_generator(_numpy.get_bit_generator())


def _memory_of_python_generator() -> Any:
    """The bytes in which python's generator has its state, as CPython lays it out; None where that does not hold."""
    size = 625 * 4  # the position, and 624 words
    before = random.getstate()
    try:
        if _python.__class__.__base__.__basicsize__ - object.__basicsize__ not in (size, size + 4):
            return None
        memory = (ctypes.c_char * size).from_address(id(_python) + object.__basicsize__)
        copy = memory.raw
        random.seed(1)
        random.random()
        ctypes.memmove(memory, copy, size)
        return memory if random.getstate()[1] == before[1] else None
    finally:
        random.setstate(before)


_python: Any = random.random.__self__  # type: ignore[attr-defined]
_python_memory = _memory_of_python_generator()


def _seed_from_environment() -> int:
    text = os.environ.get(SEED_VARIABLE, "0")
    if not text.isdecimal():
        raise ConfigurationError(f"the environment's {SEED_VARIABLE} must be an int from 0 to {MAX_SEED}, got {text!r}")
    return int(text)


def _set_numpy_state(state: dict[str, Any]) -> None:
    if np.random.get_state(legacy=False)["bit_generator"] != state["bit_generator"]:
        _numpy.set_bit_generator(getattr(np.random, _known_bit_generator(state["bit_generator"]))())
    np.random.set_state(state)


def _known_bit_generator(name: str) -> str:
    if name not in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"):
        raise ConfigurationError(f"NumPy has no bit generator {name!r}, which the saved random state names")
    return name


def _paddle_generators() -> dict[str, Any]:
    """{device name: its default generator}, the CPU's always among them."""
    generators: dict[str, Any] = {"cpu": core.default_cpu_generator()}
    if paddle.is_compiled_with_cuda():
        for index in range(core.get_cuda_device_count()):
            generators[f"gpu:{index}"] = core.default_cuda_generator(index)
    elif paddle.is_compiled_with_xpu():
        for index in range(core.get_xpu_device_count()):
            generators[f"xpu:{index}"] = core.default_xpu_generator(index)
    for name in core.get_available_custom_device():
        kind, _, number = name.partition(":")
        generators[name] = core.default_custom_device_generator(core.CustomPlace(kind, int(number or 0)))
    return generators


def _to_plain(state: Any) -> list[Any]:
    """A GeneratorState's fields; the engine, which Paddle gives as a list of character codes, as bytes."""
    return [bytes(field) if isinstance(field, list) else field for field in state.__getstate__()]


def _from_plain(plain: list[Any]) -> Any:
    # Built from its fields, not unpickled: a checkpoint must not be able to name a class.
    state = core.GeneratorState.__new__(core.GeneratorState)
    state.__setstate__(tuple(list(field) if isinstance(field, bytes) else field for field in plain))
    return state
