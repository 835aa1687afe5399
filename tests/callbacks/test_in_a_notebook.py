"""ProgressBar in a real notebook: prints while it is up, the stop button, an error and its repair, what is saved."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

NEEDED = "needs nbclient, ipykernel and ipywidgets, as the test extra installs"
nbclient = pytest.importorskip("nbclient", reason=NEEDED)
pytest.importorskip("ipykernel", reason=NEEDED)
pytest.importorskip("ipywidgets", reason=NEEDED)

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import sys, time; sys.path[:0] = [{root!r}, {tests!r}]
import conftest
from pathlib import Path
from models import Classifier, make_batches
from paddlelite_trainer import Trainer
"""
LOUD = """
class Net(Classifier):
    def training_step(self, batch, batch_idx):
        print("a printed line\\nand a second one")
        print("half a line", end="")
        if self.current_epoch == 2 and not trainer.should_stop:
            Path({flag!r}).touch()
            time.sleep(0.1)
        return super().training_step(batch, batch_idx)
trainer = Trainer(max_epochs=4, default_root_dir={root!r}, run_name="one", logger=False)
"""
FIT = "trainer.fit(Net(), make_batches(4), make_batches(2), ckpt_path='last')"
REDEFINED = """
class Net(Classifier):
    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise ValueError("mine")
        return super().training_step(batch, batch_idx)
trainer = Trainer(max_epochs=3, default_root_dir={root!r}, run_name="two", logger=False)
"""
REPAIRED = "Net.training_step = Classifier.training_step"
TOLD = "print(trainer.interrupted, trainer.current_epoch)"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each cell has put out; the first fit is stopped in its third epoch by the stop button."""
    import nbformat
    from jupyter_client.manager import KernelManager

    root = tmp_path_factory.mktemp("notebook")
    flag = root / "flag"
    setup = SETUP.format(root=str(ROOT), tests=str(ROOT / "tests"))
    sources = {"setup": setup, "loud": LOUD.format(root=str(root), flag=str(flag)), "stopped": FIT, "told": TOLD}
    sources |= {"goes on": FIT, "told again": TOLD}
    sources |= {"redefined": REDEFINED.format(root=str(root)), "fails": FIT, "repaired": REPAIRED, "whole": FIT}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources.values()])
    client = nbclient.NotebookClient(notebook, timeout=120, allow_errors=True, kernel_manager_class=KernelManager)

    def press_stop() -> None:
        while not flag.exists():
            time.sleep(0.02)
        client.km.interrupt_kernel()

    threading.Thread(target=press_stop, daemon=True).start()
    client.execute()
    return {name: cell.outputs for name, cell in zip(sources, notebook.cells)}


def text(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def epochs(outputs: list[Any]) -> list[str]:
    return re.findall(r"Epoch (\d/\d)  \d batches", text(outputs))


def errors(outputs: list[Any]) -> list[str]:
    return [output.ename for output in outputs if output.output_type == "error"]


def test_prints_with_and_without_line_ends_come_out_while_the_bar_is_up(cells: dict[str, list[Any]]) -> None:
    assert errors(cells["loud"]) == errors(cells["stopped"]) == errors(cells["goes on"]) == []
    printed = text(cells["stopped"]) + text(cells["goes on"])
    assert printed.count("a printed line\nand a second one\n") == 16
    assert printed.count("half a line") == 16


def test_the_stop_button_saves_and_the_cell_goes_on(cells: dict[str, list[Any]]) -> None:
    assert "SIGINT: stopped at epoch 2" in text(cells["stopped"])
    assert text(cells["told"]) == "True 2\n"
    assert text(cells["told again"]) == "False 4\n"


def test_an_error_is_the_users_own_and_its_repair_goes_on(cells: dict[str, list[Any]]) -> None:
    assert errors(cells["fails"]) == ["ValueError"]
    assert errors(cells["whole"]) == []


def test_the_notebook_s_record_shows_every_epoch(cells: dict[str, list[Any]]) -> None:
    assert epochs(cells["stopped"]) + epochs(cells["goes on"]) == ["1/4", "2/4", "3/4", "4/4"]
    assert epochs(cells["fails"]) + epochs(cells["whole"]) == ["1/3", "2/3", "3/3"]


def test_nothing_empty_is_displayed_before_the_bar(cells: dict[str, list[Any]]) -> None:
    kinds = [output.output_type for output in cells["whole"]]
    assert kinds.index("display_data") >= 1
    widget = cells["whole"][kinds.index("display_data")]
    assert "application/vnd.jupyter.widget-view+json" in widget.data
