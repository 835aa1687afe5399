"""fit, validate, test and predict: handed on to `configuration/`, which needs Paddle and is loaded only then."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence

from ..errors import ConfigurationError

COMMANDS = {
    "fit": "train what a configuration file describes, or go on with it",
    "validate": "metrics over the validation data, by the best checkpoint",
    "test": "metrics over the test data, by the best checkpoint",
    "predict": "predictions, by the best checkpoint",
}


def run(command: str, arguments: Sequence[str]) -> int:
    """Carry out one of them.

    Raises:
        TrainerError: see errors.py. What a user's class raises is raised as it is.
    """
    needs = {"paddle": "paddlelite_trainer[cpu]", "jsonargparse": "paddlelite_trainer[config]"}
    needs.update({"omegaconf": needs["jsonargparse"], "docstring_parser": needs["jsonargparse"]})
    for library, extra in needs.items():
        if _is_missing(library):
            raise ConfigurationError(
                f"`paddlelite {command}` needs {library}, which is not installed: pip install '{extra}'"
            )
    # Said at every import of Paddle 3, and of no use to those who build no operators of their own.
    warnings.filterwarnings("ignore", message="No ccache found")
    from ..configuration import command as configured

    return configured.run(command, arguments)


def _is_missing(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is None
    except ValueError:  # a module that is half there
        return True
