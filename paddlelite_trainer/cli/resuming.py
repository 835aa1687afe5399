"""`paddlelite resume RUN`: goes on with a run, from an empty shell, by what is written in its directory."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ..errors import CheckpointNotFoundError, ConfigurationError, RunLockedError
from ..reporting.terminal import say
from ..run.begun import RESUMES, Beginning, beginning_of, command_line
from ..run.directory import CONFIG_FILE, CONFIG_HEAD, absolute, holds_checkpoints, read_run

_FIT = ["-m", "paddlelite_trainer.cli", "fit"]


def resume(arguments: argparse.Namespace) -> int:
    """Start the run's command again, in its directory, so that it goes on with this run; does not return on POSIX.

    Raises:
        CheckpointNotFoundError: there is no such run.
        RunLockedError: it is running.
        ConfigurationError: what began it cannot be started again.
    """
    run = absolute(arguments.directory)
    info, begun = read_run(run), beginning_of(run)
    if info is None and begun is None:
        raise CheckpointNotFoundError(f"{arguments.directory} is no run: it has no run.json{_runs_near(run)}")
    if info is not None and info.status == "running" and info.is_here:
        raise RunLockedError(f"{run} is running: process {info.pid} on {info.host}. Nothing was started.")
    if begun is None:
        raise ConfigurationError(
            f"{run} was begun by an earlier version, which kept no directory and no arguments. Its command was: "
            f"{info.command if info is not None else ''}"
        )
    if not begun.directory.is_dir():
        raise ConfigurationError(f"{run} was begun in {begun.directory}, which is not there any more")
    command, what = _command(run, begun, arguments.overrides)
    environment = {**os.environ, **begun.environment, RESUMES: str(run)}
    if not Path(command[0]).exists():
        say(f"{command[0]} is not there any more; {sys.executable} takes its place")
        command[0] = sys.executable
    say(f"going on with {run} ({info or 'unknown'}): {what}")
    say(f"  in {begun.directory}: {command_line(command)}")
    sys.stdout.flush()
    os.chdir(begun.directory)
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.call(command, env=environment)


def _command(run: Path, begun: Beginning, overrides: list[str]) -> tuple[list[str], str]:
    """The command and a word about it."""
    if _is_kept_configuration(run / CONFIG_FILE):
        chosen = ["--ckpt_path", str(run)]
        what = "with the configuration that it keeps"
        if not holds_checkpoints(run):
            chosen = ["--trainer.default_root_dir", str(run.parent), "--trainer.run_name", run.name]
            what += "; it holds no checkpoint yet, so it begins anew there"
        launcher: list[str] = []  # devices of the configuration decide
        return [begun.command[0], *launcher, *_FIT, "--config", str(run / CONFIG_FILE), *chosen, *overrides], what
    if overrides:
        raise ConfigurationError(
            f"{run} was begun by a script, which takes its own arguments: {' '.join(overrides)} can be given to a run "
            "of `paddlelite fit` alone"
        )
    program = " ".join(begun.command[1:])
    if "ipykernel" in program:
        raise ConfigurationError(f"{run} was begun in a notebook: run its cell again, with ckpt_path={str(run)!r}")
    if any(word == "-c" or word == "-" for word in begun.command[1:3]) and begun.command[1:2] == ["-"]:
        raise ConfigurationError(f"{run} was begun by a program from standard input, which is not kept")
    what = "by the command that it was last started by"
    if not holds_checkpoints(run):
        what += "; it holds no checkpoint yet, so the command begins anew"
    return list(begun.command), what


def _is_kept_configuration(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith(CONFIG_HEAD)
    except (OSError, UnicodeDecodeError):
        return False


def _runs_near(run: Path) -> str:
    parent = run if run.is_dir() else run.parent
    try:
        near = sorted(one.name for one in parent.iterdir() if (one / "run.json").exists())
    except OSError:
        return ""
    return f"; {parent} has {', '.join(near[-5:])}" if near else ""
