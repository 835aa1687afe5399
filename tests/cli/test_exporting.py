"""`paddlelite export`: a checkpoint's network from the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors
from paddlelite_trainer.cli import FAILED, OK, USAGE, main
from paddlelite_trainer.export import exporting

MODELS = Path(__file__).parents[1] / "models.py"
SUFFIX = ".pdmodel" if paddle.__version__.startswith("2.") else ".json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its newest."""
    root = tmp_path_factory.mktemp("runs")
    from paddlelite_trainer.callbacks import ModelCheckpoint

    best = ModelCheckpoint(monitor="val_loss", mode="max", save_top_k=1)
    trainer = quiet_trainer(
        max_epochs=2, enable_checkpointing=True, default_root_dir=root, run_name="run", callbacks=[best]
    )
    trainer.fit(Classifier(hidden=5), make_batches(3), make_batches(1))
    return root / "run"


def call(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    code = main(["export", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_run_is_exported_by_its_class_and_the_input_it_has_had(trained: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = call(capsys, trained, tmp_path / "m", "--module", f"{MODELS}:Classifier", "--json")
    assert code == OK, err
    told = json.loads(out[out.index("{") :])
    assert told["inputs"] == {"x": "float32 [any, 4]"} and told["max_difference"] < 1e-5
    assert set(told["files"]) >= {str(tmp_path / f"m{SUFFIX}"), str(tmp_path / "m.pdiparams")}
    x = make_batches(1)[0][0]
    module = Classifier.load_from_checkpoint(trained / "best")
    found = paddle.jit.load(str(tmp_path / "m"))(x)
    found = found[0] if isinstance(found, (list, tuple)) else found
    np.testing.assert_allclose(found.numpy(), module(x).numpy(), atol=1e-5)
    code, _, err = call(capsys, trained, tmp_path / "m", "--module", f"{MODELS}:Classifier")
    assert code == USAGE and f"{tmp_path / 'm'}{SUFFIX} exists; --force replaces it" in err


def test_weights_need_no_class(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert call(capsys, trained, tmp_path / "m.safetensors")[0] == OK
    assert call(capsys, trained, tmp_path / "m", "--format", "pdparams")[0] == OK
    arrays, _ = read_safetensors(tmp_path / "m.safetensors")
    weights = paddle.load(str(trained / "best.pdparams"))
    assert all(np.array_equal(arrays[name], value.numpy()) for name, value in weights.items())
    assert (tmp_path / "m.pdparams").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], USAGE, "pass --module package.module:Class or --module train.py:Class; this checkpoint is of a class Cl"),
        (["--module", f"{MODELS}:Clasifier"], USAGE, "has no class Clasifier. Did you mean 'Classifier'?"),
        (["--module", "no_such_module:A"], USAGE, "--module no_such_module: No module named 'no_such_module'"),
        (["--module", f"{MODELS}:Classifier", "--input", "x:float32"], USAGE, "--input takes name:dtype[sizes]"),
        (["--module", f"{MODELS}:Classifier", "--input", "x:float32[any,b]"], USAGE, "a size is a number, or any"),
        (["--module", f"{MODELS}:Classifier", "--input", "x:float31[any,4]"], USAGE, "--input x:float31[any,4]: "),
        (["--module", f"{MODELS}:Classifier", "--weights", "ema"], USAGE, "weights='ema'"),
        (["--module", f"{MODELS}:Classifier", "--tolerance", "0"], FAILED, "and is not the same: output differs"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], code: int, said: str, trained: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporting, "computed", lambda program, inputs, folder: ([[("y", np.ones((2, 3)))]] * 2, ""))
    found, _, err = call(capsys, trained, tmp_path / "m", *arguments)
    assert (found, said in err) == (code, True), err
    assert list(tmp_path.iterdir()) == []


SCRIPT = """import paddle
from paddlelite_trainer import Trainer
from models import Classifier

class Mine(Classifier):
    pass

{rest}
"""


def test_a_script_that_trains_without_a_guard_is_executed_up_to_there(
    trained: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train_unguarded.py"
    trainer = f"Trainer(default_root_dir={str(trained.parent)!r}, run_name='run', max_epochs=9)"
    fit = f"{trainer}.fit(Mine(), [], ckpt_path='last')"
    script.write_text(SCRIPT.format(rest=f"try:\n    {fit}\nexcept Exception:\n    pass\nraise SystemExit(3)"))
    before = (trained / "run.json").read_bytes(), (trained / "train.log").read_bytes()
    code, _, err = call(capsys, trained, tmp_path / "m", "--module", f"{script}:Mine")
    assert code == OK, err
    assert ((trained / "run.json").read_bytes(), (trained / "train.log").read_bytes()) == before


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (
            "assert 1 == 2, 'no'",
            "train_bad.py:8 cannot be imported: AssertionError: no. It is executed for its classes",
        ),
        (
            "import argparse; argparse.ArgumentParser().parse_args(['--x'])",
            "train_bad.py:8 cannot be imported: SystemExit",
        ),
        ("this is no python", "cannot be imported: SyntaxError"),
    ],
)
def test_a_script_that_cannot_be_imported_is_one_line_that_names_the_place(
    trained: Path, tmp_path: Path, capsys: Any, rest: str, said: str
) -> None:
    script = tmp_path / "train_bad.py"
    script.write_text(SCRIPT.format(rest=rest))
    code, _, err = call(capsys, trained, tmp_path / "m", "--module", f"{script}:Mine")
    assert code == USAGE and said in err and len([line for line in err.splitlines() if "paddlelite: " in line]) == 1
