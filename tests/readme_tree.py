"""Writes docs/files.md's tree from the files' own docstrings, and README.md's line of it; run it when a file is new.

python tests/readme_tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
START, END = "<!-- tree: python tests/readme_tree.py -->\n", "<!-- end of tree -->\n"
WIDTH = 38

# What has no docstring of its own.
FOLDERS = {
    "paddlelite_trainer": "the engine: it never imports callbacks/, except in defaults.py",
    "paddlelite_trainer/fit": "one fit: its parts, the loop, and what comes before and after it",
    "paddlelite_trainer/data": "from a user's loader to the batch that a step is given",
    "paddlelite_trainer/run": "where a run lives, who may write there, which checkpoint a ckpt_path means",
    "paddlelite_trainer/reporting": "what people see of a run: metrics, logs, tables, where the time went",
    "paddlelite_trainer/reporting/loggers": "where metrics go: files that a resumed run goes on with",
    "paddlelite_trainer/machine": "Paddle and the machine below it: devices, precision, random numbers, signals, ranks",
    "paddlelite_trainer/checkpoint": "what a checkpoint holds and how it reaches the disk",
    "paddlelite_trainer/checkpoint/remote": "checkpoints at a remote, an object store or whatever fsspec reaches",
    "paddlelite_trainer/export": "a module as files for other programs, tried in another process and compared",
    "paddlelite_trainer/cli": "the command line, without Paddle",
    "paddlelite_trainer/cli/report": "`paddlelite report`: what runs hold, as a page of curves and tables",
    "callbacks": "clients of the engine; imported as paddlelite_trainer.callbacks",
    "examples": "each runs in about a minute on a CPU, on real data",
    "benchmarks": "side by side with the hand-written loop and with other trainers",
}
OTHERS = {
    "tests/": "mirror the tree; test_architecture.py holds the walls",
    "docs/": "the site's pages, in English and Chinese; mkdocs.yml lists them",
    ".ci/run": "what a change must pass; .ci/matrix runs the tests on every supported Paddle",
    "conftest.py": "lets a bare checkout import the package",
    "setup.py": "makes an editable install a path, which type checkers follow",
    "setup.cfg": "metadata, extras, the mapping of callbacks/, settings of pytest and mypy",
    "pyproject.toml": "the build system, and ruff",
}


def expected() -> dict[Path, str]:
    """What each document should say between the marks: the whole tree, and where it stands."""
    lines, count = [], 0
    for folder, phrase in FOLDERS.items():
        files = sorted((ROOT / folder).glob("*.py"))
        if not files:
            continue
        depth = folder.count("/")
        said = [(path.name, sentence) for path in files if (sentence := _says(path))]
        lines.append(_line(f"{'  ' * depth}{Path(folder).name}/", phrase))
        lines += [_line(f"{'  ' * (depth + 1)}{name}", sentence) for name, sentence in said]
        count += len(said)
    lines += [_line(name, phrase) for name, phrase in OTHERS.items() if (ROOT / name).exists()]
    return {
        ROOT / "docs/files.md": f"```output\n{''.join(lines)}```\n",
        ROOT / "README.md": f"What each of the {count} files is, in a sentence: [docs/files.md](docs/files.md).\n",
    }


def written() -> dict[Path, str]:
    """What stands there."""
    return {path: path.read_text(encoding="utf-8").split(START)[1].split(END)[0] for path in expected()}


def _line(name: str, phrase: str) -> str:
    return f"{name:<{WIDTH}}{phrase}\n"


def _says(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop; for an __init__.py its folder speaks."""
    if path.name == "__init__.py":
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "has no docstring."
    return re.split(r"(?<=[.?!])\s", docstring)[0].removesuffix(".")


if __name__ == "__main__":
    for document, text in expected().items():
        before, rest = document.read_text(encoding="utf-8").split(START)
        document.write_text(before + START + text + END + rest.split(END)[1], encoding="utf-8")
