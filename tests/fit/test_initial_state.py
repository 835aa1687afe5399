"""InitFrom: what a fresh run takes of another tool's checkpoint, as Paddle itself would go on from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlelite_trainer import InitFrom, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint
from paddlelite_trainer.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
)

F = paddle.nn.functional
EPOCH = 4  # batches


def network(width: int = 5) -> paddle.nn.Layer:
    return paddle.nn.Sequential(
        paddle.nn.Linear(4, width), paddle.nn.BatchNorm1D(width), paddle.nn.ReLU(), paddle.nn.Linear(width, 2)
    )


def batches() -> list[Any]:
    numbers = np.random.RandomState(0)
    return [
        (paddle.to_tensor(numbers.randn(8, 4).astype("float32")), paddle.to_tensor(numbers.randint(0, 2, [8])))
        for _ in range(EPOCH)
    ]


class Net(Module):
    """The network under the name `net`; `val_acc` of each epoch is given."""

    def __init__(self, optimizer: Any = None, scores: dict[int, float] | None = None, width: int = 5) -> None:
        super().__init__()
        self.net = network(width)
        self.make_optimizer = optimizer or (lambda parameters: paddle.optimizer.AdamW(0.05, parameters=parameters))
        self.scores = scores or {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", self.scores.get(self.current_epoch, 0.5))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def train_by_hand(layer: paddle.nn.Layer, optimizer: Any, epochs: int, schedule: Any = None) -> None:
    for _ in range(epochs):
        for x, y in batches():
            F.cross_entropy(layer(x), y).backward()
            optimizer.step()
            optimizer.clear_grad(False)
            if schedule is not None:
                schedule.step()


def trainer(root: Path, callbacks: Any = (), max_epochs: int = 5, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        default_root_dir=root / "runs",
        seed=1,
        accelerator="cpu",
        **{**quiet, **settings},
    )


def same_weights(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(np.array_equal(mine[name].numpy(), theirs[name].numpy()) for name in mine)


def ocr_checkpoint(folder: Path, stem: str, layer: Any, optimizer: Any, epoch: int, **states: Any) -> Path:
    """As PaddleOCR's save_load.save_model writes it."""
    paddle.save(layer.state_dict(), str(folder / f"{stem}.pdparams"))
    paddle.save(optimizer.state_dict(), str(folder / f"{stem}.pdopt"))
    (folder / f"{stem}.states").write_bytes(__import__("pickle").dumps({"epoch": epoch, **states}, protocol=2))
    return folder / stem


OPTIMIZERS = {
    "AdamW": lambda rate, parameters: paddle.optimizer.AdamW(rate, parameters=parameters),
    "Momentum": lambda rate, parameters: paddle.optimizer.Momentum(rate, parameters=parameters),
    "SGD": lambda rate, parameters: paddle.optimizer.SGD(rate, parameters=parameters),
}


# -- going on ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_from_paddleocr_files_as_the_loop_that_wrote_them_would(tmp_path: Path, name: str) -> None:
    seed_everything(3)
    theirs = network()
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.05, 5 * EPOCH)
    optimizer = OPTIMIZERS[name](schedule, theirs.parameters())
    train_by_hand(theirs, optimizer, 2, schedule)
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=2, global_step=2 * EPOCH, best_model_dict={})
    train_by_hand(theirs, optimizer, 3, schedule)

    def configured(parameters: Any) -> Any:
        again = paddle.optimizer.lr.CosineAnnealingDecay(0.05, 5 * EPOCH)
        return {
            "optimizer": OPTIMIZERS[name](again, parameters),
            "lr_scheduler": {"scheduler": again, "interval": "step"},
        }

    module = Net(configured)
    run = trainer(tmp_path)
    run.fit(module, batches(), init_from=InitFrom(path, training_state=True, rename={"": "net."}))
    assert (run.current_epoch, run.global_step) == (5, 5 * EPOCH)
    assert same_weights(module.net, theirs)


def test_paddle_model_says_its_epoch_by_the_name_and_steps_are_counted_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = network()
    model = paddle.Model(theirs)
    model.prepare(paddle.optimizer.Adam(0.05, parameters=theirs.parameters()), paddle.nn.CrossEntropyLoss())
    model.fit(batches(), epochs=3, verbose=0, save_dir=str(tmp_path / "hapi"))
    module = Net(lambda parameters: paddle.optimizer.Adam(0.05, parameters=parameters))
    run = trainer(tmp_path, max_epochs=4)
    run.fit(module, batches(), init_from=InitFrom(tmp_path / "hapi" / "1", training_state=True, rename={"": "net."}))
    assert [record["step"] for record in run.history] == [3 * EPOCH, 4 * EPOCH]
    told = capsys.readouterr().out
    assert "goes on at epoch 2 from the file; step 8 by the 4 steps of an epoch here" in told
    assert "optimizer: state taken for 6 of the 6 parameters that learn" in told


