"""trainer.export: what is written, what it computes, what is refused, and that nothing of the run changes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import networks
import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint, ModelExport
from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors
from paddlelite_trainer.errors import CheckpointError, ConfigurationError, ConfigurationTypeError, ExportError
from paddlelite_trainer.export import exporting, trial
from paddlelite_trainer.machine.rng import random_states

PADDLE_3 = not paddle.__version__.startswith("2.")
PROGRAM = ".json" if PADDLE_3 else ".pdmodel"


def numbers(*shape: int) -> Any:
    return paddle.to_tensor(np.random.RandomState(0).randn(*shape).astype("float32"))


def export(module: Any, path: Path, *input_spec: Any, **more: Any) -> Any:
    more = {"checkpoint": None, "input_spec": list(input_spec) or None, **more}
    return quiet_trainer().export(path, model=module, **more)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".info")


def loaded(prefix: Path, *inputs: Any) -> Any:
    found = paddle.jit.load(str(prefix))(*inputs)
    return (found[0] if isinstance(found, (list, tuple)) else found).numpy()


def of_file(path: Path, x: Any) -> Any:
    module = Classifier.load_from_checkpoint(path)
    module.eval()
    return module(x).numpy()


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is not loaded in another process: for tests of everything else."""

    def computed(program: Any, inputs: Any, folder: Path) -> Any:
        program.onnx.write_bytes(b"onnx")
        return [[] for _ in inputs], ""

    monkeypatch.setattr(exporting, "computed", computed)
    monkeypatch.setattr(exporting, "difference", lambda *_: 0.0)


# -- what is exported --------------------------------------------------------------------------------------------------


def test_a_fit_exports_its_best_weights_with_the_input_of_a_batch_seen(tmp_path: Path) -> None:
    trainer = quiet_trainer(
        max_epochs=2,
        enable_checkpointing=True,
        default_root_dir=tmp_path / "runs",
        callbacks=[ModelCheckpoint(monitor="val_loss"), ExponentialMovingAverage(0.5)],
    )
    module = Classifier(lr=0.5)
    trainer.fit(module, make_batches(4), make_batches(2, seed=3))
    before = weights_of(module)
    exported = trainer.export(tmp_path / "out" / "model")
    assert names_in(tmp_path / "out") == sorted([f"model{PROGRAM}", "model.pdiparams"])
    assert "ema.pdparams" in exported.weights and exported.inputs == {"x": "float32 [any, 4]"}
    assert 0 <= exported.max_difference < 1e-5
    assert "a batch of the run, batches of 8 and 4: the largest difference is" in str(exported)
    assert same_weights(weights_of(module), before)
    x, best = make_batches(1)[0][0], tmp_path / "runs/version_0/best"
    np.testing.assert_allclose(loaded(tmp_path / "out/model", x), of_file(best / "ema.pdparams", x), atol=1e-5)
    assert not np.allclose(of_file(best, x), of_file(best / "ema.pdparams", x), atol=1e-5)
    trainer.export(tmp_path / "plain.safetensors", "safetensors", weights="model")
    plain, _ = read_safetensors(tmp_path / "plain.safetensors")
    assert same_weights(plain, weights_of(Classifier.load_from_checkpoint(best)))
    trainer.export(tmp_path / "plain", "pdparams", weights="model")
    assert same_weights({n: v.numpy() for n, v in paddle.load(str(tmp_path / "plain.pdparams")).items()}, plain)
    with pytest.raises(ConfigurationError, match=r"export\(weights='swa'\): .* has the weights '(ema|model)', '"):
        trainer.export(tmp_path / "swa", weights="swa")


