"""The house's walls: who imports whom, what is public, what the documents say of the files."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme_tree
from house import walls

import paddlelite_trainer
from paddlelite_trainer import Callback, Module, Trainer, callbacks, errors
from paddlelite_trainer.callback import HOOKS as CALLBACK_HOOKS

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "paddlelite_trainer").rglob("*.py"))
CALLBACKS = sorted((ROOT / "callbacks").rglob("*.py"))
CLIENTS = [*CALLBACKS, *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
SOURCES = walls.sources()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

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


# -- the walls with a number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", walls.WALLS)
def test_a_wall_holds(number: str) -> None:
    most, _ = walls.RATCHET[number]
    count = walls.WALLS[number].count(SOURCES)
    broken = "\n".join(walls.listed(number, SOURCES))
    assert count <= most, f"{walls.WALLS[number].what}: {count}, at most {most}\n{broken}"


@pytest.mark.parametrize("number", walls.WALLS)
def test_a_wall_s_limit_lies_above_its_final_one_and_not_below_it(number: str) -> None:
    today, final = walls.RATCHET[number]
    assert today >= final


# -- who imports whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_callbacks_only_in_defaults(path: Path) -> None:
    imported = {name for name, _ in _imports(path) if "callbacks" in name.split(".")}
    # __init__.py only passes `paddlelite_trainer.callbacks` on to type checkers and to those who ask for it; the doctor
    # is a client, as examples are.
    assert not imported or path.name in ("defaults.py", "__init__.py") or path.parent.name == "doctor", imported


@pytest.mark.parametrize(
    "path", sorted((ROOT / "paddlelite_trainer/checkpoint").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
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
        for part in (
            "",
            ".callback",
            ".callbacks",
            ".checkpoint",
            ".duration",
            ".errors",
            ".gradients",
            ".layers",
            ".optimizers",
        )
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
        parameters = inspect.signature(method).parameters.values()
        # What nothing can be given to only refuses, with the name that was meant.
        kinds = [parameter.kind for parameter in parameters if parameter.annotation != "NoReturn"]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{cls.__name__}.{name} hides its signature"


def test_every_argument_of_trainer_is_explained() -> None:
    explained = re.findall(r"^ {4}(\w+): ", inspect.getdoc(Trainer.__init__) or "", re.MULTILINE)
    assert explained == [
        name for name in inspect.signature(Trainer.__init__).parameters if name not in ("self", "unknown")
    ]


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


def test_callback_has_three_hooks_beyond_lightning() -> None:
    assert CALLBACK_HOOKS - set(LIGHTNING_HOOKS) == {"on_save_point", "on_already_over", "on_train_epoch_resume"}


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


def test_the_tree_of_files_is_what_the_files_say() -> None:
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


# -- helpers -----------------------------------------------------------------------------------------------------------


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
