"""Each of Lightning's names and arguments is here, or stands in the documents' table with what to use instead."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from lightning_names import DIFFERENT, LIGHTNING, NOT_HERE, arguments_here, exists, instead_of, listed, table

from paddlelite_trainer.errors import ConfigurationTypeError

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "migrating-from-lightning.md"


@pytest.mark.parametrize("theirs", LIGHTNING)
def test_a_name_of_lightning_is_here_or_in_the_table_and_never_both(theirs: str) -> None:
    thing = LIGHTNING[theirs]
    here = thing.here()
    ours = set() if inspect.ismodule(here) else {f"{one.name}=" for one in arguments_here(here)}
    wanted = {f"{name}=" for name in thing.arguments.split() if name != "*"}
    missing = (wanted - ours) | {name for name in thing.names.split() if not exists(here, name)}
    assert missing == listed(NOT_HERE, theirs) | set(instead_of(theirs))
    assert listed(DIFFERENT, theirs) <= (wanted | set(thing.names.split())) - missing


@pytest.mark.parametrize("theirs", LIGHTNING)
def test_an_argument_that_both_take_by_position_stands_at_the_same_place(theirs: str) -> None:
    thing = LIGHTNING[theirs]
    here = thing.here()
    if inspect.ismodule(here):
        return
    places = [one.name for one in arguments_here(here) if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    theirs_in_order = thing.arguments.partition("*")[0].split()
    for name in set(places) & set(theirs_in_order):
        assert places.index(name) == theirs_in_order.index(name), name


WITH_ARGUMENTS = [theirs for theirs, thing in LIGHTNING.items() if thing.arguments and instead_of(theirs)]


@pytest.mark.parametrize("theirs", WITH_ARGUMENTS)
def test_an_argument_that_is_not_here_is_an_error_that_says_what_to_use(theirs: str) -> None:
    for argument, remedy in instead_of(theirs).items():
        with pytest.raises(ConfigurationTypeError) as caught:
            type(LIGHTNING[theirs].here())(**{argument.rstrip("="): None})
        assert str(caught.value).endswith(
            f"has no argument {argument.rstrip('=')!r}. It is one of Lightning's; here {remedy}."
        )


@pytest.mark.parametrize("theirs", ["lightning.pytorch", "lightning.pytorch.callbacks"])
def test_a_name_that_is_not_here_is_an_import_error_that_says_what_to_use(theirs: str) -> None:
    package = LIGHTNING[theirs].here().__name__
    assert instead_of(theirs)
    for name, remedy in instead_of(theirs).items():
        with pytest.raises(ImportError) as caught:
            exec(f"from {package} import {name}")
        assert str(caught.value) == f"{package} has no {name}: {remedy}."
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from {package} import Whatever")


def test_the_table_speaks_of_nothing_that_is_not_compared() -> None:
    assert (NOT_HERE.keys() | DIFFERENT.keys()) <= LIGHTNING.keys()


def test_the_documents_have_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "python tests/house/lightning_names.py prints it"
