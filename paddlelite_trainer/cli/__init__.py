"""The command `paddlelite`: works on checkpoints, reports on runs, goes on with them, exports and trains."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import __version__
from ..errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
    RunLockedError,
)
from . import bringing, examining, exporting, looking, resuming, tidying, training
from .output import FAILED, IN_USE, INTERRUPTED, NOT_FOUND, OK, PROBLEMS, USAGE
from .report import report as show_report

EXIT_CODES = """\
exit codes:
  0  done, nothing wrong
  1  damage or differences were found
  2  the command line or a name is wrong
  3  nothing is there
  4  the run is in use by another process
  5  reading or writing failed
"""
EXAMPLES = """\
examples:
  paddlelite ckpt ls runs                           every checkpoint of every run
  paddlelite ckpt verify runs/version_3             check every byte
  paddlelite ckpt show runs/version_3/best          what the best checkpoint holds
  paddlelite ckpt diff runs/version_3/1200 runs/version_3/latest
  paddlelite ckpt tag runs/version_3/1200 before-finetune
  paddlelite ckpt export runs/version_3/best weights.safetensors
  paddlelite ckpt fetch s3://bucket/run --name best

A checkpoint is named by its directory, by a link such as RUN/best or RUN/latest.pdparams, or as RUN/STEP.
"""
REPORT_EXAMPLES = """\
examples:
  paddlelite report runs                            all runs below runs, in report.html
  paddlelite report runs/version_3 runs/version_5 -o two.html
  paddlelite report runs --watch                    at http://127.0.0.1:8765/, while they train

