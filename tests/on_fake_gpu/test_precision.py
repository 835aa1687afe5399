"""Precision on the fake accelerator, against AMP loops written by hand and against Paddle's traps."""

from __future__ import annotations

import warnings
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest
from amp_loops import SCALER_OPTIONS, Network, Run, bits, by_hand, by_precision, start
from paddle.nn import functional as F

from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError
from paddlelite_trainer.machine.precision import PRECISIONS, LossScaler, Precision, is_out_of_memory

VARIANTS = {"plain": {}, "accumulation": {"accumulate": 4}, "clipping": {"clip": 0.5}, "inf": {"inf_at": 2}}
VARIANTS["all together"] = {"accumulate": 2, "clip": 0.5, "inf_at": 1}


@pytest.fixture
def allowed(request: pytest.FixtureRequest) -> None:
    """bfloat16, for tests that are parametrized with a precision that needs it."""
    if request.node.callspec.params["precision"].startswith("bf16"):
        request.getfixturevalue("bfloat16")


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "AdamW"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_step_has_the_bits_of_the_hand_written_loop(
    precision: str, variant: str, optimizer: str, allowed: None
) -> None:
    run = Run(precision, optimizer, **VARIANTS[variant])  # type: ignore[arg-type]
    expected, actual = by_hand(run), by_precision(run)
    for window, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name]] == [], f"window {window}"


def test_the_runs_compared_do_skip_shrink_and_grow() -> None:
    scales = [float(np.frombuffer(seen["scale"], "float32")[0]) for seen in by_precision(Run("16-true", inf_at=2))]
    assert scales == [256.0, 512.0, 256.0, 256.0, 512.0]
    skipped = by_precision(Run("16-true", inf_at=2, windows=3))
    assert (
        skipped[1]["hidden.weight"] == skipped[2]["hidden.weight"]
        and skipped[1]["hidden.weight/_master"] == skipped[2]["hidden.weight/_master"]
    )
    assert skipped[0]["hidden.weight"] != skipped[1]["hidden.weight"]


@pytest.mark.parametrize(
    ("precision", "copies"),
    [("32-true", 0), ("64-true", 0), ("bf16-mixed", 0), ("bf16-true", 0), ("16-mixed", 1), ("16-true", 1)],
)
def test_a_float16_step_copies_once_to_the_host_and_others_never(precision: str, copies: int, allowed: None) -> None:
    network, optimizer = start(Run(precision))
    part = Precision(precision)
    part.prepare(network, [optimizer])
    images = paddle.ones([8, 1, 8, 8], "float64" if precision == "64-true" else "float32")
    counts = []
    for _ in range(4):
        before = fake_gpu.device_to_host_copies()
        with part.autocast() if part.autocast else paddle.enable_grad():
            loss = (network(images).astype("float32") ** 2).mean()
        part.backward(loss)
        part.unscale(optimizer)
        part.step(optimizer)
        part.update()
        optimizer.clear_grad(set_to_zero=False)
        counts.append(fake_gpu.device_to_host_copies() - before)
    assert counts == [copies] * 4


def test_a_device_without_bfloat16_gets_float32_and_a_note() -> None:
    precision = Precision("bf16-mixed")
    assert precision.effective == "32-true" and precision.autocast is None
    assert precision.note is not None and "no effect on fake_gpu:0" in precision.note
    assert Precision("16-mixed").note is None


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-mixed", "bf16-true"])
def test_the_context_serves_validation_too(precision: str, allowed: None) -> None:
    network, _ = start(Run(precision))
    part = Precision(precision)
    part.prepare(network)
    network.eval()
    assert part.autocast is not None
    with paddle.no_grad(), part.autocast():
        hidden = paddle.flatten(network.convolution(paddle.ones([2, 1, 8, 8])), 1)
        product = paddle.matmul(hidden, network.hidden.weight)
    assert product.dtype == (paddle.bfloat16 if precision.startswith("bf16") else paddle.float16)


