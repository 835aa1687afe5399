"""Every block of code in the documents runs in an empty directory, or is checked in a way that is written down here.

A page's Python runs block after block in one namespace, its command lines in one directory; what a page takes for
granted is in page_context.py. A block that is neither run nor listed fails `test_every_block_is_run_or_listed`.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest
import yaml
from house.documents import DOCS, ROOT, Block, blocks_of, documents, pages, words_of_code
from house.page_context import CONTEXTS, Context
from house.shell_lines import commands_of, fault_of, parser_of_ours, subparsers_of

import paddlelite_trainer
from paddlelite_trainer import Callback, DataModule, Module, Trainer, Tuner, callbacks, checkpoint
from paddlelite_trainer.cli import main

PADDLE_3 = int(paddle.__version__.split(".")[0]) >= 3
SHELL = ("sh", "bash", "console")
# Pages all of whose blocks another test has: how many they are, and which.
OF_ANOTHER_TEST = {
    "README.md": (3, "tests/house/test_examples.py"),
    "README.zh-CN.md": (3, "tests/house/test_examples.py"),
    "docs/configuration-files.md": (5, "tests/configuration/test_configuration_files.py"),
    "docs/errors.md": (14, "tests/house/error_page.py"),
    "docs/files.md": (1, "tests/readme_tree.py"),
}
# Blocks by the first line, and why they cannot run here; what is still checked of them is in `test_a_listed_block`.
CANNOT_RUN = {
    'model = keras.Sequential([keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)])': "Keras; compiled",
    "#SBATCH --signal=TERM@60 --requeue": "Slurm; parsed, and so are the commands in it",
    "Global:": "PaddleOCR's configuration, which nothing here reads; parsed, and its keys are those of the table below",
}
# Command lines that are parsed and not run.
ONLY_PARSED = {
    "paddlelite report runs --watch": "serves until Ctrl-C",
    "pip install": "installs; the extra is looked up",
    "paddlelite export runs/version_0/last model.onnx": "a network of somebody's",
}
# What our programs print: compared with what the page has printed so far, numbers apart.
PRINTED = (
    "Exported out/model.json (3.1 kB), out/model.pdiparams (880 B)",
    "epoch 1/1  step 1/2  lr 0.1  loss 2.303  ips 812/s  wait 4 %  eta 0:01",
)
# Drawings and messages, each with a test of its own below.
DRAWN = {
    "callbacks/  examples/  benchmarks/    clients: use only what `paddlelite_trainer` exports": "rooms",
    "<run_dir>/": "files of a run",
    "for each batch of an accumulation window:  training_step -> on_before_backward -> backward -> on_after_backward": (
        "order of hooks"
    ),
    "Net cannot be exported. train.py:41, in pooled:": "a refusal of export",
    "Rank 1 on node7 failed first: ValueError: a cosmic ray": "a failed rank",
    "Rank 1 was here:": "a rank that hangs",
    "paddlelite fit --config run.yaml [--KEY VALUE ...]   train, or go on; validate, test and predict too": "usage",
    "paddlelite ckpt ls [PATH]                       the checkpoints of a run, of many, or at a URL": "usage",
}


def _listed(block: Block) -> bool:
    name = block.document.relative_to(ROOT).as_posix()
    known = {*CANNOT_RUN, *PRINTED, *DRAWN}
    return name in OF_ANOTHER_TEST or block.first_line in known


def _is_run(block: Block) -> bool:
    return block.document.parent == DOCS and block.language in ("python", *SHELL) and not _listed(block)


# -- every block is one or the other -----------------------------------------------------------------------------------
def test_every_block_is_run_or_listed() -> None:
    for document in documents():
        for block in blocks_of(document):
            chinese = block.document.parent.name == "zh"  # its blocks are the English page's: test_site.py
            of_a_shell = block.language in SHELL  # test_a_command_line_is_one_that_there_is
            assert chinese or of_a_shell or _is_run(block) or _listed(block), (
                f"{block}: neither run nor listed. Pages of docs/ run their blocks of `python`; what cannot run, and "
                "what programs print, is listed at the head of this file."
            )


def test_nothing_is_listed_that_is_not_there() -> None:
    there = {block.first_line for document in documents() for block in blocks_of(document)}
    for first_line in (*CANNOT_RUN, *PRINTED, *DRAWN):
        assert first_line in there, f"no block begins with: {first_line}"
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents())
    assert all(line in text for line in ONLY_PARSED)
    assert set(CONTEXTS) <= {page.stem for page in pages()}


@pytest.mark.parametrize("name", OF_ANOTHER_TEST)
def test_another_test_has_the_blocks_of_a_page(name: str) -> None:
    count, test = OF_ANOTHER_TEST[name]
    assert len(blocks_of(ROOT / name)) == count, f"{name}: is each block in {test}?"
    assert Path(name).stem in (ROOT / test).read_text(encoding="utf-8")


# -- blocks that run ---------------------------------------------------------------------------------------------------
def _runnable_pages() -> list[str]:
    return [page.stem for page in pages() if any(map(_is_run, blocks_of(page)))]


@pytest.mark.parametrize("page", _runnable_pages())
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    context = CONTEXTS.get(page, Context())
    names = {"__name__": "__main__", **context.before()}
    capfd.readouterr()
    printed = ""
    for block in blocks_of(DOCS / f"{page}.md"):
        code = block.code
        for word, other in context.put_in_place.items():
            code = code.replace(word, other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if block.first_line in PRINTED:
                if PADDLE_3 or page != "export":  # Paddle 2.6 writes files of other names
                    _same_words(code, printed, block)
            elif _is_run(block) and block.language == "python":
                _run_python(code, block, names)
            elif _is_run(block):
                _run_shell(code, block, capfd)
        printed += capfd.readouterr().out
    context.after(names)


def _run_python(code: str, block: Block, names: dict[str, Any]) -> None:
    script = Path(f"{block.document.stem}_line_{block.line}.py").resolve()  # paddle.jit reads the source of forward
    script.write_text(code, encoding="utf-8")
    exec(compile(code, str(script), "exec"), names)


def _run_shell(code: str, block: Block, capfd: pytest.CaptureFixture[str]) -> None:
    """Each command of ours in this process; lines below a `$ command` are what it prints."""
    lines = code.splitlines()
    if block.language == "console":
        for command, shown in _sessions(lines):
            capfd.readouterr()
            _run_line(command, block)
            _same_words(shown, capfd.readouterr().out, block)
        return
    for line in lines:
        _run_line(line, block)


def _sessions(lines: list[str]) -> Iterator[tuple[str, str]]:
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts and starts[0] == 0, "a console block begins with `$ command`"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start][2:], "\n".join(lines[start + 1 : end])


def _run_line(line: str, block: Block) -> None:
    if any(line.startswith(known) for known in ONLY_PARSED):
        return
    words = next(commands_of(line))  # what follows a pipe is not ours
    told = re.search(r"# exit code (\d)", line)
    assert words[0] == "paddlelite", f"{block}: {line}"
    assert main(words[1:]) == (int(told[1]) if told else 0), f"{block}: {line}"


def _same_words(shown: str, printed: str, block: Block) -> None:
    """Every line shown was printed, in this order; numbers, sizes and ages may be others."""
    was = iter([_masked(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        assert _masked(line) in was, f"{block}: {line!r} was not printed. What was:\n{printed}"


def _masked(line: str) -> str:
    line = re.sub(r"\d+(?:\.\d+)?(?:e-?\d+)?", "0", line)
    line = re.sub(r"\b0 (?:k?B|MB)\b", "0 B", line)
    return " ".join(re.sub(r"\b0 (?:s|min|h|d)\b", "0 s", line).split())


# -- command lines -----------------------------------------------------------------------------------------------------
def _command_lines() -> list[tuple[str, str]]:
    """Each line of a shell in the documents: where, and what it says; lines that go on by a backslash are one."""
    found = []
    for document in documents():
        for block in blocks_of(document):
            if block.language in SHELL:
                lines = block.code.replace("\\\n", " ").splitlines()
                lines = [line[2:] for line in lines if line.startswith("$ ")] if block.language == "console" else lines
                found += [(str(block), line) for line in lines]
        found += [(document.name, words) for words in words_of_code(document) if words.startswith("paddlelite ckpt ")]
    return found


def test_a_command_line_is_one_that_there_is() -> None:
    for place, line in _command_lines():
        for words in commands_of(re.sub(r"[<>]", "", line)):
            told = _fault_of_shown(words) if place.endswith(".md") else fault_of(words)
            assert told is None, f"{place}: {line}: {told}"


def _fault_of_shown(words: list[str]) -> str | None:
    """A command that a sentence names, perhaps without its arguments: it is there, and so are its options."""
    parser, rest = _named_parser(words)
    if parser is None:
        return f"there is no {' '.join(words[:3])}"
    unknown = [word for word in rest if word.startswith("--") and word not in parser._option_string_actions]
    return f"it has no {unknown[0]}" if unknown else None


def _named_parser(words: list[str]) -> tuple[Any, list[str]]:
    """The parser of `paddlelite ckpt tag ...`, and the words after its name."""
    parser, rest = parser_of_ours(), words[1:]
    while rest and (below := subparsers_of(parser)):
        if rest[0] not in below:
            return (parser, rest) if rest[0].startswith("-") else (None, rest)
        parser, rest = below[rest[0]], rest[1:]
    return parser, rest


def test_the_usage_of_the_commands_is_that_of_the_parser() -> None:
    usage = [block for block in blocks_of(DOCS / "command-line.md") if DRAWN.get(block.first_line) == "usage"]
    lines = [line for block in usage for line in block.code.splitlines()]
    named = set()
    for line in lines:
        parser, _ = _named_parser(re.findall(r"^[a-z ]+", line)[0].split())
        named.add(parser.prog)
        for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.split(r"   +", line)[0]):
            known = parser._option_string_actions
            assert option in known or parser.prog.endswith((" fit", " predict")), f"{line}: there is no {option}"
    ours = parser_of_ours()
    ckpt = subparsers_of(subparsers_of(ours)["ckpt"])
    there = {parser.prog for parser in ckpt.values()} | {f"paddlelite {name}" for name in subparsers_of(ours)}
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert there - named == {f"paddlelite {name}" for name in ("ckpt", "validate", "test", "predict", "doctor")}
    assert "validate, test and predict too" in text and "`paddlelite doctor`" in text


# -- words of code in the text -----------------------------------------------------------------------------------------
# Calls of others' classes that are called as ours are.
OF_OTHERS = {"ModelCheckpoint(save_best_only=True)": "Keras", "fit(epochs=, batch_size=, validation_data=)": "Keras"}
OWNERS = {"trainer": Trainer, "Trainer": Trainer, "self": Module, "module": Module, "Module": Module, "tuner": Tuner}
OWNERS |= {"Tuner": Tuner, "DataModule": DataModule, "Callback": Callback}


def _called(function: ast.expr) -> Any:
    """What a call in a sentence calls, where it is public and ours; None else."""
    if isinstance(function, ast.Name):
        if function.id in ("fit", "validate", "test", "predict", "export", "save_checkpoint"):
            return getattr(Trainer, function.id)
        places = (paddlelite_trainer, callbacks, checkpoint)
        return next((getattr(place, function.id) for place in places if function.id in place.__all__), None)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        owner = OWNERS.get(function.value.id)
        known = owner is None or hasattr(owner, function.attr) or function.value.id in ("self", "module")
        assert known, f"{function.value.id} has no {function.attr}"
        return getattr(owner, function.attr, None)
    return None


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_call_named_in_a_sentence_has_the_arguments_named(document: Path) -> None:
    for words in words_of_code(document):
        if words in OF_OTHERS:
            continue
        whole = re.sub(r"=(?=[,)])", "=...", words).replace(", ...)", ")").replace("(..., ", "(")
        try:
            calls = [one for one in ast.walk(ast.parse(whole, mode="eval")) if isinstance(one, ast.Call)]
        except SyntaxError:
            continue
        for call in calls:
            called = _called(call.func)
            if callable(called) and not inspect.isbuiltin(called):
                known = inspect.signature(called).parameters
                any_more = any(one.kind is one.VAR_KEYWORD and one.name != "unknown" for one in known.values())
                for given in call.keywords:
                    assert any_more or given.arg in known, f"{words}: no argument {given.arg}"


# -- blocks that are listed --------------------------------------------------------------------------------------------
def _block(first_line: str) -> Block:
    return next(one for document in documents() for one in blocks_of(document) if one.first_line == first_line)


@pytest.mark.parametrize("first_line", CANNOT_RUN)
def test_what_cannot_run_can_be_read(first_line: str) -> None:
    block = _block(first_line)
    if block.language == "py":
        compile(block.code, str(block), "exec")
    elif block.language == "yaml":
        table = block.document.read_text(encoding="utf-8").split("## Keys", 1)[1]
        for group, settings in yaml.safe_load(block.code).items():
            for key in settings:
                if key != "name":
                    assert f"`{group}.{key}" in table or f"`{group}.*`" in table, f"{block}: {group}.{key}"
    else:
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)


def test_the_drawing_of_the_rooms_names_all_that_is_in_the_package() -> None:
    block = next(block for block in blocks_of(DOCS / "architecture.md") if DRAWN.get(block.first_line) == "rooms")
    named = set(re.findall(r"[a-z_]+\.py|[a-z_]+/", block.code))
    package = ROOT / "paddlelite_trainer"
    for path in package.iterdir():
        name = path.name if path.suffix == ".py" else f"{path.name}/"
        ignored = name.startswith("_") or path.suffix not in ("", ".py") or name == "py.typed/"
        assert ignored or name in named, f"{block} does not name {name}"
    for name in named - {"callbacks/", "examples/", "benchmarks/", "paddlelite_trainer/"}:
        assert (package / name).exists() or list(package.glob(f"*/{name}")), f"{block}: {name} is not there"


class Ordered(Callback):
    """Notes the hooks of one step in the order in which they come."""

    def __init__(self) -> None:
        self.calls: list[str] = []


def _noting(name: str) -> Any:
    return lambda self, *arguments: self.calls.append(name)


ORDER = [
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
]
for _name in (*ORDER, "on_validation_start"):
    setattr(Ordered, _name, _noting(_name))


def test_the_order_of_a_step_is_that_of_the_page() -> None:
    block = next(one for one in blocks_of(DOCS / "optimization.md") if DRAWN.get(one.first_line) == "order of hooks")
    text = (DOCS / "optimization.md").read_text(encoding="utf-8")
    drawn = re.findall("|".join([*ORDER, "training_step", r"\bclip\b", "optimizer.step", "validation"]), block.code)
    noted = Ordered()

    class Notes(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = paddle.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            noted.calls.append("training_step")
            return self.net(batch).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            noted.calls.append("validation")

        def configure_gradient_clipping(self, *arguments: Any, **more: Any) -> None:
            noted.calls.append("clip")

        def configure_optimizers(self) -> Any:
            optimizer = paddle.optimizer.SGD(0.1, parameters=self.parameters())
            step = optimizer.step
            optimizer.step = lambda: (noted.calls.append("optimizer.step"), step())[1]
            return optimizer

    batches = [paddle.ones([2, 2])]
    trainer = Trainer(
        max_epochs=1,
        callbacks=noted,
        logger=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        val_check_interval=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Notes(), batches, batches)
    assert [call for call in noted.calls if call != "on_validation_start"] == drawn
    assert "schedulers of interval" in text


def test_the_files_of_a_run_are_those_of_the_drawing(tmp_path: Path) -> None:
    block = next(one for one in blocks_of(DOCS / "architecture.md") if DRAWN.get(one.first_line) == "files of a run")
    names = CONTEXTS["logging"].before()
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=callbacks.ModelCheckpoint(monitor="val_loss"))
    trainer.fit(names["module"], names["train_loader"], names["val_loader"])
    found = {path.name for path in trainer.run_dir.rglob("*")}
    for name in re.findall(r"[\w-]+\.(?:jsonl?|log|pdparams|pdopt)|\.lock", block.code):
        alone = name.startswith(("optimizer-part", "ema", "pins-"))  # of sharded runs, averages, many
        assert alone or name in found, f"{block}: {name} is not in {sorted(found)}"


def test_what_ranks_say_as_they_fail_is_in_the_source() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "paddlelite_trainer").rglob("*.py"))
    shown = " ".join(one.code for one in blocks_of(DOCS / "many-devices.md"))
    for words in ("failed first: ", "its log: ", " was here:", "has not come to ", "and the others wait for it there"):
        assert words in " ".join(shown.split()) and words in source, words


@pytest.mark.skipif(not PADDLE_3, reason="the words are those of Paddle 3")
def test_what_cannot_be_exported_is_told_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(one for one in blocks_of(DOCS / "export.md") if DRAWN.get(one.first_line) == "a refusal of export")
    program = """
import paddle
from paddlelite_trainer import Module

class Net(Module):
    def forward(self, x):
        return self.pooled(x)

    def pooled(self, x):
        rows = x.tolist()
        return paddle.to_tensor(rows)
"""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(program, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "train"}
    exec(compile(program, str(Path("train.py").resolve()), "exec"), names)
    with pytest.raises(paddlelite_trainer.errors.ExportError) as raised:
        Trainer(max_epochs=1).export("out/net", model=names["Net"](), batch=paddle.ones([2, 2]), checkpoint=None)
    said = _masked(str(raised.value))
    for line in block.code.splitlines():
        assert _masked(line) in said, f"{block}: {line!r} is not in {said}"
