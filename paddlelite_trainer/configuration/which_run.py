"""Which run a configuration goes on with: the newest that was begun with the same one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointNotFoundError, ConfigurationError
from ..run.directory import CONFIG_FILE, absolute, holds_checkpoints, numbered_runs

HOW_LONG = {"max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"}
SHOWN = {
    *("enable_progress_bar", "enable_model_summary", "profiler", "on_save_error", "rank_timeout", "async_checkpoint"),
    *("prefetch_to_device", "default_root_dir", "run_name", "cpu_threads", "detect_anomaly", "fast_dev_run"),
    *("accelerator", "devices", "logger", "log_every_n_steps"),
}
"""Trainer's arguments that make no other run: how long it is, where it lies and runs, what it tells."""


def kept_configuration(run: Path) -> dict[str, Any] | None:
    """What a run's config.yaml holds, or None where there is none to read."""
    try:
        found = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`module.init_args.lr: 0.001, now 0.01` for all that makes another run."""
    return [
        f"{key}: {_shown(old)}, now {_shown(new)}"
        for key, old, new in _differing(before, now, "")
        if not (key.startswith("trainer.") and key.split(".")[1] in HOW_LONG | SHOWN)
    ]


def _differing(before: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of what differs, as near to the top as one of both has nothing there."""
    if isinstance(before, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip_longest(before, now)):
            yield from _differing(old, new, f"{key}[{index}]")
    elif isinstance(before, Mapping) and isinstance(now, Mapping) and before.get("class_path") == now.get("class_path"):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _differing(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif json.dumps(before, sort_keys=True, default=str) != json.dumps(now, sort_keys=True, default=str):
        yield key, before, now


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return "nothing" if value is None else str(value)


def run_of(tree: Mapping[str, Any]) -> tuple[Path | None, str | None]:
    """The run that this configuration goes on with, and a sentence about the one that it does not go on with.

    It is the newest run below `default_root_dir`, or that called `run_name`, which has checkpoints and was begun with a
    configuration that makes no other run.

    Raises:
        ConfigurationError: `run_name` is a run of another configuration.
    """
    trainer = tree["trainer"]
    root, name = absolute(trainer["default_root_dir"]), trainer["run_name"]
    runs = [root / name] if name else [path for _, path in sorted(numbered_runs(root), reverse=True)]
    told = None
    for run in runs:
        if not holds_checkpoints(run):
            continue
        kept = kept_configuration(run)
        if kept is None:
            differs = ["it has no config.yaml, as it was not begun by `paddlelite fit`"]
        else:
            differs = differences(kept, tree)
        if not differs:
            return run, None
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        what = f"{_near(run)} was begun otherwise ({'; '.join(differs[:3])}{more})"
        if name:
            raise ConfigurationError(
                f"{what}. To go on with it all the same: --ckpt_path last; to begin another: --trainer.run_name"
            )
        told = told or f"a run of its own: {what}. To go on with that one all the same: --ckpt_path {_near(run)}"
    return None, told


def checkpoint_to_evaluate(tree: Mapping[str, Any]) -> Path:
    """The best checkpoint of this configuration's newest run, else its last.

    Raises:
        CheckpointNotFoundError: there is no such run.
    """
    run, told = run_of(tree)
    if run is None:
        root = _near(absolute(tree["trainer"]["default_root_dir"]))
        raise CheckpointNotFoundError(
            f"no run of this configuration has a checkpoint below {root}"
            + (f": {told.removeprefix('a run of its own: ')}" if told else "")
            + (". " if not told else "; ")
            + "--ckpt_path null takes the weights that the module is made with"
        )
    return next((run / name for name in ("best", "latest") if (run / name).exists()), run)


def _near(path: Path) -> Path:
    """As people say it, from where they are."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