CALLS: dict[str, Any] = {
    "TwoInputs": lambda: [paddle.to_tensor(np.arange(40).reshape(8, 5) % 10), numbers(8, 5)],
    "DictInput": lambda: {"image": numbers(6, 4), "more": [numbers(6, 4), numbers(6, 4)]},
    "Branches": lambda: numbers(8, 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_and_outputs_of_any_kind_are_those_of_a_step(name: str, tmp_path: Path) -> None:
    module, batch = getattr(networks, name)(), CALLS[name]()
    trainer = quiet_trainer()
    trainer.fit(module, [batch])
    exported = trainer.export(tmp_path / "m", checkpoint=None)
    assert exported.max_difference < 1e-5
    assert module.training
    wanted = {
        "TwoInputs": {"ids": "int64 [any, 5]", "weight": "float32 [any, 5]"},
        "DictInput": dict.fromkeys(("image", "more_0", "more_1"), "float32 [any, 4]"),
        "Branches": {"x": "float32 [any, 4]"},
    }
    assert exported.inputs == wanted[name]
    told = [told.partition(",")[0] for told in exported.outputs.values()]
    assert (
        told
        == {"TwoInputs": ["output_0", "output_1"], "DictInput": ["logits", "features"], "Branches": ["output"]}[name]
    )


def test_a_spec_or_a_batch_tells_the_input_where_no_run_has(tmp_path: Path, untried: None) -> None:
    module = networks.TwoInputs()
    spec = [paddle.static.InputSpec([None, 7], "int32", "words"), paddle.static.InputSpec([None, 7])]
    assert export(module, tmp_path / "a", *spec).inputs == {"words": "int32 [any, 7]", "weight": "float32 [any, 7]"}
    assert export(module, tmp_path / "b", np.ones((3, 5), "int64"), numbers(3, 5)).inputs == {
        "ids": "int64 [any, 5]",
        "weight": "float32 [any, 5]",
    }
    assert export(Classifier(), tmp_path / "c", batch=make_batches(1)[0]).inputs == {"x": "float32 [any, 4]"}
    classifier = Classifier()
    classifier.example_input_array = numbers(2, 4)
    assert export(classifier, tmp_path / "d").inputs == {"x": "float32 [any, 4]"}
    with pytest.raises(ConfigurationError, match=r"nothing is known of the input of Classifier.forward.*input_spec="):
        export(Classifier(), tmp_path / "e")
    with pytest.raises(ConfigurationError, match=r"input_spec has no Tensor and no InputSpec: got \[3\]"):
        export(Classifier(), tmp_path / "e", 3)


def test_onnx_computes_the_same_or_says_which_package_is_wanted(tmp_path: Path) -> None:
    if importlib.util.find_spec("paddle2onnx") is None:  # not imported: 2.x refuses Paddle 2.6 then
        pytest.skip("paddle2onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = networks.TwoInputs()
    call = CALLS["TwoInputs"]()
    fits = (int(importlib.metadata.version("paddle2onnx").split(".")[0]) >= 2) == PADDLE_3
    if not fits:
        wanted = "paddle2onnx>=2" if PADDLE_3 else "paddle2onnx<2"
        with pytest.raises(ConfigurationError, match=rf"paddle2onnx .* does not work with Paddle .*: pip.*'{wanted}'"):
            export(module, tmp_path / "m.onnx", *call, format="onnx")
        return
    exported = export(module, tmp_path / "m.onnx", *call, format="onnx")
    assert names_in(tmp_path) == ["m.onnx"] and exported.max_difference < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    module.eval()
    for size in (1, 5):
        ids, weight = (one[:size] for one in call)
        found = session.run(None, {"ids": ids.numpy(), "weight": weight.numpy()})
        np.testing.assert_allclose(found[0], module(ids, weight)[0].numpy(), atol=1e-5)


def test_packages_that_are_missing_or_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"paddle2onnx": True, "onnxruntime": True}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there.get(name) or None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.4" if PADDLE_3 else "2.1.0")
    with pytest.raises(ConfigurationError, match=r"does not work with Paddle"):
        trial.refuse_missing_packages("onnx")
    there["onnxruntime"] = False
    with pytest.raises(ConfigurationError, match=r"format='onnx' needs onnxruntime: pip install 'paddlelite_trainer"):
        export(networks.Branches(), tmp_path / "m", numbers(8, 4), format="onnx")
    trial.refuse_missing_packages("inference")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_traced_is_told_with_its_line(tmp_path: Path, untried: None) -> None:
    (tmp_path / "m.json").write_text("before")
    with pytest.raises(ExportError) as told:
        export(networks.Untraceable(), tmp_path / "m", numbers(8, 4))
    source = Path(networks.__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, code in enumerate(source, 1) if "x.tolist()" in code)
    assert f"networks.py:{line}, in scaled:\n    rows = x.tolist()\n" in str(told.value)
    assert "tolist" in str(told.value).splitlines()[-1]
    assert names_in(tmp_path) == ["m.json"] and (tmp_path / "m.json").read_text() == "before"


def test_what_failed_before_gives_nothing_to_a_later_export(
    tmp_path: Path, untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("program_translator", "parameter_recorder"):  # as if programs had got one another's ids
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"paddle.jit.dy2static.{name}")
            monkeypatch.setattr(module, "_program_hash", lambda program: 1)
    with pytest.raises(Exception, match="tolist"):  # a user's own
        paddle.jit.save(networks.Untraceable(), str(tmp_path / "own"), [paddle.static.InputSpec([8, 4], "float32")])
    export(Classifier(), tmp_path / "first", numbers(8, 4))
    with pytest.raises(ExportError, match="tolist"):
        export(networks.Untraceable(), tmp_path / "second", numbers(8, 4))
    paddle.jit.save(Classifier(), str(tmp_path / "third"), [paddle.static.InputSpec([8, 4], "float32")])
    assert names_in(tmp_path) == sorted(
        f"{name}{kind}" for name in ("first", "third") for kind in (PROGRAM, ".pdiparams")
    )


def test_a_program_that_computes_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"output differs by up to .* tolerance=0.0001 allows .*Nothing was written"):
        export(networks.OtherWhenTraced(), tmp_path / "new" / "m", numbers(8, 4))
    assert names_in(tmp_path) == []
    exported = export(networks.OtherWhenTraced(), tmp_path / "new" / "m", numbers(8, 4), tolerance=0.1)
    assert exported.max_difference > 1e-4


def test_a_batch_size_that_became_a_constant_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"batch of another size|paddle.inference"):
        export(networks.OfOneSize(), tmp_path / "m", numbers(8, 4))
    assert names_in(tmp_path) == []
    spec = paddle.static.InputSpec([8, 4], "float32")
    assert export(networks.OfOneSize(), tmp_path / "m", spec).inputs == {"x": "float32 [8, 4]"}


