"""Importing: a user's script executed for its classes alone, up to the line where it would train."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from .errors import ConfigurationError

LOADER_WORKER = "loader worker "
"""How the names of spawned worker processes begin."""
TRAINS_AS_IT_IS_IMPORTED = 78
"""Exit code of such a process whose script would train as it is imported: EX_CONFIG of sysexits.h."""

_imports: ContextVar[bool] = ContextVar("_imports", default=False)


class StopsHere(BaseException):
    """The script has come to where it trains; what it has defined is there. No `except Exception` hears of it."""


def stop_if_imported() -> None:
    """End a script that is executed for its classes alone: to look at a run must not go on with it.

    A spawned worker that is still importing its script ends at once and without a word; its parent tells.
    """
    if _imports.get():
        raise StopsHere
    stop_if_spawned()


def stop_if_spawned() -> None:
    """End a worker that imports its script, before it does what belongs to the process that trains."""
    if is_worker_being_spawned():
        os._exit(TRAINS_AS_IT_IS_IMPORTED)  # nothing more of the script is to run, no `finally` either


def is_worker_being_spawned() -> bool:
    """Whether this process is a loader's worker that has not come to its work yet."""
    # Its parent is known to it from then on.
    name = multiprocessing.current_process().name
    return name.startswith(LOADER_WORKER) and multiprocessing.parent_process() is None


def script_as_module(path: Path) -> ModuleType:
    """The script's names, as far as it comes before it would train.

    Raises:
        ConfigurationError: it raises something, or leaves, with the line.
    """
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known  # another copy of its classes would not be theirs
    sys.path.insert(0, str(path.parent))  # what stands beside a script can be imported by it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where Paddle's translator looks a class's source up
    with importing(str(path)):
        spec.loader.exec_module(module)
    return module


def module_named(name: str) -> ModuleType:
    """As `importlib.import_module`; of a script that trains, as far as it comes before it would."""
    token = _imports.set(True)
    try:
        return importlib.import_module(name)
    except StopsHere:
        pass  # and Python has dropped the half-made module
    finally:
        _imports.reset(token)
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    sys.modules[name] = module = script_as_module(Path(spec.origin))
    return module


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Within, the first fit, validate, test or predict ends what is imported; another error names what and the line."""
    token = _imports.set(True)
    try:
        yield
    except StopsHere:
        pass
    except (Exception, SystemExit) as error:
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == what]
        where = f"{what}:{lines[-1].lineno}" if lines else what
        raise ConfigurationError(
            f"{where} cannot be imported: {type(error).__name__}: {error}. It is executed for its classes; what else "
            "it does belongs below `if __name__ == '__main__':`"
        ) from error
    finally:
        _imports.reset(token)
