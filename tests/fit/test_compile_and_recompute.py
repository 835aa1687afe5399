"""Trainer(compile=...) and Trainer(recompute=...): the same bits as without, and what is said where they cannot."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Module
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.machine import paddle_internals

nn, F = paddle.nn, paddle.nn.functional
PADDLE_3 = not paddle.__version__.startswith("2.")


class Block(nn.Layer):
    """What is hard for both: dropout, running statistics, a keyword argument, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(4, 4), nn.BatchNorm1D(4), nn.Dropout(0.3)
        self.attention = nn.MultiHeadAttention(4, 2, dropout=0.1)
        self.calls = 0

    def forward(self, x: Any, *, scale: float = 1.0) -> Any:
        self.calls += 1
        y = x.unsqueeze(0)
        x = x + self.attention(y, y, y).squeeze(0) * scale
        return x + self.dropout(self.norm(self.linear(x)))


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(11)
        self.blocks = nn.LayerList([Block(), Block()])
        self.convolution = nn.Conv1D(1, 2, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x + self.convolution(x.unsqueeze(1)).mean())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Momentum(0.1, parameters=self.parameters())


WAYS: dict[str, dict[str, Any]] = {
    "compile": {"compile": True},
    "compiled layers": {"compile": {"layers": ["blocks.*", "head"], "full_graph": True}},
    "recompute": {"recompute": ["blocks.*"]},
}


def trained(module: Module | None = None, batches: int = 4, **settings: Any) -> tuple[Any, Any]:
    module = Net() if module is None else module
    trainer = quiet_trainer(**{"max_epochs": 2, "seed": 5, **settings})
    trainer.fit(module, make_batches(batches), make_batches(2, seed=9))
    return module, trainer


