"""The fenced blocks and the words of code of every document, as a reader meets them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```([\w-]*)[^\n`]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: of which document, in which language ("" where none is named), and what stands in it."""

    document: Path
    language: str
    code: str
    line: int
    before: str

    @property
    def first_line(self) -> str:
        """The line by which lists of blocks name this one."""
        return next((line for line in self.code.splitlines() if line.strip()), "")

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """Every document of the repository that people read, the Chinese ones too."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted([*found, *(ROOT / "benchmarks").glob("*.md")])


def pages() -> list[Path]:
    """The English pages of the site that have blocks of their own."""
    return [path for path in sorted(DOCS.glob("*.md")) if blocks_of(path)]


def blocks_of(document: Path) -> list[Block]:
    """The blocks of the document, in its order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document=document,
            language=found[2],
            code=textwrap.dedent(found[3]),
            line=text.count("\n", 0, found.start()) + 1,
            before=text[: found.start()].rstrip().rsplit("\n", 1)[-1],
        )
        for found in FENCE.finditer(text)
    ]


def words_of_code(document: Path) -> Iterator[str]:
    """What stands `between backticks` outside of blocks, lines joined."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    yield from (re.sub(r"\s*\n\s*", " ", found) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