def test_a_path_alone_takes_weights_only(tmp_path: Path) -> None:
    theirs = network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=theirs.parameters())
    train_by_hand(theirs, optimizer, 1)
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=1, global_step=EPOCH, best_model_dict={})
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Net(), batches(), init_from=InitFrom(path, rename={"": "net."}))
    assert run.global_step == EPOCH


def test_one_of_our_own_checkpoints_brings_its_training_state_into_a_fresh_run(tmp_path: Path) -> None:
    whole, first, second = Net(), Net(), Net()
    for module in (first, whole):
        module.set_state_dict({name: value.numpy() for name, value in second.state_dict().items()})
    trainer(tmp_path, max_epochs=3).fit(whole, batches())
    trainer(tmp_path, max_epochs=2).fit(first, batches())
    run = trainer(tmp_path, max_epochs=3)
    run.fit(second, batches(), init_from=InitFrom(tmp_path / "runs" / "version_1", training_state=True))
    assert run.run_dir.name == "version_2"
    assert same_weights(whole, second)


def test_what_was_brought_along_is_saved_at_once_and_the_same_command_goes_on_from_it(tmp_path: Path) -> None:
    theirs = network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=theirs.parameters())
    train_by_hand(theirs, optimizer, 2)
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=2, global_step=2 * EPOCH, best_model_dict={})

    class Dies(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("the power went")

    for kind in (Dies, Net):
        module = kind()
        run = trainer(tmp_path, max_epochs=3)
        init = InitFrom(path, training_state=True, rename={"": "net."})
        if kind is Dies:
            with pytest.raises(RuntimeError, match="the power went"):
                run.fit(module, batches(), ckpt_path="last", init_from=init)
            assert [entry.step for entry in run.checkpoints.by_pin("latest")] == [2 * EPOCH]
            shutil.rmtree(tmp_path / "latest", ignore_errors=True)
        else:
            run.fit(module, batches(), ckpt_path="last", init_from=init)
    assert run.run_dir.name == "version_0"
    train_by_hand(theirs, optimizer, 1)
    assert same_weights(module.net, theirs)


def test_a_run_whose_epochs_are_done_already_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=theirs.parameters())
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=9, global_step=36, best_model_dict={})
    run = trainer(tmp_path, max_epochs=5)
    run.fit(Net(), batches(), init_from=InitFrom(path, training_state=True, rename={"": "net."}))
    assert "Already finished 9/5 epochs" in capsys.readouterr().out


def test_a_plateau_schedule_takes_its_counters(tmp_path: Path) -> None:
    theirs = network()
    schedule = paddle.optimizer.lr.ReduceOnPlateau(0.05, patience=3)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=theirs.parameters())
    train_by_hand(theirs, optimizer, 1)
    for loss in (1.0, 2.0, 2.0):
        schedule.step(paddle.to_tensor(loss))
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=1, global_step=EPOCH, best_model_dict={})

    class Looks(Net):
        def on_train_start(self) -> None:
            (config,) = self.trainer.lr_scheduler_configs
            self.seen = (config.scheduler.best, config.scheduler.num_bad_epochs)

    def configured(parameters: Any) -> Any:
        plateau = paddle.optimizer.lr.ReduceOnPlateau(0.05, patience=3)
        adam = paddle.optimizer.AdamW(plateau, parameters=parameters)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": plateau, "monitor": "val_acc"}}

    module = Looks(configured)
    trainer(tmp_path, max_epochs=2).fit(
        module, batches(), batches()[:1], init_from=InitFrom(path, training_state=True, rename={"": "net."})
    )
    assert module.seen == (1.0, 2)


# -- the best so far ---------------------------------------------------------------------------------------------------
def with_best(tmp_path: Path, score: float = 0.7) -> tuple[Path, paddle.nn.Layer]:
    """An OCR training whose best was epoch 1, its latest epoch 2; returns the latest's path and the best weights."""
    theirs, best = network(), network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=theirs.parameters())
    states = {"best_model_dict": {"acc": score, "fps": 900.0, "best_epoch": 1}}
    train_by_hand(theirs, optimizer, 1)
    best.set_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    ocr_checkpoint(tmp_path, "best_accuracy", theirs, optimizer, epoch=1, global_step=EPOCH, **states)
    train_by_hand(theirs, optimizer, 1)
    return ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=2, global_step=2 * EPOCH, **states), best


