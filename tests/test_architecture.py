"""The house's walls: who imports whom, what is public, what documents say of files, how long a batch's way is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest
import readme_tree

import paddlelite_trainer
from paddlelite_trainer import Callback, Module, Trainer, callbacks, errors
from paddlelite_trainer.callback import HOOKS as CALLBACK_HOOKS
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "paddlelite_trainer").rglob("*.py"))
CALLBACKS = sorted((ROOT / "callbacks").rglob("*.py"))
CLIENTS = [*CALLBACKS, *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# Where private names of others are still reached for, and how often at most; a number may only fall.
REACHES = {
    "paddlelite_trainer/callback.py": 3,
    "paddlelite_trainer/checkpoint/weights.py": 1,
    "paddlelite_trainer/fit/changes.py": 5,
    "paddlelite_trainer/fit/evaluation.py": 24,
    "paddlelite_trainer/fit/mark.py": 22,
    "paddlelite_trainer/fit/starting.py": 3,
    "paddlelite_trainer/fit/state.py": 30,
    "paddlelite_trainer/module.py": 11,
    "paddlelite_trainer/reporting/profiler.py": 13,
    "paddlelite_trainer/run/directory.py": 2,
    "paddlelite_trainer/trainer.py": 4,
}

# What Lightning 2.6 calls, in its order, with the arguments after trainer and module. A Lightning callback needs no new
# names.
LIGHTNING_HOOKS = {
    "setup": ["stage"],
    "teardown": ["stage"],
    **{
        f"on_{when}": []
        for when in (
            *("fit_start", "fit_end", "sanity_check_start", "sanity_check_end", "train_start", "train_end"),
            *("train_epoch_start", "train_epoch_end", "validation_start", "validation_end"),
            *("validation_epoch_start", "validation_epoch_end", "test_start", "test_end", "test_epoch_start"),
            *("test_epoch_end", "predict_start", "predict_end", "predict_epoch_start", "predict_epoch_end"),
            "after_backward",
        )
    },
    "on_train_batch_start": ["batch", "batch_idx"],
    "on_train_batch_end": ["outputs", "batch", "batch_idx"],
    **{
        f"on_{word}_batch_start": ["batch", "batch_idx", "dataloader_idx"] for word in ("validation", "test", "predict")
    },
    **{
        f"on_{word}_batch_end": ["outputs", "batch", "batch_idx", "dataloader_idx"]
        for word in ("validation", "test", "predict")
    },
    "on_before_backward": ["loss"],
    "on_before_optimizer_step": ["optimizer"],
    "on_before_zero_grad": ["optimizer"],
    "on_save_checkpoint": ["checkpoint"],
    "on_load_checkpoint": ["checkpoint"],
    "on_exception": ["exception"],
}


# -- who imports whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_callbacks_only_in_defaults(path: Path) -> None:
    imported = {name for name, _ in _imports(path) if "callbacks" in name.split(".")}
    # __init__.py only passes `paddlelite_trainer.callbacks` on to type checkers and to those who ask for it.
    assert not imported or path.name in ("defaults.py", "__init__.py"), imported


@pytest.mark.parametrize(
    "path", sorted((ROOT / "paddlelite_trainer/checkpoint").glob("*.py")), ids=lambda path: path.name
)
def test_checkpoints_need_numpy_and_the_standard_library_alone(path: Path) -> None:
    for name, at_module_level in _imports(path):
        if name.startswith("paddlelite_trainer"):
            allowed = ("paddlelite_trainer.checkpoint", "paddlelite_trainer.errors", "paddlelite_trainer.__version__")
            assert name.startswith(allowed), name
        elif at_module_level:
            top = name.split(".")[0]
            assert top == "numpy" or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_clients_use_public_names_only(path: Path) -> None:
    public = {
        f"paddlelite_trainer{part}"
        for part in ("", ".callback", ".callbacks", ".checkpoint", ".duration", ".errors", ".layers", ".optimizers")
    }
    imported = {name for name, _ in _imports(path) if name.startswith("paddlelite_trainer")}
    homes = {name for name in imported if name not in public and name.rpartition(".")[0] not in public}
    in_same_folder = {name for name in imported if name.startswith("paddlelite_trainer.callbacks.")}
    assert not homes - in_same_folder, homes
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("trainer", "module")
        ):
            assert not node.attr.startswith("_") or node.attr.startswith("__"), f"{path.name}:{node.lineno} {node.attr}"


@pytest.mark.parametrize("path", [*ENGINE, *CALLBACKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_are_reached_for_in_one_room(path: Path) -> None:
    if path.name != "paddle_internals.py":
        found = list(_private_reaches(ast.parse(path.read_text(encoding="utf-8"))))
        assert len(found) <= REACHES.get(str(path.relative_to(ROOT)), 0), found


def test_only_the_stub_of_a_bare_checkout_names_callbacks_without_the_package() -> None:
    for path in [*ENGINE, *CLIENTS, *sorted((ROOT / "tests").rglob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module != "callbacks", path
            if isinstance(node, ast.Import):
                assert "callbacks" not in [alias.name for alias in node.names], path


IMPORTS_MORE = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import paddle
stages, before = {{}}, set(sys.modules)
def stage(name):
    stages[name] = sorted(set(sys.modules) - before)
import paddlelite_trainer
stage("the package")
import conftest
for owner in (paddlelite_trainer, paddlelite_trainer.callbacks):
    for name in owner.__all__: getattr(owner, name)
stage("every public name")
import models
models.quiet_trainer(max_epochs=1, seed=1).fit(models.Classifier(), models.make_batches(2), models.make_batches(1))
stage("a fit without logger and bar")
print("FOUND", json.dumps(stages))
"""


