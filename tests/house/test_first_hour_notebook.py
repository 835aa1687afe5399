"""examples/first_hour.ipynb in a real kernel: it runs, and a cell that was stopped goes on, bit by bit."""

from __future__ import annotations

import ast
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

NEEDED = "needs nbclient, ipykernel and ipywidgets, as the test extra installs"
ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/first_hour.ipynb"
FIND_THE_PACKAGE = "import os, sys, time; from pathlib import Path; sys.path.insert(0, {root!r}); import conftest"
# From its second epoch on a step waits for the button to be pressed.
SLOW = """
taught = Circle.training_step
def waits(self, batch, batch_idx):
    if self.current_epoch == 1 and not trainer.should_stop:
        Path({flag!r}).touch()
        time.sleep(0.1)
    return taught(self, batch, batch_idx)
Circle.training_step = waits
"""
TELL = "print(trainer.interrupted, trainer.current_epoch, trainer.global_step)"
FAST = "Circle.training_step = taught"


def code_cells() -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_it_does_what_the_page_of_that_name_does() -> None:
    page = (ROOT / "docs/first-hour.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    def statements(sources: list[str]) -> list[str]:
        body = ast.parse("\n".join(sources)).body
        return [ast.dump(statement) for statement in body if not isinstance(statement, ast.Assert)]

    assert statements(code_cells()) == statements(blocks)


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert [cell["execution_count"] for cell in cells] == [None] * len(cells)


def test_a_stopped_cell_run_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    model, data, train, more, use = code_cells()
    enter = "os.makedirs({0!r}); os.chdir({0!r})"
    said = _run(
        {
            "setup": FIND_THE_PACKAGE.format(root=str(ROOT)),
            "enter": enter.format(str(whole)),
            "model": model,
            "data": data,
            "train": train,
            "more": more,
            "use": use,
            "ended": TELL,
            "enter again": enter.format(str(stopped)),
            "model again": model,
            "data again": data,
            "slow": SLOW.format(flag=str(tmp_path / "flag")),
            "train until stopped": train,
            "told": TELL,
            "fast": FAST,
            "train on": train,
            "told at the end": TELL,
            "more again": more,
            "use again": use,
        },
        press_stop_at=tmp_path / "flag",
    )
    assert said["ended"] == "False 6 192\n"
    interrupted, epoch, step = said["told"].split()
    assert (interrupted, epoch) == ("True", "1") and 32 < int(step) < 64
    assert said["told at the end"] == "False 3 96\n"
    assert _bits(whole) == _bits(stopped)


def _bits(root: Path) -> dict[str, Any]:
    """{file of the latest checkpoint: sha256} of all that training goes on from, and what was logged."""
    run = root / "runs/version_0"
    files = json.loads((run / "latest/manifest.json").read_text())["files"]
    found: dict[str, Any] = {name: entry["sha256"] for name, entry in files.items() if name != "trainer.json"}
    # Of a metric that is told by steps alone it also holds what a bar that redraws by the clock has read.
    name = "rng-rank00000.json"
    found[name] = json.loads((run / "latest" / name).read_text())
    assert found[name].pop("metrics")
    found["metrics.csv"] = (run / "metrics.csv").read_text()
    return found


def _run(sources: dict[str, str], press_stop_at: Path) -> dict[str, str]:
    """What each cell printed, in one kernel; an error in any of them fails."""
    nbclient = pytest.importorskip("nbclient", reason=NEEDED)
    pytest.importorskip("ipykernel", reason=NEEDED)
    pytest.importorskip("ipywidgets", reason=NEEDED)
    import nbformat
    from jupyter_client.manager import KernelManager

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources.values()])
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_manager_class=KernelManager)

    def press_stop() -> None:
        deadline = time.monotonic() + 240
        while not press_stop_at.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        client.km.interrupt_kernel()

    threading.Thread(target=press_stop, daemon=True).start()
    client.execute()
    return {name: _text(cell.outputs) for name, cell in zip(sources, notebook.cells)}


def _text(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