def test_the_custom_lists_reach_autocast() -> None:
    one = paddle.ones([2, 2])
    for settings, dtype in (({}, paddle.float16), ({"custom_black_list": ["matmul", "matmul_v2"]}, paddle.float32)):
        autocast = Precision("16-mixed", **settings).autocast  # type: ignore[arg-type]
        assert autocast is not None
        with autocast():
            assert paddle.matmul(one, one).dtype == dtype


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_prepare_keeps_every_object_and_may_be_repeated(precision: str, allowed: None) -> None:
    network, optimizer = start(Run(precision))
    parameters, names = network.parameters(), [parameter.name for parameter in network.parameters()]
    part = Precision(precision)
    for _ in range(2):
        part.prepare(network, [optimizer])
        assert all(one is other for one, other in zip(parameters, network.parameters()))
        assert [parameter.name for parameter in network.parameters()] == names
        assert network.hidden.weight.dtype != paddle.float32 and network.norm.weight.dtype == paddle.float32
    assert optimizer._multi_precision


def test_the_scaler_outlives_an_auto_cast_of_another_type() -> None:
    precision = Precision("16-mixed", scaler_options={"init_loss_scaling": 8.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with paddle.amp.auto_cast(dtype="bfloat16"):
            pass
    assert precision.scale(paddle.ones([1])).item() == 8.0


def overflow_next(parameter: paddle.Tensor, precision: Precision, value: float) -> None:
    precision.backward((parameter * value).sum())


def two_optimizers() -> tuple[Precision, list[paddle.Tensor], list[Any]]:
    precision = Precision("16-mixed", scaler_options=SCALER_OPTIONS)
    parameters = [paddle.create_parameter([2], "float32") for _ in range(2)]
    for parameter in parameters:
        parameter.set_value(np.zeros(2, "float32"))
    return precision, parameters, [paddle.optimizer.SGD(1.0, parameters=[parameter]) for parameter in parameters]


@pytest.mark.parametrize("overflowing", [0, 1])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_each_optimizer_is_judged_by_its_own_gradients(overflowing: int, unscale_first: bool) -> None:
    precision, parameters, optimizers = two_optimizers()
    for index, parameter in enumerate(parameters):
        overflow_next(parameter, precision, float("inf") if index == overflowing else 1.0)
    if unscale_first:
        for optimizer in optimizers:
            precision.unscale(optimizer)
    stepped = [precision.step(optimizer) for optimizer in optimizers]
    precision.update()
    assert stepped == [index != overflowing for index in range(2)]
    assert [parameter.tolist() for parameter in parameters] == [
        [0.0, 0.0] if i == overflowing else [-1.0, -1.0] for i in range(2)
    ]
    assert precision.state_dict()["scaler"]["scale"].tolist() == [128.0]


def test_an_overflow_prints_nothing_and_fails_with_no_numpy(capfd: pytest.CaptureFixture[str]) -> None:
    precision, parameters, optimizers = two_optimizers()
    overflow_next(parameters[0], precision, float("nan"))
    assert not precision.step(optimizers[0])
    precision.update()
    assert capfd.readouterr().out == ""


def test_a_repeated_update_does_nothing() -> None:
    precision, parameters, optimizers = two_optimizers()
    scales = []
    for repeats in (1, 3, 2, 1):
        overflow_next(parameters[0], precision, 1.0)
        precision.step(optimizers[0])
        for _ in range(repeats):
            precision.update()
        scales.append(precision.state_dict()["scaler"]["scale"].item())
        optimizers[0].clear_grad()
    assert scales == [256.0, 512.0, 512.0, 1024.0]


def test_between_updates_optimizers_step_in_any_order_by_one_scale() -> None:
    precision, parameters, optimizers = two_optimizers()
    for order in ([0, 0, 1], [1, 0, 1], [0, 1]):  # scaled by 256, 256 and 512
        for index in order:
            overflow_next(parameters[index], precision, 1.0)
            precision.unscale(optimizers[index])
            other = parameters[1 - index]
            overflow_next(other, precision, 5.0)  # a backward for something else comes in between
            other.clear_gradient(False)
            assert precision.step(optimizers[index])
            optimizers[index].clear_grad()
        precision.update()
    assert [parameter.tolist() for parameter in parameters] == [[-4.0, -4.0], [-4.0, -4.0]]
    assert precision.state_dict()["scaler"]["scale"].item() == 512.0


def test_a_second_step_without_new_gradients_is_paddles_error() -> None:
    precision, parameters, optimizers = two_optimizers()
    overflow_next(parameters[0], precision, 1.0)
    precision.step(optimizers[0])
    with pytest.raises(RuntimeError, match="already been called since the last update"):
        precision.step(optimizers[0])


def test_with_a_fixed_scale_unscaling_several_optimizers_first_divides_each_once() -> None:
    precision, parameters, optimizers = two_optimizers()
    precision = Precision("16-mixed", scaler_options={"init_loss_scaling": 4.0, "use_dynamic_loss_scaling": False})
    for parameter in parameters:
        overflow_next(parameter, precision, 1.0)
    for act in (precision.unscale, precision.step):
        for optimizer in optimizers:
            act(optimizer)
    assert [parameter.tolist() for parameter in parameters] == [[-1.0, -1.0], [-1.0, -1.0]]


def test_skipped_steps_are_counted_saved_and_told_when_hopeless() -> None:
    precision, parameters, optimizers = two_optimizers()

    def skip(times: int) -> None:
        for _ in range(times):
            overflow_next(parameters[0], precision, float("nan"))
            precision.step(optimizers[0])
            precision.update()
            optimizers[0].clear_grad()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skip(19)
    with pytest.warns(UserWarning, match="20 float16 steps in a row were skipped"):
        skip(1)
    resumed = Precision("16-mixed", scaler_options=SCALER_OPTIONS)
    resumed.load_state_dict(precision.state_dict())
    assert resumed.scaler is not None and resumed.scaler.skipped_steps == 20


def test_unscaling_twice_divides_once_and_after_another_backward_is_an_error() -> None:
    precision, parameters, optimizers = two_optimizers()
    overflow_next(parameters[0], precision, 1.0)
    precision.unscale(optimizers[0])
    precision.unscale(optimizers[0])
    assert parameters[0].grad.tolist() == [1.0, 1.0]
    overflow_next(parameters[0], precision, 1.0)
    with pytest.raises(RuntimeError, match="already been called"):
        precision.unscale(optimizers[0])


def test_an_update_without_a_step_reopens_the_window_as_in_paddle() -> None:
    gradients = []
    for scaler in (paddle.amp.GradScaler(**SCALER_OPTIONS), LossScaler(**SCALER_OPTIONS)):
        _, (parameter, _), (optimizer, _) = two_optimizers()
        scaler.scale((parameter * 65536.0).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        scaler.unscale_(optimizer)
        gradients.append(parameter.grad.tolist())
    assert gradients == [[256.0, 256.0], [256.0, 256.0]]


def test_a_discarded_window_leaves_the_next_one_whole() -> None:
    precision, parameters, optimizers = two_optimizers()
    overflow_next(parameters[0], precision, 7.0)
    precision.unscale(optimizers[0])
    precision.discard(optimizers[0])
    optimizers[0].clear_grad(set_to_zero=False)
    overflow_next(parameters[0], precision, 1.0)
    precision.unscale(optimizers[0])
    assert parameters[0].grad.tolist() == [1.0, 1.0]
    assert precision.step(optimizers[0])


@pytest.mark.parametrize("loop", ["step and update", "unscale_, step and update", "minimize"])
def test_paddles_documented_loops_run_on_the_scaler_unchanged(loop: str) -> None:
    def trained(scaler: Any) -> list[dict[str, bytes]]:
        network, optimizer = start(Run("16-mixed"))
        seen = []
        for step in range(4):
            for images, labels, _ in Run("16-mixed").batches(step):
                with paddle.amp.auto_cast():
                    loss = F.cross_entropy(network(images), labels)
            scaled = scaler.scale(loss)
            scaled.backward()
            if loop == "minimize":
                scaler.minimize(optimizer, scaled)
            else:
                if loop.startswith("unscale_"):
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            optimizer.clear_grad()
            seen.append(bits(network, optimizer, scaler, loss))
        return seen

    assert trained(paddle.amp.GradScaler(**SCALER_OPTIONS)) == trained(LossScaler(**SCALER_OPTIONS))


def test_a_fixed_scale_stays_and_still_skips() -> None:
    options = {"init_loss_scaling": 4.0, "use_dynamic_loss_scaling": False}
    precision, (parameter, _), (optimizer, _) = two_optimizers()
    precision = Precision("16-mixed", scaler_options=options)
    stepped = []
    for value in (1.0, float("inf"), 1.0):
        overflow_next(parameter, precision, value)
        precision.unscale(optimizer)
        stepped.append(precision.step(optimizer))
        precision.update()
        optimizer.clear_grad()
    assert stepped == [True, False, True]
    assert parameter.tolist() == [-2.0, -2.0] and precision.state_dict()["scaler"]["scale"].item() == 4.0


def test_the_scaler_resumes_in_the_middle_of_growing() -> None:
    def scales(precision: Precision, values: list[float]) -> list[float]:
        _, (parameter, _), (optimizer, _) = two_optimizers()
        found = []
        for value in values:
            overflow_next(parameter, precision, value)
            precision.step(optimizer)
            precision.update()
            optimizer.clear_grad()
            found.append(precision.state_dict()["scaler"]["scale"].item())
        return found

    values = [1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    options = {"init_loss_scaling": 16.0, "incr_every_n_steps": 3}
    expected = scales(Precision("16-mixed", scaler_options=options), values)
    assert expected == [16.0, 16.0, 32.0, 16.0, 16.0, 16.0, 32.0]
    for done in range(1, len(values)):
        first, second = Precision("16-mixed", scaler_options=options), Precision("16-mixed", scaler_options=options)
        before = scales(first, values[:done])
        second.load_state_dict(first.state_dict())
        assert before + scales(second, values[done:]) == expected


def test_an_option_of_the_scaler_that_is_passed_wins_over_the_saved_one() -> None:
    saved = Precision("16-mixed", scaler_options={"init_loss_scaling": 4.0, "incr_ratio": 3.0}).state_dict()
    resumed = Precision("16-mixed", scaler_options={"incr_ratio": 5.0})
    with pytest.warns(UserWarning, match="scaler option incr_ratio: 3.0 in the checkpoint, 5.0 from now on"):
        resumed.load_state_dict(saved)
    scaler = resumed.state_dict()["scaler"]
    assert (scaler["scale"].item(), scaler["incr_ratio"]) == (4.0, 5.0)


def test_the_state_is_plain_and_another_precisions_is_refused() -> None:
    state = Precision("16-mixed").state_dict()
    assert type(state["scaler"]["scale"]) is np.ndarray
    assert {type(value) for key, value in state["scaler"].items() if key != "scale"} <= {int, float, bool}
    assert state.keys() == {"precision", "scaler", "skipped_steps"}
    with pytest.raises(CheckpointMismatchError, match="saved 16-mixed, now 16-true"):
        Precision("16-true").load_state_dict(state)
    with pytest.raises(CheckpointMismatchError, match="saved 32-true, now 16-mixed"):
        Precision("16-mixed").load_state_dict({})


def test_lbfgs_with_a_scaled_loss_is_an_error() -> None:
    network = Network()
    with pytest.raises(ConfigurationError, match="LBFGS searches along unscaled losses"):
        Precision("16-mixed").prepare(network, [paddle.optimizer.LBFGS(parameters=network.parameters())])


def test_running_out_of_the_devices_memory_is_recognised() -> None:
    with fake_gpu.memory_limit(fake_gpu.memory_used() + (1 << 20)), pytest.raises(OSError) as caught:
        paddle.zeros([64 << 20])
    assert is_out_of_memory(caught.value)
