"""What configure_model builds under sharding_stage3 is cut while it is built, with the bits of a whole module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_gpu
import paddle
import pytest

SCRIPT = Path(__file__).with_name("built_in_pieces.py")
WEIGHT = 4 * 256 * 256  # bytes of the largest weights of the network that is weighed
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.fake_gpu,
    pytest.mark.timeout(180),
    pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2.6 does not shard here"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("built_in_pieces")
    done = fake_gpu.run("-W", "ignore", str(SCRIPT), str(root))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())  # type: ignore[no-any-return]


def test_a_module_that_is_built_in_pieces_learns_what_a_whole_one_does(found: dict[str, Any]) -> None:
    assert [step for _, _, step in found["whole"]] == [5, 5]
    assert found["built"] == found["resumed"] == found["whole"]


def test_it_takes_the_weights_of_a_file(found: dict[str, Any]) -> None:
    whole, built = found["taken"]
    assert built == whole
    assert whole[0][1] != found["whole"][0][1]  # it began anew


def test_no_rank_ever_has_more_of_it_than_its_share_and_a_few_layers(found: dict[str, Any]) -> None:
    for peaks in found["weighed"]:
        share = peaks["whole"] / 2
        assert peaks["built"] < share + 4 * WEIGHT  # of 16 layers that are as large
        assert peaks["trained"] < 4 * share + 5 * WEIGHT  # gradients and two moments, too
        assert peaks["ended"] < 3 * share + 4 * WEIGHT  # and then the weights are whole in the host's memory


@pytest.mark.parametrize("how", ["deepcopy", "copy_", "set_value"])
def test_what_reads_a_weight_that_has_been_cut_is_told(found: dict[str, Any], how: str) -> None:
    for of_rank in found["failed"]:
        assert "give them their first values where the layer is made" in of_rank[how][-1]


def test_a_layer_that_paddle_cannot_cut_is_one_error(found: dict[str, Any]) -> None:
    for of_rank in found["failed"]:
        assert of_rank["LSTM"][0] == "ConfigurationError" and "cannot be with LSTMCell" in of_rank["LSTM"][1]


def test_what_is_frozen_during_the_fit_is_named(found: dict[str, Any]) -> None:
    for of_rank in found["failed"]:
        assert of_rank["freezes"][0] == "ConfigurationError"
        assert of_rank["freezes"][1].startswith("first.bias: frozen or unfrozen during a fit")
