"""ParamAttr(need_clip=False): such a parameter is left out of clipping and of the norm, as by Paddle's own clips."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

CLIPS = {"norm": paddle.nn.ClipGradByGlobalNorm, "value": paddle.nn.ClipGradByValue}


class Exempt(Classifier):
    def __init__(self, grad_clip: Any = None, exempt: bool = True) -> None:
        super().__init__()
        self.grad_clip = grad_clip
        self.net[0].weight.need_clip = not exempt

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.5, parameters=self.parameters(), grad_clip=self.grad_clip)


def trained(module: Exempt, **settings: Any) -> dict[str, Any]:
    quiet_trainer(**settings).fit(module, make_batches())
    return weights_of(module)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_an_exempt_parameter_is_left_out_as_by_paddle_s_own_clip(algorithm: Any) -> None:
    settings = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    ours, theirs = trained(Exempt(), **settings), trained(Exempt(CLIPS[algorithm](0.05)))
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert not same_weights(ours, trained(Exempt(exempt=False), **settings))
