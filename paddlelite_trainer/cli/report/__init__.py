"""`paddlelite report`: what is known of one run or a hundred, in one HTML file or served while they train."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from ...checkpoint.filesystem import atomic_file
from ...errors import ConfigurationError
from ...reporting.terminal import count, from_here, say, size
from ..output import OK
from .everything import Collection
from .page import MARK, page_of

_NEEDS = ("jinja2", "plotly")


def report(arguments: argparse.Namespace) -> int:
    """Write the report, or serve it until Ctrl-C.

    Raises:
        CheckpointNotFoundError: there is no run.
        ConfigurationError: a library is missing, or the output is a file that no report stands in.
    """
    _need_libraries()
    served = {"port": arguments.port, "every": arguments.every}
    served = {name: value for name, value in served.items() if value is not None}
    if served and not arguments.watch:
        raise ConfigurationError(f"--{next(iter(served))} is for a report that is served: add --watch, or leave it out")
    collection = Collection(arguments.run_path or ["runs"])
    if arguments.watch:
        from .watch import serve

        return serve(collection, **served)
    output = Path(arguments.output).expanduser()
    _refuse_to_replace(output, arguments.force)
    data = collection.read()
    page = page_of(data)
    try:
        with atomic_file(output) as temporary:
            temporary.write_bytes(page)
            temporary.chmod(0o644)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(f"cannot write {output}: {output.parent} is no directory") from error
    for run in data["runs"]:
        for problem in run["problems"]:
            say(f"{run['path']}: {problem}", style="yellow")
    say(f"{from_here(output)}  {count(len(data['runs']), 'run')}, {size(len(page))}")
    return OK


def _need_libraries() -> None:
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"paddlelite report needs {' and '.join(missing)}: pip install 'paddlelite_trainer[report]'"
        )


def _refuse_to_replace(output: Path, force: bool) -> None:
    """An earlier report is replaced, anything else only by --force."""
    if output.is_dir():
        raise ConfigurationError(f"{output} is a directory; name the file to write: -o {output / 'report.html'}")
    if force or not output.exists():
        return
    with output.open("rb") as file:
        if MARK.encode() not in file.read(200):
            raise ConfigurationError(f"{output} exists and is no report; choose another -o, or pass --force")