It needs plotly and jinja2: pip install 'paddlelite_trainer[report]'.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    trains = words[:1] and words[0] in training.COMMANDS
    try:
        if trains:
            return training.run(words[0], words[1:])
        arguments = _parser().parse_args(words)
        with _warnings_in_one_line():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `paddlelite ckpt ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except CheckpointNotFoundError as error:
        return _fail(error, NOT_FOUND)
    except CheckpointCorruptError as error:
        return _fail(error, PROBLEMS)
    except RunLockedError as error:
        return _fail(error, IN_USE)
    except (ConfigurationError, ConfigurationTypeError) as error:
        return _fail(error, USAGE)
    except (CheckpointError, OSError) as error:
        if trains and not isinstance(error, CheckpointError):
            raise  # of the user's own code, who needs the lines
        return _fail(error, FAILED)


def _fail(error: object, code: int) -> int:
    what, *problems = str(error).split("\n  - ")
    print(f"paddlelite: {what}" + (f" {'; '.join(problems)}" if problems else ""), file=sys.stderr)
    return code


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    told = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:  # a command looks at a run more than once
            told.add(str(message))
            print(f"paddlelite: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paddlelite", description="Works on runs of paddlelite_trainer.")
    parser.add_argument("--version", action="version", version=f"paddlelite {__version__}")
    parser.epilog = "See `paddlelite COMMAND --help`."
    groups = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, what in training.COMMANDS.items():
        groups.add_parser(name, help=what, add_help=False)
    _add_resume(groups)
    _add_export(groups)
    _add_doctor(groups)
    group = _subparser(groups, "ckpt", "list, check and handle checkpoints", epilog=f"{EXAMPLES}\n{EXIT_CODES}")
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    _add_looking(commands)
    _add_names(commands)
    _add_bringing(commands)
    _add_repair(commands)
    _add_report(groups)
    return parser


def _add_report(groups: Any) -> None:
    report = _subparser(
        groups, "report", "curves, checkpoints, settings and events of runs in one HTML file", epilog=REPORT_EXAMPLES
    )
    report.set_defaults(run=show_report)
    report.add_argument(
        "run_path", nargs="*", metavar="RUN", help="runs, or directories of runs at any depth (default: runs)"
    )
    report.add_argument("-o", "--output", default="report.html", help="the file to write (default: report.html)")
    report.add_argument("--force", action="store_true", help="replace the output also where it is no report")
    report.add_argument("--watch", action="store_true", help="serve it on 127.0.0.1 and show what is new, until Ctrl-C")
    report.add_argument("--port", type=int, help="with --watch: where (default: 8765; 0: any free one)")
    report.add_argument(
        "--every", type=_seconds, metavar="SECONDS", help="with --watch: how often to look (default: 5)"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.2 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be from 0.2 to 86400 seconds, got {text}")
    return seconds


def _add_resume(groups: Any) -> None:
    resume = _subparser(groups, "resume", "go on with a run, by what is written in its directory", resuming.resume)
    resume.add_argument("directory", metavar="RUN", help="the run's directory")
    resume.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        help="of a run of `paddlelite fit`: --KEY VALUE, such as --trainer.max_epochs 20",
    )


def _add_looking(commands: Any) -> None:
    ls = _subparser(commands, "ls", "list the checkpoints of a run, or of all runs below a directory", looking.ls)
    ls.add_argument(
        "path",
        nargs="?",
        default="runs",
        help="a run, a directory of runs, a checkpoint, or the URL of remote copies (default: runs)",
    )
    ls.add_argument("--no-verify", action="store_true", help="do not read the files to check them")
    _with_json(ls)

    show = _subparser(commands, "show", "show what one checkpoint holds", looking.show)
    show.add_argument("checkpoint", help="a checkpoint; a run means its newest")
    show.add_argument("--tensors", action="store_true", help="list every tensor")
    _with_json(show)

    verify = _subparser(
        commands, "verify", "check every byte of checkpoints; exit code 1 if any is damaged", looking.verify
    )
    verify.add_argument(
        "path", nargs="*", default=["runs"], help="checkpoints, runs or directories of runs (default: runs)"
    )
    _with_json(verify)

    diff = _subparser(
        commands, "diff", "tell what differs between two checkpoints; exit code 1 if anything does", looking.diff
    )
    diff.add_argument("first")
    diff.add_argument("second")
    diff.add_argument("--all", action="store_true", help="list every difference, not the first few of each file")
    _with_json(diff)


def _add_names(commands: Any) -> None:
    tag = _subparser(
        commands, "tag", "keep a checkpoint under a name of your own, or take such a name away", tidying.tag
    )
    tag.add_argument("checkpoint", help="the checkpoint, or with --remove its run")
    tag.add_argument("name", help="the tag, which becomes a link in the run directory")
    choice = tag.add_mutually_exclusive_group()
    choice.add_argument("--move", action="store_true", help="take the name from the checkpoint that has it")
    choice.add_argument(
        "--remove", action="store_true", help="take the name away; a checkpoint that no other holds is deleted"
    )
    tag.add_argument("--force", action="store_true", help="also a name that the run manages itself, such as best")
    _with_json(tag)

    prune = _subparser(commands, "prune", "delete the checkpoints that no name holds", tidying.prune)
    prune.add_argument("path", help="a run, or a directory of runs")
    prune.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    prune.add_argument(
        "--superseded", action="store_true", help="also those set aside when a run went on from an older one"
    )
    prune.add_argument("--quarantine", action="store_true", help="also those set aside as damaged")
    _with_json(prune)


def _add_bringing(commands: Any) -> None:
    export = _subparser(
        commands,
        "export",
        "write one checkpoint's tensors as .safetensors, or as a bare .pdparams or .pdopt",
        bringing.export,
    )
    export.add_argument("checkpoint", help="a checkpoint; a run means its newest")
    export.add_argument("output", help="the file to write, its suffix says the format")
    export.add_argument(
        "--what",
        choices=tuple(bringing.FILES),
        help="which tensors (default: those that the output's suffix means; the model's for .safetensors)",
    )
    export.add_argument("--force", action="store_true", help="replace an existing file")
    _with_json(export)

    fetch = _subparser(
        commands, "fetch", "bring a checkpoint from its remote copy, every byte of it checked", bringing.fetch
    )
    fetch.add_argument("url", help="where RemoteCopy put the run's checkpoints, such as s3://bucket/run")
    fetch.add_argument("dest", nargs="?", default=".", help="the directory to put it in (default: the present one)")
    fetch.add_argument(
        "--name", default="latest", help="latest (default), best, a tag, a step, or a checkpoint's name as ls shows it"
    )
    _with_json(fetch)


def _add_export(groups: Any) -> None:
    export = _subparser(
        groups,
        "export",
        "write a checkpoint's network as files for paddle.inference or ONNX, compared with the module",
        exporting.export,
        epilog="paddlelite export runs/version_3 out/model --module train.py:Classifier\n"
        "paddlelite export runs/version_3/best model.onnx --module mine.nets:Classifier "
        "--input 'image:float32[any,3,224,224]'\n",
    )
    export.add_argument("checkpoint", help="a checkpoint; a run means its best one, or where it has none its newest")
    export.add_argument("output", help="the file's name without suffix, or with the format's")
    export.add_argument("--format", choices=exporting.FORMATS, help="by default as the suffix says, else inference")
    export.add_argument("--module", metavar="FILE.py:CLASS", help="the module's class, or package.module:CLASS")
    export.add_argument(
        "--input",
        action="append",
        metavar="NAME:DTYPE[SIZES]",
        help="one argument of forward, such as image:float32[any,3,224,224], or a .npy file with an example; by "
        "default as the run has called it",
    )
    export.add_argument(
        "--weights", help="model, ema or another average in it (default: the average where there is one)"
    )
    export.add_argument("--tolerance", type=float, default=1e-4, help="how far from the module (default: 1e-4)")
    export.add_argument("--opset", type=int, default=13, help="of ONNX (default: 13)")
    export.add_argument("--force", action="store_true", help="replace existing files")
    _with_json(export)


def _add_doctor(groups: Any) -> None:
    doctor = _subparser(
        groups,
        "doctor",
        "examine this machine: Paddle, devices, disk, and whether training on them does what it promises",
        examining.doctor,
        epilog="exit code 0: nothing has failed; 1: something has",
    )
    doctor.add_argument("--quick", action="store_true", help="in a minute, with fewer steps and rounds; else five")
    doctor.add_argument("--directory", default=".", help="on the disk that runs are kept on (default: here)")
    doctor.add_argument(
        "--report",
        metavar="FILE",
        default=examining.REPORT,
        help="the file for a bug report, without names or paths (default: %(default)s)",
    )
    _with_json(doctor)


def _add_repair(commands: Any) -> None:
    repair = _subparser(
        commands,
        "repair",
        "rebuild a run's links and its record of names, move damaged checkpoints to quarantine, and delete leftovers",
        tidying.repair,
    )
    repair.add_argument("path", help="a run, or a directory of runs")
    _with_json(repair)


def _subparser(
    parent: Any, name: str, help: str, run: Any = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parent.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def _with_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead of a table for people")