def test_nothing_is_imported_before_it_is_used() -> None:
    """Loggers', plotting and remote libraries, rich: an import of the package pays for none, nor does a plain fit."""
    code = IMPORTS_MORE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("FOUND ")]
    stages = json.loads(line.removeprefix("FOUND "))
    ours = {"paddlelite_trainer", "filelock", "numpy", "paddle", "conftest", "models", "cython_runtime"}
    assert stages["the package"] == ["paddlelite_trainer"]
    for stage, modules in stages.items():
        tops = {name.split(".")[0] for name in modules}
        foreign = {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_cython")}
        assert foreign <= ours, f"{stage} imports {sorted(foreign - ours)}"


# -- what is public ----------------------------------------------------------------------------------------------------


def test_every_public_name_exists_and_is_documented() -> None:
    for owner in (paddlelite_trainer, callbacks):
        assert list(owner.__all__) == sorted(owner.__all__)
        for name in owner.__all__:
            value = getattr(owner, name)
            assert inspect.getdoc(value), f"{owner.__name__}.{name} has no docstring"
            if inspect.isclass(value):
                assert vars(value).get("__doc__"), f"{owner.__name__}.{name} only inherits a docstring"
                assert value.__module__.startswith(owner.__name__), value.__module__


def test_what_a_training_script_needs_is_public() -> None:
    assert {"Module", "Trainer", "Callback", "DataModule", "seed_everything"} <= set(paddlelite_trainer.__all__)
    assert {"ModelCheckpoint", "EarlyStopping", "LRMonitor", "ProgressBar", "ModelSummary"} <= set(callbacks.__all__)


def test_every_callback_in_the_folder_is_exported() -> None:
    written = {
        node.name
        for path in CALLBACKS
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    are_callbacks = {name for name in written if any(_is_callback(path, name) for path in CALLBACKS)}
    assert are_callbacks <= set(callbacks.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Trainr'"):
        paddlelite_trainer.Trainr  # noqa: B018


@pytest.mark.parametrize("cls", [Trainer, Module, Callback], ids=lambda cls: cls.__name__)
def test_trainer_module_and_callback_take_keywords_by_name(cls: type) -> None:
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or name in ("print", "log_dict", "load_from_checkpoint") or name not in vars(cls):
            continue
        kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{cls.__name__}.{name} hides its signature"


def test_trainer_takes_keywords_only() -> None:
    parameters = list(inspect.signature(Trainer).parameters.values())
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_exception_tree_is_drawn_as_it_is() -> None:
    drawing = (errors.__doc__ or "").splitlines()
    for name, error in vars(errors).items():
        if not (inspect.isclass(error) and issubclass(error, errors.TrainerError)):
            continue
        (line,) = [
            line
            for line in drawing
            if re.search(rf"\b{name}\b", line.split("  ")[0] if name == "TrainerError" else line)
        ][:1]
        builtin = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
        inherited = [base for base in builtin if base in line]
        assert inherited == builtin, f"errors.py's drawing lacks {name}'s {builtin}"


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_callback_has_every_hook_of_lightning_with_its_arguments() -> None:
    for name, arguments in LIGHTNING_HOOKS.items():
        expected = ["self", "trainer", "module", *arguments]
        assert list(inspect.signature(getattr(Callback, name)).parameters) == expected, name


def test_callback_has_two_hooks_beyond_lightning() -> None:
    assert CALLBACK_HOOKS - set(LIGHTNING_HOOKS) == {"on_save_point", "on_already_over"}


def test_every_hook_of_a_callback_is_a_hook_of_a_module() -> None:
    for name in CALLBACK_HOOKS - {"on_save_point"}:
        of_callback = list(inspect.signature(getattr(Callback, name)).parameters)
        of_module = list(inspect.signature(getattr(Module, name)).parameters)
        assert of_module == [argument for argument in of_callback if argument not in ("trainer", "module")], name


# -- what the documents say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*ENGINE, *CLIENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_in_its_first_line_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no docstring"
    assert docstring.splitlines()[0].endswith((".", "?")), docstring.splitlines()[0]


def test_the_readme_s_file_tree_is_what_the_files_say() -> None:
    assert readme_tree.written() == readme_tree.expected(), "run: python tests/readme_tree.py"


@pytest.mark.parametrize("heading", ["## Run it", "## Test it"])
def test_the_readme_has_one_command_line_under_each_heading(heading: str) -> None:
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```[^\n]*\n(.*?)^```$", _section(text, heading), re.MULTILINE | re.DOTALL)
        assert len(blocks) == 1 and len(blocks[0].splitlines()) == 1, f"{name}: {heading}"


def test_both_readmes_give_the_same_commands() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    for heading in ("## Run it", "## Test it"):
        first, second = (re.findall(r"^```sh\n(.*?)^```$", _section(text, heading), re.M | re.S) for text in texts)
        assert first == second


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (function,) = re.findall(r"^test_command\(\) \{.*?^\}$", script, re.MULTILINE | re.DOTALL)
    found = subprocess.run(
        ["bash", "-c", f"{function}\ntest_command"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert found.stdout.strip() in readme
    assert found.stdout.strip().endswith("-m pytest -n 2")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_claim_names_a_test_that_exists(path: Path) -> None:
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), f"{path.name} names {file}"
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{path.name} names {file}::{test}"


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    place = re.compile(r"(?<![\w.~-])/(?:work|root|home|opt/envs)/\w")
    for path in _text_files():
        found = place.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


# -- how long a batch's way is: Lightning takes 28 frames and more than 400 calls --------------------------------------


class Tiny(Module):
    """One linear layer, one metric."""

    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(4, 2)
        self.frames: list[int] = []
        self.calls_at: list[int] = []
        self.counter = LibraryCalls()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            self.frames.append(len(inspect.stack(context=0)))
        self.calls_at.append(self.counter.count)
        loss = self.net(batch[0]).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


class LibraryCalls:
    """Counts calls of Python functions that are written in the package or in callbacks/."""

    def __init__(self) -> None:
        self.count = 0
        self._folders = (str(ROOT / "paddlelite_trainer"), str(Path(callbacks.__file__).parent))
        self._folders += (str(Path(paddlelite_trainer.__file__).parent),)

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self._folders):
            self.count += 1

    def __enter__(self) -> LibraryCalls:
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


def _batches(count: int) -> list[tuple[paddle.Tensor]]:
    return [(paddle.ones([2, 4]),) for _ in range(count)]


def _loader(count: int) -> paddle.io.DataLoader:
    return paddle.io.DataLoader(paddle.io.TensorDataset([paddle.ones([2 * count, 4])]), batch_size=2, shuffle=True)


def _trainer(root: Path, **more: Any) -> Trainer:
    watching = [ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss"), ProgressBar()]
    return Trainer(max_epochs=1, default_root_dir=root, callbacks=watching, enable_model_summary=False, **more)


def test_training_step_is_at_most_four_frames_deep(tmp_path: Path) -> None:
    module, here = Tiny(), len(inspect.stack(context=0))
    _trainer(tmp_path).fit(module, _batches(3), _batches(1))
    below = here - 1  # a script would have only its own frame where pytest has many
    assert max(module.frames) - below <= 4


@pytest.mark.parametrize(("data", "most"), [(_batches, 18), (_loader, 26)], ids=["batches", "loader"])
def test_a_batch_makes_few_library_calls(tmp_path: Path, data: Any, most: int) -> None:
    module = Tiny()
    with module.counter:
        _trainer(tmp_path).fit(module, data(80), _batches(1))
    per_batch = [after - before for before, after in zip(module.calls_at, module.calls_at[1:])]
    assert statistics.median(per_batch) <= most, per_batch
    assert statistics.median(per_batch[-20:]) <= statistics.median(per_batch[:20]), "grows from batch to batch"


def test_what_nobody_overrides_is_not_called(tmp_path: Path) -> None:
    """Ten callbacks without hooks of a batch add no call to a batch."""

    def calls(*more: Callback) -> float:
        module = Tiny()
        trainer = Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[*more]
        )
        with module.counter:
            trainer.fit(module, _batches(20))
        return statistics.median(after - before for before, after in zip(module.calls_at, module.calls_at[1:]))

    class Idle(Callback):
        def on_fit_end(self, trainer: Trainer, module: Module) -> None:
            pass

    assert calls() == calls(*(Idle() for _ in range(10)))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _private_reaches(tree: ast.AST) -> Iterator[str]:
    """`x._y`, and getattr, setattr or hasattr(x, "_y"), where x is not self, cls or super()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and _is_private(name) and name != "_fields":  # how a namedtuple is told
                yield f"line {node.lineno}: {ast.unparse(node)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_own(node: ast.AST) -> bool:
    is_super = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module name, whether it is imported with the file) of every import, but those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = _package_of(path)
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                is_module = node.module is None
                yield (f"{home}.{alias.name}" if is_module else home), id(node) not in inside


def _package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(("paddlelite_trainer", "callbacks") if parts[0] == "callbacks" else parts)


def _is_callback(path: Path, name: str) -> bool:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return any(isinstance(base, ast.Name) and base.id == "Callback" for base in node.bases)
    return False


def _section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def _text_files() -> Iterator[Path]:
    for pattern in ("*.md", "*.cfg", "*.toml", "*.py", ".ci/*", "docs/**/*.md"):
        yield from (path for path in ROOT.glob(pattern) if path.is_file())
    for folder in ("paddlelite_trainer", "callbacks", "examples", "tests", "benchmarks"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pyi", ".cc", ".md"))
