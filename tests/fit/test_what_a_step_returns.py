"""What training_step may return, and what hooks are given of it."""

from __future__ import annotations

from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback


class Keeps(Callback):
    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)


# -- what hooks keep holds no graph ------------------------------------------------------------------------------------
@pytest.mark.parametrize("automatic", [True, False])
def test_what_on_train_batch_end_is_given_is_detached_from_the_graph(automatic: bool) -> None:
    class Returns(Classifier):
        automatic_optimization = automatic

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            if not automatic:
                self.manual_backward(loss)
                self.optimizers().step()
                self.optimizers().clear_grad()
            self.returned = {"loss": loss, "more": [loss * 2, (loss * 3, "text")], "scores": self(batch[0])}
            return self.returned

    keeps, module = Keeps(), Returns()
    quiet_trainer(callbacks=[keeps]).fit(module, make_batches(2))
    for outputs in keeps.outputs:
        assert list(outputs) == ["loss", "more", "scores"]
        tensors = [outputs["loss"], outputs["more"][0], outputs["more"][1][0], outputs["scores"]]
        assert all(tensor.stop_gradient for tensor in tensors)
        assert outputs["more"][1][1] == "text"
    assert not module.returned["scores"].stop_gradient  # what the module keeps of its own is its own
    assert keeps.outputs[-1]["scores"].numpy().tolist() == module.returned["scores"].numpy().tolist()


def test_a_loss_that_a_hook_keeps_is_detached_from_the_graph() -> None:
    keeps = Keeps()
    quiet_trainer(callbacks=[keeps]).fit(Classifier(), make_batches(2))
    assert [loss.stop_gradient for loss in keeps.outputs] == [True, True]
