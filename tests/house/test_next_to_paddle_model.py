"""What the README's table says of paddle.Model and of this package, side by side."""

from __future__ import annotations

import inspect
import os
import pickle
import statistics
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, LambdaCallback
from paddlelite_trainer.errors import ConfigurationError, UnsafePickleError

BATCHES = 8


class Line(Module):
    """y = x w + b; keeps the samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(1, 1)
        self.batches: list[tuple[int, int]] = []

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append((self.trainer.current_epoch, batch_idx))
        return paddle.nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class Points(paddle.io.Dataset):
    """`count` points, two to a batch."""

    def __init__(self, count: int = 2 * BATCHES) -> None:
        self.x = np.linspace(0, 1, count, dtype="float32").reshape(-1, 1)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], 3 * self.x[index]

    def __len__(self) -> int:
        return len(self.x)


def _paddle_model(weight: float = 0.0) -> Any:
    net = paddle.nn.Linear(1, 1)
    net.weight.set_value(np.full((1, 1), weight, "float32"))
    net.bias.set_value(np.zeros(1, "float32"))
    model = paddle.Model(net)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=net.parameters()), paddle.nn.MSELoss())
    return model


def _trainer(root: Path, **more: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=root, **{"max_epochs": 2, **quiet, **more})


def test_started_again_paddle_model_begins_at_epoch_zero_and_this_goes_on(tmp_path: Path) -> None:
    first, again, epochs = _paddle_model(), _paddle_model(), []
    first.fit(Points(), batch_size=2, epochs=2, save_dir=str(tmp_path / "theirs"), verbose=0)
    again.load(str(tmp_path / "theirs/1"))

    class Record(paddle.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            epochs.append(epoch)

    again.fit(Points(), batch_size=2, epochs=3, verbose=0, callbacks=[Record()])
    assert epochs == [0, 1, 2]

    _trainer(tmp_path).fit(Line(), paddle.io.DataLoader(Points(), batch_size=2))
    module = Line()
    _trainer(tmp_path, max_epochs=3).fit(module, paddle.io.DataLoader(Points(), batch_size=2), ckpt_path="last")
    assert {epoch for epoch, _ in module.batches} == {2}


def test_a_misspelt_hook_is_ignored_by_paddle_model_and_an_error_here(tmp_path: Path) -> None:
    class Theirs(paddle.callbacks.Callback):
        def on_epoch_ends(self, epoch: int, logs: Any = None) -> None:
            raise AssertionError

    _paddle_model().fit(Points(), batch_size=2, epochs=1, verbose=0, callbacks=[Theirs()])

    class Ours(Callback):
        def on_train_epoch_ends(self, trainer: Trainer, module: Module) -> None:
            raise AssertionError

    with pytest.raises(ConfigurationError, match="Did you mean 'on_train_epoch_end'"):
        _trainer(tmp_path, callbacks=Ours())


def test_a_misspelt_monitor_is_a_warning_of_paddle_model_and_an_error_here(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopper = paddle.callbacks.EarlyStopping("los", verbose=0, save_best_model=False)
        _paddle_model().fit(Points(), Points(), batch_size=2, epochs=1, verbose=0, callbacks=[stopper])

    trainer = _trainer(tmp_path, callbacks=EarlyStopping("val_los"))
    with pytest.raises(ConfigurationError, match="'val_los', which was not logged"):
        trainer.fit(Line(), paddle.io.DataLoader(Points(), batch_size=2))


def test_accumulated_gradients_are_summed_by_paddle_model_and_averaged_here(tmp_path: Path) -> None:
    def after_one_step(accumulate: int) -> tuple[float, float]:
        theirs = _paddle_model()
        theirs.fit(
            Points(8),
            batch_size=8 // accumulate,
            shuffle=False,
            epochs=1,
            verbose=0,
            accumulate_grad_batches=accumulate,
        )
        ours = Line()
        for parameter in ours.parameters():
            parameter.set_value(np.zeros(parameter.shape, "float32"))
        loader = paddle.io.DataLoader(Points(8), batch_size=8 // accumulate)
        _trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate).fit(ours, loader)
        return float(theirs.network.weight.numpy().item()), float(ours.net.weight.numpy().item())

    their_whole, our_whole = after_one_step(1)
    theirs, ours = after_one_step(4)
    assert our_whole == pytest.approx(their_whole)
    assert theirs == pytest.approx(4 * their_whole)
    assert ours == pytest.approx(our_whole)


class Payload:
    """Unpickled, it makes a directory: the sign that a file's code was run."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["PAYLOAD_FOLDER"],)