def test_a_module_without_forward_exports_its_weights_only(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"NoForward has no forward, so .*: write forward.*format='safetensors'"):
        export(networks.NoForward(), tmp_path / "m", numbers(8, 4))
    assert export(networks.NoForward(), tmp_path / "m", format="pdparams").files.keys() == {tmp_path / "m.pdparams"}


def test_arguments_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    trainer = quiet_trainer()
    with pytest.raises(ConfigurationError, match=r"must be one of 'inference', .* got 'onx'. Did you mean 'onnx'?"):
        trainer.export(tmp_path / "m", "onx")
    with pytest.raises(ConfigurationError, match=r"tolerance=...\) must be a number >= 0, got -1"):
        trainer.export(tmp_path / "m", tolerance=-1)
    with pytest.raises(ConfigurationError, match=r"trainer.export\(\) needs a model"):
        trainer.export(tmp_path / "m")
    trainer.fit(Classifier(), make_batches(1))
    with pytest.raises(CheckpointError, match=r"export\(checkpoint='best'\).*saved nothing.*Pass checkpoint=None"):
        trainer.export(tmp_path / "m")
    with pytest.raises(ExportError, match=r"is a directory: name a file in it"):
        trainer.export(tmp_path, checkpoint=None)
    assert names_in(tmp_path) == []


