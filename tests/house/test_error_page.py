"""docs/errors.md has every error, and its examples are what the errors say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from house import error_page

from paddlelite_trainer import errors

TEXT = error_page.PAGE.read_text(encoding="utf-8")
ALL = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.TrainerError)]


def test_the_page_has_each_error_under_its_name() -> None:
    titles = re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)
    assert sorted([*titles, "TrainerError"]) == sorted(error.__name__ for error in ALL)


@pytest.mark.parametrize("error", error_page.PROVOKED, ids=lambda error: error.__name__)
def test_an_example_is_what_the_error_says(error: type[BaseException], tmp_path: Path) -> None:
    assert error_page.written(TEXT, error) == error_page.message_of(error, tmp_path)
