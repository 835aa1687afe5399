"""Lines of a shell as documents show them: each command in them is one that there is, with options that it has."""

from __future__ import annotations

import argparse
import configparser
import re
import shlex
from collections.abc import Iterator

from house.documents import ROOT

from paddlelite_trainer import cli
from paddlelite_trainer.cli import training

# Programs of others in our documents, of which nothing can be checked here.
OF_OTHERS = ("grep", "jq", "mail", "scontrol", "srun", "ssh", "tensorboard", "visualdl", "mkdocs", "[", "}", "{")


def commands_of(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, without comments, redirections and what stands between the commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in ("&&", "||", "|", ";", "&"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a command, None where nothing is."""
    while words and re.fullmatch(r"\w+=.*", words[0]):  # variables of the environment
        words = words[1:]
    if not words:
        return None
    program, *arguments = words
    if program == "paddlelite":
        return _fault_of_ours(arguments)
    if program.endswith("pip") and arguments[:1] == ["install"]:
        return _fault_of_install(arguments[1:])
    if re.fullmatch(r"(?:.*/)?python3?", program):
        return _fault_of_python(arguments)
    return None if program in OF_OTHERS else f"what is {program}?"


def _fault_of_ours(arguments: list[str]) -> str | None:
    if arguments[:1] and arguments[0] in training.COMMANDS:  # the configuration's parser asks for its classes: run
        return None
    try:
        parser_of_ours().parse_args(arguments)
    except SystemExit as leaves:
        return f"the parser of paddlelite ends with {leaves.code}"
    return None


def parser_of_ours() -> argparse.ArgumentParser:
    return cli._parser()


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below a parser, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _fault_of_install(arguments: list[str]) -> str | None:
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for name in re.findall(r"(?:\.|paddlelite_trainer)\[([\w,]+)\]", " ".join(arguments)):
        for extra in name.split(","):
            if extra not in extras["options.extras_require"]:
                return f"there is no extra {extra}"
    return None


def _fault_of_python(arguments: list[str]) -> str | None:
    if arguments[:1] == ["-m"]:
        known = ("pytest", "venv", "paddle.distributed.launch", "paddlelite_trainer.cli")
        return None if arguments[1] in known else f"what is python -m {arguments[1]}?"
    script, *options = arguments
    if "/" not in script:  # the reader's own, train.py
        return None
    if not (ROOT / script).is_file():
        return f"{script} is not there"
    text = (ROOT / script).read_text(encoding="utf-8")
    unknown = [option for option in options if option.startswith("--") and f'"{option}"' not in text]
    return f"{script} has no {unknown[0]}" if unknown else None
