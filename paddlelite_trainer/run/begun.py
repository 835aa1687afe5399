"""How a run was begun, as its run.json keeps it, and the run that `paddlelite resume` has asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .directory import absolute, holds_checkpoints
from .whose import RUN_FILE, read_json

RESUMES = "PADDLELITE_RESUME"
"""The run that `paddlelite resume` wants gone on with, told to the script that it starts."""


class Beginning(NamedTuple):
    """The command line that a run was begun with, and where."""

    command: list[str]
    directory: Path
    environment: dict[str, str]
    """What of it decides which modules are found."""


def beginning_of(run: Path) -> Beginning | None:
    """What run.json says of it; None where it says nothing, as in a run of an earlier version."""
    record = read_json(run / RUN_FILE)
    try:
        begun: Mapping[str, Any] = record["how_begun"]
        command = [str(word) for word in begun["command"]]
        environment = {str(name): str(value) for name, value in begun["environment"].items()}
        return Beginning(command, Path(begun["directory"]), environment) if command else None
    except (KeyError, TypeError, AttributeError):
        return None


def asked_to_resume(default_root_dir: str | os.PathLike[str], run_name: str | None) -> Path | None:
    """The run that `paddlelite resume` wants gone on with, where it is one of this Trainer's; told once a process.

    None too where it holds no checkpoint yet, so that nothing can be gone on from.
    """
    asked = os.environ.get(RESUMES)
    if not asked:
        return None
    run, root = absolute(asked), absolute(default_root_dir)
    if run != root / run_name if run_name is not None else run.parent != root:
        return None
    del os.environ[RESUMES]
    return run if holds_checkpoints(run) else None


def command_line(words: list[str]) -> str:
    return shlex.join(words)