def test_a_hostile_file_is_run_by_paddle_model_and_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile, sign = tmp_path / "hostile.pdparams", tmp_path / "sign"
    monkeypatch.setenv("PAYLOAD_FOLDER", str(sign))
    hostile.write_bytes(pickle.dumps({"weight": Payload()}, protocol=4))

    with pytest.raises(UnsafePickleError):
        Line.load_from_checkpoint(hostile)
    assert not sign.exists()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _paddle_model().load(str(tmp_path / "hostile"), reset_optimizer=True)
        except Exception:  # of no interest: by then the code has run
            pass
    assert sign.exists()


def test_a_torn_file_stops_paddle_model_and_this_takes_the_checkpoint_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _paddle_model().fit(Points(), batch_size=2, epochs=2, save_dir=str(tmp_path / "theirs"), verbose=0)
    _tear(tmp_path / "theirs/1.pdparams")
    with pytest.raises(Exception):  # noqa: B017  pickle's, of whatever kind
        _paddle_model().load(str(tmp_path / "theirs/1"))

    from paddlelite_trainer.callbacks import ModelCheckpoint

    _trainer(tmp_path, callbacks=ModelCheckpoint(keep_last_n=2)).fit(
        Line(), paddle.io.DataLoader(Points(), batch_size=2)
    )
    newest = max((tmp_path / "version_0/checkpoints").glob("step-*"))
    _tear(newest / "model.pdparams")
    module = Line()
    _trainer(tmp_path).fit(module, paddle.io.DataLoader(Points(), batch_size=2), ckpt_path="last")
    assert f"WARNING: Checkpoint {newest.name} is damaged; using step-" in capsys.readouterr().out
    assert {epoch for epoch, _ in module.batches} == {1}


def _tear(path: Path) -> None:
    path = path.resolve()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def test_a_checkpoint_per_epoch_against_the_best_three() -> None:
    from paddlelite_trainer.callbacks import ModelCheckpoint

    assert list(inspect.signature(paddle.callbacks.ModelCheckpoint).parameters) == ["save_freq", "save_dir"]
    assert {"monitor", "mode", "save_top_k", "save_last"} <= set(inspect.signature(ModelCheckpoint).parameters)


def test_a_batch_takes_fewer_library_calls_than_in_paddle_model(tmp_path: Path) -> None:
    hapi = str(Path(inspect.getfile(paddle.Model)).parent)
    ours = tuple({str(Path(inspect.getfile(cls)).parent) for cls in (Trainer, LambdaCallback)})
    calls = {"theirs": 0, "ours": 0}
    at: dict[str, list[int]] = {"theirs": [], "ours": []}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            file = frame.f_code.co_filename
            calls["theirs"] += file.startswith(hapi)
            calls["ours"] += file.startswith(ours)

    class Record(paddle.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            at["theirs"].append(calls["theirs"])

    def record(trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        at["ours"].append(calls["ours"])

    model = _paddle_model()
    sys.setprofile(count)
    try:
        model.fit(Points(40), batch_size=2, epochs=1, verbose=0, callbacks=[Record()])
        loader = paddle.io.DataLoader(Points(40), batch_size=2)
        _trainer(tmp_path, max_epochs=1, callbacks=LambdaCallback(on_train_batch_end=record)).fit(Line(), loader)
    finally:
        sys.setprofile(None)
    theirs, mine = (statistics.median(b - a for a, b in pairwise(marks)) for marks in (at["theirs"], at["ours"]))
    print(f"library calls a batch: paddle.Model {theirs:.0f}, here {mine:.0f}")
    assert mine < theirs
