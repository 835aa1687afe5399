"""Every wall can fall: sources that break it are counted, and their decent neighbours are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from house import walls

LOOKS_AROUND = """
from paddle.base import _place, place
class Part:
    def read(self, other):
        self._mine, cls._ours, other.__dict__, other._fields
        return super()._base, other._hidden, getattr(other, "_asked", None), getattr(self, self._name)
"""
TAKES = """
def by_name(trainer): ...
def by_type(run: "Trainer | None", *, more: int): ...
async def at_the_end(*, run: trainer.Trainer): ...
def by_both(trainer: Trainer): ...
def harmless(settings: Settings, call: Callable[[Trainer], None]) -> Trainer: ...
"""
WRITES = """
class Part:
    def change(self, other):
        self.mine = other.read
        other.field = 1
        self.part.count += 1
        for other.place, cls.ours in (): ...
"""
IS_BORN = """
class Base(Elsewhere):
    def __init__(self):
        self.inherited = 1
class Fit(Base):
    declared: int
    valued = None
    def start(self):
        self.inherited = self.declared = self.valued = self.early = 2
        self.late = self.settled = 3
        self.late = 4
        class Inner:
            def __init__(self): self.own = 1
    def __post_init__(self):
        self.early = 1
    @property
    def settled(self): ...
    @settled.setter
    def settled(self, value): ...
"""


def function(name: str, lines: int, docstring: str = "") -> str:
    """The source of a function of so many lines, its docstring not counted."""
    return "\n    ".join([f"def {name}():", *([docstring] if docstring else []), *["x = 1"] * (lines - 1)]) + "\n"


BROKEN: dict[str, tuple[dict[str, str], list[str]]] = {
    "1": (
        {"fit/loop": LOOKS_AROUND, "callbacks/ema": "trainer._mark", "machine/paddle_internals": "tensor._place"},
        ["imports _place", "other._hidden", "getattr(other, '_asked', None)", "trainer._mark"],
    ),
    "2": (
        {"fit/state": TAKES, "callback": TAKES, "tuner": TAKES, "fit/hooks": TAKES, "callbacks/ema": TAKES},
        ["by_name", "by_type", "at_the_end", "by_both"],
    ),
    "3": ({"fit/state": WRITES, "callbacks/ema": WRITES}, ["other.field", "self.part.count", "other.place"] * 2),
    "4": (
        {"fit/fit": IS_BORN, "data/source": IS_BORN, "trainer": IS_BORN.replace("Fit", "Trainer")},
        ["Fit.late", "Trainer.late"],
    ),
    "5": (
        {
            "__init__": "from .errors import TrainerError\nfrom .readable import Readable\n__version__ = '1'",
            "trainer": "from .fit.loop import train",
            "fit/loop": "if TYPE_CHECKING:\n    from ..module import Module",
            "module": "def late():\n    from . import readable\nif TYPE_CHECKING:\n    from .trainer import Trainer",
            "readable": "import paddlelite_trainer.fit.loop\nfrom . import __version__",
            "errors": "from . import progress",
            "progress": "from paddlelite_trainer import TrainerError",
            "callback": "if TYPE_CHECKING:\n    from .trainer import Trainer",
        },
        [
            "imports progress, which lead back to it",
            "imports errors, which lead back to it",
            "imports module, which lead back to it",
            "imports readable, which lead back to it",
            "imports fit/loop, which lead back to it",
        ],
    ),
    "6": (
        {
            "__init__": "from .trainer import Trainer\n__version__ = '1'",
            "trainer": "import paddle\nfrom .fit.loop import train\nfrom . import __version__",
            "fit/loop": "from .. import Trainer, progress\nfrom . import hooks",
            "fit/hooks": "from ..module import Module\nif TYPE_CHECKING:\n    from ..module import Module",
            "module": "if TYPE_CHECKING:\n    from .trainer import Trainer",
            "callback": "from .trainer import Trainer\nfrom .data import source",
            "data/source": "def late():\n    from ..fit import loop\nfrom .. import oddments\nfrom ..errors import E",
            "oddments": "",
            "errors": "",
            "progress": "",
            "cli/__init__": "import numpy, paddle.nn\nfrom ..run import directory\nfrom ..trainer import Trainer",
            "run/directory": "from ..checkpoint.store import Store\nfrom ..cli import main",
            "checkpoint/store": "",
        },
        ["trainer", "trainer", "fit/loop", "oddments", "paddle.nn", "trainer", "cli/__init__"],
    ),
    "7a": ({"fit/loop": "x = 1\n" * 501, "callbacks/ema": "x = 1\n" * 700}, ["501 lines"]),
    "7b": (
        {
            "trainer": "class Trainer:\n" + "    def do(self): ...\n" * 41,
            "module": "class Module:\n" + "    def do(self): ...\n" * 42,
            "callbacks/ema": "class EMA:\n" + "    def do(self): ...\n" * 43,
        },
        ["Trainer has 41 methods"],
    ),
    "7c": (
        {
            "fit/loop": function("train", 90) + function("other", 61),
            "fit/mark": function("train", 61) + function("short", 60, '"""One.\n\n    Two."""'),
            "callbacks/ema": function("on_fit_end", 90),
        },
        ["other: 61 lines", "train: 61 lines", "on_fit_end: 90 lines"],
    ),
    "7d": ({"fit/loop": "x = 1\n" + "#" * 121 + "\n" + "#" * 120, "callbacks/ema": "é" * 121}, ["121 characters"] * 2),
}


def test_every_wall_is_broken_here() -> None:
    assert list(BROKEN) == list(walls.WALLS) == list(walls.RATCHET)


@pytest.mark.parametrize("number", BROKEN)
def test_what_breaks_a_wall_is_found_and_nothing_else(number: str) -> None:
    texts, expected = BROKEN[number]
    wall, (_, final) = walls.WALLS[number], walls.RATCHET[number]
    files = [walls.source(name, text) for name, text in texts.items()]
    found = [place.what for place in wall.places(files) if not wall.largest or place.size > final]
    assert sorted(found) == sorted(f"imports {one}" if number == "6" else one for one in expected)
    count = int(expected[0].split(" lines")[0].split(" ")[-1]) if number == "7a" else len(expected)
    assert wall.count(files) == (41 if number == "7b" else count)


def test_the_loop_may_be_longer_than_others_and_not_endless() -> None:
    files = [walls.source("fit/loop", function("train", 91))]
    assert [place.what for place in walls.long_functions(files)] == ["train: 91 lines"]


def test_the_table_and_the_places_can_be_printed() -> None:
    def printed(*arguments: str) -> str:
        command = [sys.executable, str(Path(walls.__file__)), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert [line.split()[0] for line in printed().splitlines()] == ["wall", *walls.WALLS]
    assert [line.split()[0] for line in printed("--list", "7").splitlines() if line[0] != " "] == [
        "7a",
        "7b",
        "7c",
        "7d",
    ]