@pytest.mark.parametrize("way", WAYS)
def test_bits_are_those_of_a_run_without(way: str) -> None:
    plain, trainer = trained()
    other, other_trainer = trained(**WAYS[way])
    assert same_weights(weights_of(plain), weights_of(other))
    assert trainer.history == other_trainer.history
    assert all("forward" not in vars(layer) for layer in other.sublayers(include_self=True))
    if way == "compile":
        assert other.blocks[0].calls < plain.blocks[0].calls  # it was really compiled
    if way == "recompute":
        steps, evaluated = 8, 4
        assert plain.blocks[0].calls == steps + evaluated and other.blocks[0].calls == 2 * steps + evaluated


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_bit_by_bit_with_it_and_without(way: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, _ = trained(max_epochs=3)
    for index, (first, then) in enumerate([(WAYS[way], WAYS[way]), (WAYS[way], {}), ({}, WAYS[way])]):
        settings["run_name"] = f"run_{index}"
        trained(max_epochs=1, **settings, **first)
        as_if_started_again()
        module, trainer = Net(), quiet_trainer(max_epochs=3, seed=5, **settings, **then)
        trainer.fit(module, make_batches(4), make_batches(2, seed=9), ckpt_path="last")
        assert same_weights(weights_of(whole), weights_of(module)), (first, then)


class Untranslatable(Net):
    def forward(self, x: Any) -> Any:
        rows = x.tolist()
        return Net.forward(self, x) * len(rows) / len(rows)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = trained(Untranslatable())
    capsys.readouterr()
    other, _ = trained(Untranslatable(), compile=True)
    said = capsys.readouterr().out
    assert said.count("WARNING: compile: Untranslatable.forward runs as it is, not compiled.") == 1
    assert "test_compile_and_recompute.py:" in said and "rows = x.tolist()" in said
    assert same_weights(weights_of(plain), weights_of(other))


class UntranslatableAtItsEnd(Net):
    def forward(self, x: Any) -> Any:
        outputs = Net.forward(self, x)
        return outputs * len(outputs.tolist()) / len(outputs)


def test_a_translation_that_failed_leaves_nothing_for_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    trained(UntranslatableAtItsEnd(), compile=True)
    assert "UntranslatableAtItsEnd.forward runs as it is" in capsys.readouterr().out
    left = sum(map(len, paddle_internals.notes_of_traces()))  # to print them could crash: their program is gone
    assert left == 0


class StochasticDepth(Net):
    def forward(self, x: Any) -> Any:
        x = x * float(np.random.uniform(0.9, 1.1))
        if random.random() < 0.5:
            x = self.blocks[0](x)
        return self.head(x)


def test_a_forward_that_draws_in_python_is_not_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, _ = trained(StochasticDepth())
    capsys.readouterr()
    other, _ = trained(StochasticDepth(), compile=True)
    assert same_weights(weights_of(plain), weights_of(other))
    said = capsys.readouterr().out
    assert said.count("StochasticDepth.forward runs as it is, not compiled. It draws from python's random or from") == 1


def test_an_error_of_the_user_s_own_is_raised_as_it_is() -> None:
    class Wrong(Net):
        def forward(self, x: Any) -> Any:
            return self.head(x.reshape([-1, 7]))

    with pytest.raises(Exception) as told:
        trained(Wrong(), compile=True)
    assert "In transformed code" not in str(told.value)
    assert any(frame.name == "forward" and "reshape([-1, 7])" in str(frame.statement) for frame in told.traceback)


def test_the_first_block_learns_though_its_input_wants_no_gradient() -> None:
    module = Net()
    seen = []

    class Looks(Net):
        def on_after_backward(self) -> None:
            seen.append(all(p.grad is not None for p in self.blocks[0].parameters() if not p.stop_gradient))

    module = Looks()
    trained(module, recompute="blocks.*", max_epochs=1)
    assert seen == [True] * 4


def test_a_module_in_a_compiled_run_is_copied_and_exported_without(tmp_path: Path) -> None:
    class Copies(Net):
        def on_train_end(self) -> None:
            self.copied = [copy.deepcopy(self)] if self.global_step else []
            self.exported = self.trainer.export(tmp_path / "w", "pdparams", checkpoint=None)
            if PADDLE_3:  # Paddle 2 cannot pickle a layer
                pickle.dumps(copy.copy(self).blocks)

    module = Copies()
    trained(module, compile=True, max_epochs=1)
    (copied,) = module.copied
    assert "forward" not in vars(copied)
    module.eval(), copied.eval()
    x = make_batches(1)[0][0]
    assert module(x).numpy().tolist() == copied(x).numpy().tolist()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"compile": "yes"}, ConfigurationError, r"compile=...\) must be True, False, or a dict with any of"),
        ({"compile": {"mode": 1}}, ConfigurationTypeError, r"compile=...\) must be True, False, or a dict with any of"),
        ({"recompute": []}, ConfigurationTypeError, r"recompute=...\) must be None or a list of layers' names"),
        ({"recompute": True}, ConfigurationTypeError, r"must be None or a list of layers' names, such as"),
        ({"recompute": "x", "compile": True}, ConfigurationError, "cannot be together"),
        ({"recompute": ["block.*"]}, ConfigurationError, r"'block.\*' means no layer of Net.*It has blocks, blocks.0"),
        ({"recompute": ["blocks"]}, ConfigurationError, r"is a LayerList, which is not called.*'blocks.\*'"),
        ({"compile": {"layers": ["heat"]}}, ConfigurationError, "'heat' means no layer of Net. Did you mean 'head'?"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(settings: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        trained(**settings)


def test_a_module_without_forward_is_told_how_to_be_compiled() -> None:
    class Steps(Net):
        forward = Module.forward

    with pytest.raises(ConfigurationError, match=r"Steps has none: name the layers.*compile=\{'layers': \['net'\]\}"):
        trained(Steps(), compile=True)


def test_a_compiled_forward_that_logs_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    class Logs(Net):
        def forward(self, x: Any) -> Any:
            y = super().forward(x) if not PADDLE_3 else Net.forward(self, x)
            self.log("mean", y.mean())
            return y

    plain, trainer = trained(Logs())
    other, other_trainer = trained(Logs(), compile=True)
    assert trainer.history == other_trainer.history
    assert same_weights(weights_of(plain), weights_of(other))
