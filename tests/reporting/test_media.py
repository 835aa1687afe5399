"""Images, texts, histograms, figures and audio: when they are logged, in which form, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import Callback, CSVLogger, Logger, Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.reporting import media_forms
from paddlelite_trainer.reporting.media_forms import as_audio, as_histogram, as_image


class Shows(Logger):
    """Keeps all that it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.seen.append((name, step, image))

    def log_text(self, name: str, text: str, step: int) -> None:
        self.seen.append((name, step, text))

    def of(self, name: str) -> list[tuple[int, Any]]:
        return [(step, content) for of, step, content in self.seen if of == name]


def fit(logger: Any, module: Any, root: Path | None = None, batches: int = 6, **settings: Any) -> Trainer:
    trainer = quiet_trainer(
        **{"logger": logger, "max_epochs": 2, "log_every_n_steps": 4, "default_root_dir": root or "runs", **settings}
    )
    trainer.fit(module, make_batches(batches), make_batches(2), ckpt_path="last")
    return trainer


# -- when --------------------------------------------------------------------------------------------------------------
class Writes(Classifier):
    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log_text("step", lambda: self.said(f"batch {batch_idx}"))
        return super().training_step(batch, batch_idx)

    def said(self, text: str) -> str:
        self.calls += 1
        return text

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log_text("end", f"after {self.trainer.global_step}")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log_text("val", f"validation batch {batch_idx}")

    def on_train_epoch_end(self) -> None:
        self.log_text("epoch", "over")


def test_training_logs_at_the_steps_whose_numbers_are_logged_and_the_rest_always(tmp_path: Path) -> None:
    logger, module = Shows(), Writes()
    fit(logger, module, tmp_path, num_sanity_val_steps=2)
    assert logger.of("step") == [(4, "batch 3"), (8, "batch 1"), (12, "batch 5")]
    assert logger.of("end") == [(4, "after 4"), (8, "after 8"), (12, "after 12")]
    assert logger.of("val") == [(6, "validation batch 0"), (12, "validation batch 0")]
    assert logger.of("epoch") == [(6, "over"), (12, "over")]
    assert module.calls == 3  # what makes them is not called in between


def test_between_logging_steps_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    class Logs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for log in (self.log_image, self.log_histogram, self.log_text):
                log("x", Untouchable())
            self.log_audio("x", Untouchable(), sample_rate=0)
            return super().training_step(batch, batch_idx)

    fit(Shows(), Logs(), tmp_path, log_every_n_steps=50)


def test_a_window_of_batches_logs_its_first(tmp_path: Path) -> None:
    logger = Shows()
    fit(logger, Writes(), tmp_path, batches=8, accumulate_grad_batches=2, max_epochs=1)
    assert logger.of("step") == [(4, "batch 6")]


