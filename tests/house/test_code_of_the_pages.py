"""The code in the documents runs as it stands, block after block, in an empty directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RUNNABLE = (
    "custom-callback",
    "data",
    "debugging",
    "first-hour",
    "frozen-parts",
    "metrics",
    "own-loop",
    "porting-from-a-loop",
    "porting-from-keras",
    "several-runs",
    "what-survives",
)
RUN_THEM = """
import os, pathlib, re, sys, tempfile
for page in sys.argv[1:]:
    text = pathlib.Path(page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks, page
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names = {"__name__": "__main__"}
        for block in blocks:
            exec(compile(block, page, "exec"), names)
        os.chdir("/")
    print("ran", page)
"""


def test_the_code_of_the_pages_runs() -> None:
    pages = [str(DOCS / f"{name}.md") for name in RUNNABLE]
    command = [sys.executable, "-W", "ignore", "-c", RUN_THEM, *pages]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert re.findall(r"^ran .*/(.*)\.md$", ended.stdout, re.MULTILINE) == list(RUNNABLE)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_page_is_in_the_site_s_table_of_contents(name: str) -> None:
    assert f"{name}.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
