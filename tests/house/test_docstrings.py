"""Every public name tells its contract: a first sentence in a line, its arguments, the errors that it raises."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest
from house.public_names import PublicName, public_names

from paddlelite_trainer import errors

OURS = {name for name in vars(errors) if name.endswith("Error")}
NAMES = public_names()
# What every hook is given, told once for all of them in the docstrings of Callback and Module.
OF_HOOKS = {"trainer", "module", "batch", "batch_idx", "dataloader_idx", "outputs", "stage", "checkpoint", "state_dict"}
COLUMNS = 120


def _ids(name: PublicName) -> str:
    return name.path


def test_a_name_has_a_docstring() -> None:
    assert [name.path for name in NAMES if not (name.thing.__doc__ or "").strip()] == []


def test_a_docstring_begins_with_a_sentence_that_fits_in_a_line() -> None:
    firsts = {name.path: (name.thing.__doc__ or "").strip().splitlines()[:1] for name in NAMES}
    wrong = {path: first for path, first in firsts.items() if first and not first[0].endswith((".", ":", "?"))}
    assert wrong == {}
    indents = {name.path: 4 if name.owner is None else 8 for name in NAMES}
    assert [path for path, first in firsts.items() if len(first[0]) + indents[path] + 3 > COLUMNS] == []


def _arguments(name: PublicName) -> list[str]:
    parameters = inspect.signature(name.callable_of_it).parameters.values() if name.callable_of_it else ()
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one for one in named if one not in ("self", "cls")]


def _tells_in_prose(name: PublicName) -> bool:
    """Methods of up to three arguments may tell of them in a sentence."""
    return name.owner is not None and len(set(_arguments(name)) - OF_HOOKS) <= 3


@pytest.mark.parametrize("name", [one for one in NAMES if not _tells_in_prose(one)], ids=_ids)
def test_each_argument_has_its_line(name: PublicName) -> None:
    told = name.documented_arguments.union(*(one.documented_arguments for one in _referred_to(name)))
    assert sorted(set(_arguments(name)) - told) == []


def _referred_to(name: PublicName) -> list[PublicName]:
    """The methods of the same class whose arguments it has: "as `validate`"."""
    others = re.findall(r"as `(\w+)`", name.docstring)
    return [one for one in NAMES if one.owner is name.owner is not None and one.path.rpartition(".")[2] in others]


@pytest.mark.parametrize("name", NAMES, ids=_ids)
def test_an_argument_that_is_told_of_is_there(name: PublicName) -> None:
    function = name.callable_of_it
    known = set(inspect.signature(function).parameters) if function else set()
    assert name.documented_arguments <= known


def _raised_by(name: PublicName) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(name.callable_of_it)))
    except (TypeError, OSError):  # made by dataclass
        return set()
    raised = [one.exc.func for one in ast.walk(tree) if isinstance(one, ast.Raise) and isinstance(one.exc, ast.Call)]
    return {one.id for one in raised if isinstance(one, ast.Name)} & OURS


@pytest.mark.parametrize("name", [one for one in NAMES if _raised_by(one)], ids=_ids)
def test_each_error_of_ours_that_it_raises_is_told(name: PublicName) -> None:
    assert sorted(error for error in _raised_by(name) if error not in name.section("Raises")) == []
