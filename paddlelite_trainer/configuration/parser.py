"""What jsonargparse does: types, defaults, help, the whole configuration written out, objects."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError
from ..importing import module_named
from ..names_elsewhere import attribute_errors_only
from .checking import SCHEDULE, checked, references
from .files import read
from .kinds import DATA, MODULE, OPTIMIZER
from .kinds import SCHEDULE as SCHEDULER
from .merging import Merged, split

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

COMMANDS = {
    "fit": "Train what a configuration describes, or go on with it.",
    "validate": "Metrics of validation_step over the validation data.",
    "test": "Metrics of test_step over the test data.",
    "predict": "What predict_step returns for each batch, in a file.",
}
_EPILOG = """\
A key of the configuration is an option: --trainer.max_epochs 5, --module.lr 1e-3 (of module.init_args),
--optimizer AdamW, --trainer.callbacks+=EarlyStopping (one more; --trainer.callbacks.monitor val_acc is the last
one's). A later file and a later option win. Arguments of a class: --module.help my_file.MyModule,
--trainer.callbacks.help EarlyStopping. All keys and the rest: docs/configuration-files.md.
"""


def parsed(command: str, arguments: Sequence[str]) -> Namespace:
    """The whole configuration that these arguments mean, every default in it.

    Raises:
        ConfigurationError: one sentence about what is wrong with it.
        SystemExit: help, or the configuration, was asked for and has been printed.
    """
    flags, options = split(arguments)
    asks_for_help = [flag for flag in flags if not flag.startswith("--print_config")]
    with _quiet():
        parser = new_parser(command)
        from omegaconf.errors import OmegaConfBaseException

        if asks_for_help or not options:
            parser.parse_args(asks_for_help or ["--help"])
        merged = Merged()
        for name, text in options:
            if name == "config":
                merged.add_file(read(text))
            else:
                merged.add_argument(name, text)
        own = {name: merged.tree[name] for name in _own_options(command) if name in merged.tree}
        tree = checked({name: value for name, value in merged.tree.items() if name not in own}, merged.place)
        tree.update(own)
        if tree.get("module") is None:
            raise ConfigurationError(
                f"`paddlelite {command}` needs a module: --config run.yaml that names one, or --module"
            )
        try:
            if flags:
                parser.parse_args([f"--config={json.dumps(tree)}", *flags])
            found: Namespace = parser.parse_object(tree)
            return found
        except argparse.ArgumentError as error:
            raise ConfigurationError(_sentence(error)) from error
        except OmegaConfBaseException as error:
            where = ", ".join(merged.place(keys) for keys, _ in references(tree))
            raise ConfigurationError(f"{where}: {str(error).splitlines()[0]}") from error


def _own_options(command: str) -> tuple[str, ...]:
    return ("output",) if command == "predict" else ("init_from",) if command == "fit" else ()


def new_parser(command: str) -> ArgumentParser:
    """What `paddlelite fit` and its like accept."""
    from ..trainer import Trainer

    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ConfigurationError(
            f"`paddlelite {command}` reads configurations with jsonargparse, which is not installed: "
            "pip install 'paddlelite_trainer[config]'"
        ) from error
    parser = ArgumentParser(
        prog=f"paddlelite {command}",
        usage=f"paddlelite {command} --config run.yaml [--KEY VALUE ...]",
        description=COMMANDS[command],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        parser_mode="omegaconf+",
    )
    parser.add_argument("--config", action="config", help="a YAML file; given more than once, the later wins")
    parser.add_class_arguments(Trainer, "trainer")
    parser.add_subclass_arguments(DATA.base, "data", required=False, fail_untyped=False, help="a DataModule")
    parser.add_subclass_arguments(MODULE.base, "module", required=True, fail_untyped=False, help="a Module")
    for kind, name in ((OPTIMIZER, "optimizer"), (SCHEDULER, "lr_scheduler")):
        of: dict[str, Any] = {
            "skip": set(kind.given_by_us),
            "instantiate": False,
            "required": False,
            "fail_untyped": False,
        }
        parser.add_subclass_arguments(kind.base, name, help=f"{kind.what}, instead of configure_optimizers", **of)
    _add_schedule(parser)
    parser.add_argument(
        "--ckpt_path", type=str | None, default="auto", help=_CKPT_PATH["fit" if command == "fit" else "other"]
    )
    if command == "fit":
        parser.add_argument("--override", type=list[str], default=[], help="as in trainer.fit(override=...)")
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="a checkpoint of any Paddle tool whose weights a run begins with",
        )
    if command == "predict":
        parser.add_argument("--output", type=str | None, default=None, help="a .npz or .json file for the predictions")
    return parser


_CKPT_PATH = {
    "fit": "auto: go on with the newest run of this configuration, else begin one; last, best, a tag, a path; null: "
    "begin a run",
    "other": "auto: the best checkpoint of the newest run of this configuration, else its last; last, best, a tag, a "
    "path; null: the weights that the module is made with",
}


def _add_schedule(parser: ArgumentParser) -> None:
    types: dict[str, tuple[Any, Any, str]] = {
        "interval": (Literal["epoch", "step"], "epoch", "what the schedule steps after"),
        "frequency": (int, 1, "after how many of them"),
        "monitor": (str | None, None, "the metric that ReduceOnPlateau watches"),
        "strict": (bool, True, "whether a metric that is missing is an error"),
        "name": (str | None, None, "its name in the logs"),
    }
    assert tuple(types) == SCHEDULE
    for name, (kind, default, meaning) in types.items():
        parser.add_argument(f"--lr_scheduler_config.{name}", type=kind, default=default, help=meaning)


def as_tree(configuration: Namespace) -> dict[str, Any]:
    """A parsed configuration as dicts, lists, numbers and strings, without what belongs to one command alone."""
    with _quiet():
        text = new_parser("fit").dump(_of_a_run(configuration), format="json", skip_validation=True, skip_unset=False)
    tree: dict[str, Any] = json.loads(text)
    return tree


def as_yaml(configuration: Namespace) -> str:
    with _quiet():
        return str(new_parser("fit").dump(_of_a_run(configuration), skip_validation=True, skip_unset=False))


def _of_a_run(configuration: Namespace) -> Namespace:
    kept = configuration.clone()
    for name in ("config", "output", "ckpt_path", "override", "init_from"):
        kept.pop(name, None)
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Names that we explain are plain AttributeErrors for who looks for a class's shortest path."""
    with attribute_errors_only(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="jsonargparse")
        yield


def _sentence(error: argparse.ArgumentError) -> str:
    """The key and the reason of what jsonargparse says in many lines."""
    text = str(error)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    reasons = re.findall(
        r"^\s*(?:- )?((?:Expected|Not|Option|the following|Problem|module|No ).*)$", text, re.MULTILINE
    )
    value = re.search(r"Given value: (.*)$", text, re.MULTILINE)
    reason = reasons[-1 if len(reasons) == 1 else 0].strip() if reasons else " ".join(text.split())
    got = f"; got {value[1]}" if value and "Got value" not in reason else ""
    return f"{'.'.join(keys[:1])}: {reason}{got}" if keys else reason


def instantiated(node: Any, make: Callable[..., Any] | None = None) -> Any:
    """The object of a class and its arguments, and those within a list of them; what its class raises is raised.

    `make(kind, **arguments)` makes it, where it is not its class alone.
    """
    from jsonargparse import ArgumentParser, Namespace

    if isinstance(node, list):
        return [instantiated(one) for one in node]
    if not isinstance(node, Namespace) or "class_path" not in node:
        return node
    kind = class_of(node)
    given = Namespace(it=node.get("init_args") or Namespace())  # type: ignore[no-untyped-call]
    parser = ArgumentParser(exit_on_error=False)
    with _quiet():
        # Each by a parser of its own: within a union what a class raises would be one of many lines.
        parser.add_class_arguments(kind, "it", fail_untyped=False, instantiate=False)
        arguments = vars(parser.instantiate(given).it) | dict(node.get("dict_kwargs") or {})
    return (make or _made)(kind, **arguments)


def _made(kind: Callable[..., Any], **arguments: Any) -> Any:
    return kind(**arguments)


def class_of(node: Namespace) -> Any:
    """The class that a parsed node names."""
    module, _, name = node.class_path.rpartition(".")
    return getattr(module_named(module), name)
