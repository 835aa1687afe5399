"""An optimizer around another one is refused: neither its state nor the schedule within would be kept."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.errors import ConfigurationError


@pytest.mark.parametrize("form", ["alone", "in a list", "in a dict"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_look_ahead_is_refused_with_what_to_return(form: str, scheduled: bool) -> None:
    class Ahead(Classifier):
        def configure_optimizers(self) -> Any:
            rate: Any = paddle.optimizer.lr.StepDecay(0.1, 2) if scheduled else 0.1
            inner = paddle.optimizer.Adam(rate, parameters=self.parameters())
            outer = paddle.incubate.LookAhead(inner, alpha=0.5, k=3)
            return {"alone": outer, "in a list": [outer], "in a dict": {"optimizer": outer}}[form]

    with pytest.raises(ConfigurationError, match=r"LookAhead around Adam.*Return the Adam itself"):
        quiet_trainer().fit(Ahead(), make_batches(1))