def test_the_best_of_the_other_tool_stays_the_best_until_a_better_one_comes(tmp_path: Path) -> None:
    path, best = with_best(tmp_path)
    init = InitFrom(path, training_state=True, rename={"": "net."}, best={"val_acc": "acc"})
    seen: list[Any] = []

    class Looks(Net):
        def on_train_epoch_end(self) -> None:
            checkpoint = self.trainer.checkpoint_callback
            seen.append((checkpoint.best_model_score, Path(checkpoint.best_model_path).name))

    module = Looks(scores={2: 0.6, 3: 0.8, 4: 0.75})
    stopping = EarlyStopping("val_acc", mode="max", patience=3)
    run = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max"), stopping])
    run.fit(module, batches(), batches()[:1], init_from=init)
    first = f"step-{EPOCH:09d}"
    assert seen == [(0.7, first), (0.7, first), (0.8, f"step-{4 * EPOCH:09d}")]
    assert stopping.best_score == 0.8
    (imported,) = run.checkpoints.by_pin("imported-best")
    assert (imported.epoch, imported.metrics, imported.healthy) == (1, {"val_acc": 0.7}, True)
    tensors = run.checkpoints.read(imported).tensors("model.pdparams")
    assert all(np.array_equal(tensors[f"net.{name}"], value.numpy()) for name, value in best.state_dict().items())


def test_test_with_the_best_takes_the_other_tool_s_while_it_is_the_best(tmp_path: Path) -> None:
    path, best = with_best(tmp_path)
    init = InitFrom(path, training_state=True, rename={"": "net."}, best={"val_acc": "acc"})
    module = Net()
    run = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max")], max_epochs=3)
    run.fit(module, batches(), batches()[:1], init_from=init)
    run.validate(module, batches()[:1], ckpt_path="best", verbose=False)
    assert same_weights(module.net, best)
    again = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max")], max_epochs=4)
    again.fit(Net(), batches(), batches()[:1], ckpt_path="last")
    assert again.checkpoint_callback.best_model_score == 0.7


def test_a_score_may_be_given_as_a_number(tmp_path: Path) -> None:
    path, _ = with_best(tmp_path)
    init = InitFrom(path, training_state=True, rename={"": "net."}, best={"val_acc": 0.25})
    run = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max")], max_epochs=3)
    run.fit(Net(), batches(), batches()[:1], init_from=init)
    assert run.checkpoint_callback.best_model_score == 0.5


def test_best_weights_with_an_average_are_the_averaged_ones_that_earned_the_score(tmp_path: Path) -> None:
    theirs = network()
    weights = theirs.state_dict()
    halved = {name: value * 0.5 for name, value in weights.items()}
    paddle.save(halved, str(tmp_path / "best_model.pdparams"))
    paddle.save(weights, str(tmp_path / "best_model.pdema"))
    paddle.save({"metric": 0.9, "epoch": 3}, str(tmp_path / "best_model.pdstates"))
    init = InitFrom(tmp_path / "best_model", training_state=True, rename={"": "net."}, best={"val_acc": "metric"})
    module = Net()
    run = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max")], max_epochs=3)
    run.fit(module, batches(), batches()[:1], init_from=init)
    assert run.current_epoch == 3  # all done: nothing was trained
    assert same_weights(module.net, theirs)
    (imported,) = run.checkpoints.by_pin("imported-best")
    tensors = run.checkpoints.read(imported).tensors("model.pdparams")
    assert all(np.array_equal(tensors[f"net.{name}"], value.numpy()) for name, value in halved.items())


# -- what does not fit -------------------------------------------------------------------------------------------------
def test_what_fits_is_taken_where_not_all_must_and_the_report_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = with_best(tmp_path)
    wider = Net(width=7)
    with pytest.raises(CheckpointMismatchError, match=r"init_from=InitFrom\(path, strict=False\)"):
        trainer(tmp_path).fit(wider, batches(), init_from=InitFrom(path, rename={"": "net."}))
    init = InitFrom(path, training_state=True, strict=False, rename={"": "net."})
    trainer(tmp_path, max_epochs=3).fit(wider, batches(), init_from=init)
    told = capsys.readouterr().out
    assert "1 of the model's 8 weights loaded" in told
    assert "net.0.weight is [4, 5] in the file and [4, 7] in the model" in told
    assert "optimizer: state taken for 1 of the 6 parameters that learn" in told
    assert "best: the file says {'acc': 0.7" in told


