"""The site has a page for every public name, and every page of docs/ in its table of contents."""

from __future__ import annotations

import re
from pathlib import Path

import paddlelite_trainer
from paddlelite_trainer import callbacks, errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _in_the_reference() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")]
    return {name.rsplit(".", 1)[1] for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def test_every_public_name_is_in_the_reference() -> None:
    public = {*paddlelite_trainer.__all__, *callbacks.__all__} - {"callbacks"}
    public |= {name for name in vars(errors) if name.endswith("Error")}
    assert public <= _in_the_reference(), sorted(public - _in_the_reference())


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_a_page_in_chinese_has_the_headings_and_the_code_of_the_english_one() -> None:
    for page in (DOCS / "zh").glob("*.md"):
        chinese, english = (path.read_text(encoding="utf-8") for path in (page, DOCS / page.name))
        for pattern in (r"^(#+) ", r"^```\w*\n.*?^```$"):
            found, wanted = (
                [re.sub(r" +# .*", "", one) if one.startswith("```sh") else one for one in ones]
                for ones in (re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (chinese, english))
            )
            assert found == wanted, f"{page.name}: {pattern}"


def test_a_table_in_chinese_has_the_rows_of_the_english_one_with_the_same_code_in_them() -> None:
    for page in (DOCS / "zh").glob("*.md"):
        chinese, english = (_code_of_rows(path) for path in (page, DOCS / page.name))
        for found, wanted in zip(chinese, english, strict=False):
            assert sorted(found) == sorted(wanted), f"{page.name}: {found}, in English {wanted}"
        assert len(chinese) == len(english), page.name


def _code_of_rows(page: Path) -> list[list[str]]:
    """The `code` in each row of the page's tables."""
    rows = re.findall(r"^\|.*", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.findall(r"`[^`]+`", row) for row in rows]


def test_a_page_links_to_nothing_outside_the_site() -> None:
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            assert "://" in target or found.is_relative_to(DOCS.resolve()), f"{page.name}: {target}; name it as `code`"
