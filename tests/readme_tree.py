"""Writes the file tree in README.md from the files' own docstrings; run it when a file is added or says something new.

python tests/readme_tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
START, END = "<!-- tree: python tests/readme_tree.py -->\n```\n", "```\n<!-- end of tree -->\n"
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
    "docs/": "architecture, design, reliability, Paddle's own behaviour, coming from Lightning",
    ".ci/run": "what a change must pass; .ci/matrix runs the tests on every supported Paddle",
    "conftest.py": "lets a bare checkout import the package",
    "setup.py": "makes an editable install a path, which type checkers follow",
    "setup.cfg": "metadata, extras, the mapping of callbacks/, settings of pytest and mypy",
    "pyproject.toml": "the build system, and ruff",
}


def expected() -> str:
    """The tree as it should stand in the README."""
    lines = []
    for folder, phrase in FOLDERS.items():
        files = sorted((ROOT / folder).glob("*.py"))
        if not files:
            continue
        depth = folder.count("/")
        lines.append(_line(f"{'  ' * depth}{Path(folder).name}/", phrase))
        lines += [_line(f"{'  ' * (depth + 1)}{path.name}", said) for path in files if (said := _says(path))]
    lines += [_line(name, phrase) for name, phrase in OTHERS.items() if (ROOT / name).exists()]
    return "".join(lines)


def written() -> str:
    """The tree as it stands there."""
    return README.read_text(encoding="utf-8").split(START)[1].split(END)[0]


def _line(name: str, phrase: str) -> str:
    return f"{name:<{WIDTH}}{phrase}\n"


def _says(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop; for an __init__.py its folder speaks."""
    if path.name == "__init__.py":
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "has no docstring."
    return re.split(r"(?<=[.?!])\s", docstring)[0].removesuffix(".")


if __name__ == "__main__":
    before, rest = README.read_text(encoding="utf-8").split(START)
    README.write_text(before + START + expected() + END + rest.split(END)[1], encoding="utf-8")
