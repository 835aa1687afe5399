"""rng.py: one seed for everything, states that go on exactly, and fetches that leave no trace."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.machine import rng

ROOT = Path(__file__).parents[2]


def draw() -> tuple[float, ...]:
    """One number of every kind; the odd count of Gaussians leaves one cached in python and in NumPy."""
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(paddle.rand([1]).item()),
    )


def in_fresh_process(code: str, **environment: str) -> str:
    env = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, check=True, capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def no_seed_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rng.SEED_VARIABLE, "0")
    monkeypatch.delenv(rng.SEED_VARIABLE)


def test_a_derived_seed_is_the_same_for_ever() -> None:
    assert [rng.derive_seed(7), rng.derive_seed(7, "batch", 0, 12), rng.derive_seed(0, "order", 3)] == [
        973742608,
        3780512641,
        803351366,
    ]


def test_derived_seeds_fit_numpy_and_differ_by_every_key() -> None:
    seeds = {
        rng.derive_seed(seed, kind, epoch, batch)
        for seed in range(5)
        for kind in ("order", "batch")
        for epoch in range(10)
        for batch in range(50)
    }
    assert len(seeds) == 5000
    assert all(0 <= seed <= rng.MAX_SEED for seed in seeds)


def test_a_derived_seed_does_not_depend_on_the_type_of_an_integer() -> None:
    assert rng.derive_seed(np.int64(7), "batch", np.int32(3)) == rng.derive_seed(7, "batch", 3)


def test_keys_are_not_run_together() -> None:
    assert rng.derive_seed(1, 23) != rng.derive_seed(12, 3)


def test_seed_everything_seeds_python_numpy_and_paddle() -> None:
    rng.seed_everything(5)
    first = draw()
    rng.seed_everything(5)
    assert draw() == first
    rng.seed_everything(6)
    assert all(one != other for one, other in zip(draw(), first))


def test_seed_everything_returns_the_seed_and_hands_it_to_child_processes() -> None:
    assert rng.seed_everything(np.int64(11), workers=True) == 11
    assert os.environ[rng.SEED_VARIABLE] == "11"
    assert rng.seed_everything() == 11


def test_seed_everything_without_a_seed_anywhere_takes_zero() -> None:
    assert rng.seed_everything() == 0


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "7"])
def test_a_seed_out_of_range_is_refused(seed: object) -> None:
    with pytest.raises(ConfigurationError, match=r"seed must be an int from 0 to 4294967295"):
        rng.seed_everything(seed)  # type: ignore[arg-type]


def test_a_bad_seed_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rng.SEED_VARIABLE, "abc")
    with pytest.raises(ConfigurationError, match=r"PADDLELITE_GLOBAL_SEED must be an int .* got 'abc'"):
        rng.seed_everything()


def test_a_drawn_seed_is_decided_by_numpys_global_generator() -> None:
    np.random.seed(3)
    first = [rng.draw_seed() for _ in range(20)]
    np.random.seed(3)
    assert [rng.draw_seed() for _ in range(20)] == first
    assert len(set(first)) == 20
    assert max(first) > 2**31


def test_random_states_go_on_where_they_were() -> None:
    rng.seed_everything(1)
    draw()
    state = rng.random_states()
    after = draw()
    rng.seed_everything(2)
    draw()
    rng.set_random_states(state)
    again = draw()
    if rng.paddle_cpu_generator_can_be_saved():
        assert again == after
    else:
        assert again[:-1] == after[:-1]


def test_random_states_are_plain_data() -> None:
    def check(value: object) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (int, float, str, bytes, np.ndarray), type(value)

    check(rng.random_states())


def test_random_states_go_on_exactly_in_a_fresh_process(tmp_path: Path) -> None:
    rng.seed_everything(4)
    draw()
    path = tmp_path / "state"
    path.write_bytes(pickle.dumps(rng.random_states()))
    expected = draw()
    code = (
        "import pickle, sys, json; sys.path[:0] = ['tests', 'tests/machine']; from test_rng import draw, rng\n"
        f"rng.set_random_states(pickle.loads(open({str(path)!r}, 'rb').read())); print(json.dumps(draw()))"
    )
    restored = tuple(json.loads(in_fresh_process(code)))
    if rng.paddle_cpu_generator_can_be_saved():
        assert restored == expected
    else:
        assert restored[:-1] == expected[:-1]


def test_whether_paddles_generator_can_be_saved_is_known_and_recorded() -> None:
    major = int(paddle.__version__.split(".")[0])
    assert rng.paddle_cpu_generator_can_be_saved() == (major >= 3)
    assert (rng.random_states()["paddle"]["cpu"] is None) == (major < 3)


def test_finding_out_whether_it_can_be_saved_leaves_no_trace() -> None:
    paddle.seed(9)
    paddle.rand([1])
    before = paddle.get_rng_state()
    expected = paddle.rand([3]).tolist()
    paddle.set_rng_state(before)
    rng.paddle_cpu_generator_can_be_saved.cache_clear()
    rng.paddle_cpu_generator_can_be_saved()
    assert paddle.rand([3]).tolist() == expected


def test_a_state_of_a_device_that_is_gone_is_warned_about() -> None:
    state = rng.random_states()
    state["paddle"]["gpu:7"] = [0, 1, 2]
    with pytest.warns(UserWarning, match="random state of device 'gpu:7' is not used"):
        rng.set_random_states(state)


def test_another_bit_generator_of_numpy_is_restored_too() -> None:
    ours = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = rng.random_states()
        expected = np.random.rand()
        np.random.set_bit_generator(ours)
        rng.set_random_states(state)
        assert np.random.rand() == expected
    finally:
        np.random.set_bit_generator(ours)


def test_a_state_cannot_name_a_class_of_its_own() -> None:
    state = rng.random_states()
    state["numpy"] = {**state["numpy"], "bit_generator": "os.system"}
    with pytest.raises(ConfigurationError, match=r"no bit generator 'os.system'"):
        rng.set_random_states(state)


def test_isolated_random_states_leave_no_trace_even_after_an_error() -> None:
    rng.seed_everything(8)
    draw()
    state = paddle.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()
    expected = draw()
    random.setstate(python)
    np.random.set_state(numpy)
    paddle.set_rng_state(state)
    with pytest.raises(ZeroDivisionError), rng.isolated_random_states():
        rng.seed_everything(1)
        draw()
        np.random.set_bit_generator(np.random.PCG64(1))
        raise ZeroDivisionError
    assert draw() == expected


def test_an_isolated_seed_gives_the_same_numbers_whatever_was_before() -> None:
    isolated = rng.IsolatedSeed()
    seen = []
    for noise in range(3):
        rng.seed_everything(noise)
        for _ in range(noise):
            draw()
        isolated.enter(123)
        seen.append(draw())
        isolated.leave()
    assert seen[0] == seen[1] == seen[2]


def test_an_isolated_seed_puts_the_surroundings_back() -> None:
    def three(isolate: bool) -> list[tuple[float, ...]]:
        rng.seed_everything(8)
        isolated = rng.IsolatedSeed()
        drawn = []
        for step in range(3):
            if isolate:
                isolated.enter(step)
                draw()
                isolated.leave()
            else:
                rng.drop_cached_gaussian()
            drawn.append(draw())
        return drawn

    assert three(isolate=True) == three(isolate=False)


def test_isolated_seeds_nest() -> None:
    outer, inner = rng.IsolatedSeed(), rng.IsolatedSeed()
    outer.enter(1)
    expected = [random.random(), np.random.rand(), paddle.rand([1]).item()]
    outer.leave()
    outer.enter(1)
    inner.enter(2)
    draw()
    inner.leave()
    assert [random.random(), np.random.rand(), paddle.rand([1]).item()] == expected
    outer.leave()


def test_an_isolated_seed_works_where_numpys_generator_cannot_be_seeded() -> None:
    ours = np.random.get_bit_generator()
    isolated = rng.IsolatedSeed()
    isolated.enter(1)
    expected = np.random.rand()
    isolated.leave()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        isolated.enter(1)
        assert np.random.rand() == expected
        isolated.leave()
        assert isinstance(np.random.get_bit_generator(), np.random.PCG64)
    finally:
        np.random.set_bit_generator(ours)


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from paddlelite_trainer.machine.rng import derive_seed; print(derive_seed(7, 'batch', 0, 12))"
    assert {in_fresh_process(code, PYTHONHASHSEED=salt) for salt in ("1", "2")} == {"3780512641"}


@pytest.mark.parametrize("by", ["memory", "getstate"])
def test_pythons_state_is_put_back_bit_for_bit_either_way(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rng._python_memory is not None  # of every CPython that is supported
    if by == "getstate":
        monkeypatch.setattr(rng, "_python_memory", None)
    for numbers in range(0, 700, 7):
        random.seed(numbers)
        for _ in range(numbers):
            random.random()
        random.gauss(0, 1)  # one more is waiting
        before = random.getstate()
        isolated = rng.IsolatedSeed()
        isolated.enter(numbers)
        inside = draw()
        isolated.leave()
        assert random.getstate() == before
        isolated.enter(numbers)
        random.gauss(0, 1)
        assert draw()[1] != inside[1]
        isolated.leave()
        assert random.getstate() == before