def test_another_optimizer_s_state_is_refused_by_name(tmp_path: Path) -> None:
    theirs = network()
    optimizer = paddle.optimizer.Momentum(0.05, parameters=theirs.parameters())
    train_by_hand(theirs, optimizer, 1)
    path = ocr_checkpoint(tmp_path, "latest", theirs, optimizer, epoch=1, global_step=4, best_model_dict={})
    with pytest.raises(CheckpointMismatchError, match=r"velocity of net.*absent: AdamW keeps beta1_pow_acc") as raised:
        trainer(tmp_path).fit(Net(), batches(), init_from=InitFrom(path, training_state=True, rename={"": "net."}))
    assert "training_state=False takes weights only" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"path": 3}, ConfigurationTypeError, "takes a path first, got 3"),
        ({"which": "mean"}, ConfigurationError, "must be 'file', 'raw' or 'ema', got 'mean'"),
        ({"best": {"val_acc": "acc"}}, ConfigurationError, "pass training_state=True too"),
        ({"best": "acc", "training_state": True}, ConfigurationTypeError, "name of our metric"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        InitFrom(**{"path": "x", **arguments})


def test_a_best_score_that_the_files_do_not_have_is_an_error_with_what_they_have(tmp_path: Path) -> None:
    path, _ = with_best(tmp_path)
    init = InitFrom(path, training_state=True, rename={"": "net."}, best={"val_acc": "accu"})
    with pytest.raises(ConfigurationError, match=r"no score of that name. Did you mean 'acc'\? They have: acc, fps"):
        trainer(tmp_path).fit(Net(), batches(), init_from=init)


def test_a_best_score_without_its_weights_is_an_error(tmp_path: Path) -> None:
    path, _ = with_best(tmp_path)
    (tmp_path / "best_accuracy.pdparams").unlink()
    init = InitFrom(path, training_state=True, rename={"": "net."}, best={"val_acc": "acc"})
    with pytest.raises(CheckpointNotFoundError, match="a score belongs to the weights that earned it"):
        trainer(tmp_path).fit(Net(), batches(), init_from=init)


def test_last_passes_over_checkpoints_of_weights_only(tmp_path: Path) -> None:
    every = ModelCheckpoint(every_n_train_steps=3, save_weights_only=True, save_top_k=-1)
    trainer(tmp_path, [ModelCheckpoint(every_n_epochs=2), every], max_epochs=2).fit(Net(), batches())
    run = trainer(tmp_path, [ModelCheckpoint(every_n_epochs=2), every], max_epochs=3)
    run.fit(Net(), batches(), ckpt_path="last")
    assert run.ckpt_path.name == f"step-{2 * EPOCH:09d}"


@pytest.mark.parametrize("nested", [False, True])
def test_the_best_of_paddlex_3_is_found_from_its_output_directory_or_one_folder_of_it(
    tmp_path: Path, nested: bool
) -> None:
    layer = network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=layer.parameters())
    train_by_hand(layer, optimizer, 1)
    wrapped = paddle.nn.Layer()
    wrapped.net = layer
    for name in ("latest", "best_accuracy"):
        (tmp_path / "out" / name).mkdir(parents=True)
        ocr_checkpoint(tmp_path / "out" / name, name, wrapped, optimizer, 3, best_model_dict={"acc": 0.9})
    fit = trainer(tmp_path, [ModelCheckpoint(monitor="val_acc", mode="max")])
    path = tmp_path / "out" / "latest" if nested else tmp_path / "out"
    fit.fit(Net(), batches(), batches(), init_from=InitFrom(path, training_state=True, best={"val_acc": "acc"}))
    assert fit.imported_best is not None and fit.current_epoch == 5 and fit.global_step == 5 * EPOCH


def test_everything_in_one_file_that_paddle_wrote_goes_on_as_the_loop_would(tmp_path: Path) -> None:
    wrapped = paddle.nn.Layer()
    wrapped.net = network()
    optimizer = paddle.optimizer.AdamW(0.05, parameters=wrapped.parameters())
    train_by_hand(wrapped.net, optimizer, 2)
    file = tmp_path / "all.pdparams"
    paddle.save({"model": wrapped.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}, str(file))
    module = Net()
    trainer(tmp_path, max_epochs=4).fit(module, batches(), init_from=InitFrom(file, training_state=True))
    train_by_hand(wrapped.net, optimizer, 2)
    assert same_weights(module, wrapped)