def test_several_steps_by_hand_in_a_batch_are_logged_in_the_next_that_begins_past_the_interval(tmp_path: Path) -> None:
    class ByHand(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.log_text("step", f"batch {batch_idx}")
            for _ in range(2):
                self.manual_backward(self.loss(batch))
                self.optimizers().step()
                self.optimizers().clear_grad()

    logger = Shows()
    fit(logger, ByHand(), tmp_path, max_epochs=1)
    assert logger.of("step") == [(5, "batch 2"), (9, "batch 4")]


def test_an_interrupted_run_that_goes_on_logs_what_one_that_was_not_does(tmp_path: Path) -> None:
    class Stops(Writes):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 7 and self.stops:
                raise KeyboardInterrupt

    whole, first, second = Shows(), Shows(), Shows()
    fit(whole, Writes(), tmp_path / "whole", enable_checkpointing=True)
    module = Stops()
    module.stops = True
    with pytest.raises(KeyboardInterrupt):
        fit(first, module, tmp_path / "halved", enable_checkpointing=True)
    as_if_started_again()
    fit(second, Writes(), tmp_path / "halved", enable_checkpointing=True)
    kept = [seen for seen in first.seen if seen[1] <= 6]
    assert kept + second.seen == whole.seen


def test_an_evaluation_apart_logs_too_but_for_the_names_of_the_fit(tmp_path: Path) -> None:
    class Tests(Writes):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log_text("test", "tested")
            self.log_text("val", "of the fit")

    logger = Shows()
    trainer = fit(logger, Tests(), tmp_path, max_epochs=1)
    before = len(logger.seen)
    trainer.test(dataloaders=make_batches(2), verbose=False)
    assert logger.seen[before:] == [("test", 6, "tested")]


def test_callbacks_log_too_and_nothing_happens_without_a_trainer_or_loggers(tmp_path: Path) -> None:
    class Pictures(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.log_image("mine", np.zeros([2, 3], "uint8"))

    logger = Shows()
    fit(logger, Classifier(), tmp_path, callbacks=[Pictures()], max_epochs=1)
    ((step, image),) = logger.of("mine")
    assert (step, image.shape, image.dtype) == (6, (2, 3, 3), np.uint8)
    fit(False, Writes(), tmp_path, max_epochs=1)
    Writes().log_image("x", None)


# -- to whom -----------------------------------------------------------------------------------------------------------
def test_a_logger_that_cannot_is_left_out_and_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Shows()
    fit([logger, CSVLogger()], Writes(), tmp_path)
    assert len(logger.of("step")) == 3
    told = [line for line in capsys.readouterr().out.splitlines() if "has no place" in line]
    assert told == ["note: CSVLogger has no place for what log_text logs, and leaves it out"]


def test_a_figure_is_an_image_where_there_is_nothing_better_and_pyplot_forgets_it(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")

    class Draws(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            figure, axes = pyplot.subplots(figsize=(2, 1), dpi=50)
            axes.plot([1, 2])
            self.log_figure("drawn", figure)
            return super().training_step(batch, batch_idx)

    logger = Shows()
    fit(logger, Draws(), tmp_path, max_epochs=1)
    ((_, image),) = logger.of("drawn")
    assert image.shape == (50, 100, 4) and image[..., :3].min() < 100
    assert pyplot.get_fignums() == []


# -- in which form -----------------------------------------------------------------------------------------------------
def test_images_of_all_kinds_become_bytes_height_width_channels() -> None:
    from PIL import Image

    picture = np.arange(2 * 5 * 3, dtype="uint8").reshape(2, 5, 3)
    tensor = paddle.to_tensor(picture.transpose(2, 0, 1).astype("float32") / 255)
    for given, dataformats in (
        (picture, None),
        (picture.transpose(2, 0, 1), None),
        (picture.astype("int64"), None),
        (tensor, None),
        (tensor.astype("bfloat16") if paddle.is_compiled_with_cuda() else tensor, "CHW"),
        (Image.fromarray(picture), None),
        (picture.astype("float64") / 255, "HWC"),
    ):
        image = as_image("x", given, dataformats)
        assert image.dtype == np.uint8 and (image == picture).all()
    assert as_image("x", np.array([[True, False]]), None).tolist() == [[[255] * 3, [0] * 3]]
    assert as_image("x", np.ones([1, 7, 9]) * 0.2, None).shape == (7, 9, 3)
    assert as_image("x", np.ones([7, 9, 4]), None).shape == (7, 9, 4)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (
            lambda: as_image("x", np.ones([8, 3, 7, 7]), None),
            r"takes one image.*got \[8, 3, 7, 7\]. Of a batch",
        ),
        (
            lambda: as_image("x", np.ones([3, 7, 3]), None),
            r"\[3, 7, 3\] may be CHW or HWC. Say which",
        ),
        (lambda: as_image("x", np.ones([3, 7, 9]), "HWC"), r"has 1, 3 or 4 channels and some pixels, this has 9"),
        (lambda: as_image("x", np.ones([7, 9]), "CHW"), r"dataformats='CHW'\): the image is \[7, 9\]"),
        (lambda: as_image("x", np.ones([7, 9]), "NCHW"), r"it is one of 'CHW', 'HWC', 'HW'"),
        (lambda: as_image("x", "a.png", None), "takes numbers, got str"),
        (lambda: as_histogram("x", []), "was given no number"),
        (
            lambda: as_audio("x", np.ones([2, 3, 4]), 8000),
            r"or \[channels, samples\], got \[2, 3, 4\]",
        ),
        (lambda: as_audio("x", np.ones(3), 0), "samples a second, a positive int"),
        (lambda: media_forms.as_text("x", 3), "takes a str, got 3 of int"),
        (lambda: media_forms.as_figure("x", 3), "takes a matplotlib Figure, got 3 of int"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(call: Any, error: str) -> None:
    with pytest.raises((ConfigurationError, ConfigurationTypeError), match=error):
        call()


def test_values_beyond_are_cut_off_and_told_and_do_not_end_a_training() -> None:
    with pytest.warns(UserWarning, match=r"floats are shown from 0 to 1, and these are from -1 to 2"):
        assert as_image("x", np.array([[-1.0, 2.0, 0.5]]), None)[0, :, 0].tolist() == [0, 255, 128]
    with pytest.warns(UserWarning, match="NaN and infinite values are left out"):
        assert as_histogram("x", [1.0, np.nan]).tolist() == [1.0]
    with pytest.warns(UserWarning, match="cut off"):
        assert as_image("x", np.array([[np.nan, 1.0]]), None)[0, :, 0].tolist() == [0, 255]


def test_sound_of_all_kinds_becomes_samples_by_channels() -> None:
    assert as_audio("x", np.zeros(5, "float32"), 8000)[0].shape == (5, 1)
    assert as_audio("x", np.zeros([2, 500]), 8000)[0].shape == as_audio("x", np.zeros([500, 2]), 8000)[0].shape
    samples, rate = as_audio("x", np.array([32767, -32767], "int16"), 16000)
    assert (samples[:, 0].tolist(), samples.dtype, rate) == ([1.0, -1.0], np.float32, 16000)


class Spoilt(Classifier):
    """Logs what a model that has gone wrong leaves."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log_histogram("nan", np.full(3, np.nan))
        self.log_histogram("huge", np.array([1e308, -1e308, 1.0]))
        self.log_text("half", "a\ud800")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("logger", ["tensorboard", "visualdl"])
def test_what_a_model_has_spoilt_ends_no_training(logger: str, tmp_path: Path) -> None:
    pytest.importorskip(logger.replace("tensorboard", "tensorboardX"))
    assert fit(logger, Spoilt(), tmp_path).current_epoch == 2


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    class Numbered(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_image(3, np.zeros([4, 4]))  # type: ignore[arg-type]

    with pytest.raises(ConfigurationTypeError, match=r"log_image\(3, \.\.\.\): the name is a str, got int"):
        fit("tensorboard", Numbered(), tmp_path)