def test_a_failing_move_puts_back_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untried: None
) -> None:
    before = {f"m{PROGRAM}": "program", "m.pdiparams": "numbers"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / f"m{PROGRAM}" and Path(source).name.startswith("model"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ExportError, match=r"No space left on device; what was there before is there again"):
        export(networks.Branches(), tmp_path / "m", numbers(8, 4))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_program_that_ends_its_process_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "outside.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(trial, "__file__", str(script))
    with pytest.raises(ExportError, match=r"paddle.inference was ended by SIGSEGV"):
        export(networks.Branches(), tmp_path / "out" / "m", numbers(8, 4))
    assert names_in(tmp_path) == ["outside.py"]


def test_a_program_that_only_the_optimiser_cannot_bear_is_compared_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(trial.__file__).with_name("outside.py").read_text(encoding="utf-8")
    dies = "import json, os, signal, sys\nif json.load(open(sys.argv[1]))['optimize']: os.kill(os.getpid(), 11)\n"
    (tmp_path / "outside.py").write_text(real.replace("from __future__ import annotations\n", f"\n{dies}", 1))
    monkeypatch.setattr(trial, "__file__", str(tmp_path / "outside.py"))
    exported = export(networks.Branches(), tmp_path / "m", numbers(8, 4))
    assert "WARNING: paddle.inference of Paddle" in str(exported) and "switch_ir_optim(False)" in str(exported)


def test_outputs_that_are_all_but_nought_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = networks.DictInput()
    for parameter in module.parameters():
        parameter.set_value(parameter * 1e-9)
    inputs = {"image": numbers(6, 4) * 1e-9, "more": []}
    monkeypatch.setattr(exporting, "computed", lambda program, inputs, folder: ([[] for _ in inputs], ""))
    monkeypatch.setattr(exporting, "difference", lambda *_: 0.0)
    assert "all outputs are within tolerance of 0" in str(export(module, tmp_path / "m", inputs))


def test_what_a_converter_says_before_it_aborts_is_told() -> None:
    said = b"""[Paddle2ONNX] Start parsing
C++ Traceback (most recent call last):
--------------
FatalError: `Process abort signal` is detected by the operating system.
  [TimeInfo: *** Aborted at 1 ***]
  [SignalInfo: *** SIGABRT ***]
[ERROR][Paddle2ONNX] Can not get input 'axis(dim)' value.
"""
    assert trial._last_words(said) == "[ERROR][Paddle2ONNX] Can not get input 'axis(dim)' value."


# -- nothing of the run changes ----------------------------------------------------------------------------------------


class Counting(Classifier):
    """Counts in every mode, and draws numbers."""

    def __init__(self) -> None:
        super().__init__(hidden=6)
        self.net.add_sublayer("norm", paddle.nn.BatchNorm1D(3))
        self.net.add_sublayer("dropout", paddle.nn.Dropout(0.2))
        self.register_buffer("calls", paddle.zeros([1]))

    def forward(self, x: Any) -> Any:
        if paddle.in_dynamic_mode():
            self.calls.add_(paddle.ones([1]))
        return self.net(x)


def test_an_export_in_a_run_changes_no_bit_of_it(tmp_path: Path, untried: None) -> None:
    ends = []
    for callbacks in ([], [ModelExport(tmp_path / "m")]):
        module = Counting()
        trainer = quiet_trainer(max_epochs=2, seed=5, callbacks=callbacks)
        trainer.fit(module, make_batches(3))
        ends.append((weights_of(module), random_states()))
        assert "forward" not in vars(module) and all("forward" not in vars(layer) for layer in module.sublayers())
    assert same_weights(ends[0][0], ends[1][0])
    assert repr(ends[0][1]) == repr(ends[1][1])
    assert names_in(tmp_path) == sorted([f"m{PROGRAM}", "m.pdiparams"])


def test_the_callback_refuses_after_the_first_batch_what_would_fail_at_the_end(tmp_path: Path, untried: None) -> None:
    module = networks.Untraceable()
    with pytest.raises(ExportError, match=r"x.tolist\(\)[\s\S]*rehearsal after the first batch[\s\S]*rehearse=False"):
        quiet_trainer(callbacks=[ModelExport(tmp_path / "m")]).fit(module, [numbers(8, 4)] * 2)
    assert module.global_step == 1 and names_in(tmp_path) == []


def test_a_checkpoint_tells_the_input_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path, "run_name": "run"}
    quiet_trainer(max_epochs=1, **settings).fit(Classifier(), make_batches(2))
    module = Classifier()
    trainer = quiet_trainer(max_epochs=2, **settings)
    trainer.fit(module, make_batches(2, batch_size=3), ckpt_path="last", override=["data"])
    told = {"args": [{"tensor": {"shape": [-1, 4], "dtype": "float32"}}], "kwargs": {}}
    assert module.forward_inputs.described == told
    assert module.forward_inputs.call is not None and module.forward_inputs.call.batch_size == 3
    assert not re.search("forward", " ".join(vars(module)).replace("forward_inputs", "").replace("_forward", ""))


def test_the_suffix_tells_the_format_where_none_is_given(tmp_path: Path) -> None:
    assert export(Classifier(), tmp_path / "m.safetensors", numbers(8, 4)).format == "safetensors"
    quiet_trainer(callbacks=[ModelExport(tmp_path / "n.pdparams")]).fit(Classifier(), make_batches(2))
    assert names_in(tmp_path) == ["m.safetensors", "n.pdparams"]
    with pytest.raises(
        ConfigurationTypeError, match=r"Trainer.export has no argument 'ckpt_path'. Here it is checkpoint."
    ):
        quiet_trainer().export(tmp_path / "m", ckpt_path="best")


def test_what_cannot_be_a_file_s_name_or_an_input_is_one_error(tmp_path: Path) -> None:
    for path in ("", None, 3, "nul\0"):
        with pytest.raises(ConfigurationError, match=r"export\(path=\.\.\.\) is the files' name without suffix"):
            export(Classifier(), path, numbers(8, 4))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"forward fails with .* \(x \[2, 5\]\): ValueError"):
        export(Classifier(), tmp_path / "m", paddle.static.InputSpec([None, 5], "float32"))
    with pytest.raises(ExportError, match=r"predict_step fails with the batch= given: IndexError"):
        export(Classifier(), tmp_path / "m", batch=[])


def test_a_best_that_is_not_there_is_told_by_the_name_of_the_argument(tmp_path: Path) -> None:
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path, "check_val_every_n_epoch": 2}
    trainer = quiet_trainer(max_epochs=1, callbacks=[ModelCheckpoint(monitor="val_loss")], **settings)
    trainer.fit(Classifier(), make_batches(2), make_batches(1))  # it ends before the first validation
    with pytest.raises(ConfigurationError, match=r"^checkpoint='best'.*or pass checkpoint='last'"):
        trainer.export(tmp_path / "m")


def test_where_nothing_is_monitored_the_newest_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(2))
    trainer.export(tmp_path / "m.pdparams", "pdparams")
    assert "nothing is monitored, so the newest checkpoint is taken" in capsys.readouterr().out
