"""WandbLogger: a run at Weights & Biases, or in its offline files."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import explains_unknown_arguments
from .service import ServiceLogger

_INIT_SECONDS = 30.0  # W&B's own is 90, in which training would wait for a server that is away


class WandbLogger(ServiceLogger):
    """A run at Weights & Biases; `experiment` is the `wandb.Run`.

        Trainer(logger="wandb")
        Trainer(logger=WandbLogger("digits", offline=True, options={"tags": ["small"]}))

    W&B's step is `global_step`, and it takes no earlier step than its last: a number that is logged at one, as by
    `trainer.log_metrics(..., step=3)` late in a run, goes to the next step, as do the results of a `trainer.test` after
    `fit`. An offline run has a folder for each process that worked on it, under one id: `wandb sync` joins them.

    Args:
        project: by default W&B's own setting (WANDB_PROJECT), or the name of the directory that holds the runs.
        name: of the run; by default that of its directory.
        offline: write files for `wandb sync`, below `dir`; by default W&B's own setting (WANDB_MODE).
        log_model: whether the best checkpoint goes along as an artifact as the fit ends.
        options: more arguments of `wandb.init`: entity, group, tags, dir, settings, ...
    """

    LIBRARY = "wandb"

    @explains_unknown_arguments(
        {
            "save_dir": "options={'dir': ...} says where W&B keeps its files",
            "version": "the run has an id of its own, which resumes it",
            "id": "the run has an id of its own, which resumes it",
            "experiment": "logger.experiment is the wandb.Run",
            "prefix": "have it in the names that you log",
            "checkpoint_name": "the artifact is named after the run",
        }
    )
    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        offline: bool | None = None,
        log_model: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(log_model=log_model)
        self._project, self._run_name, self._offline, self._options = project, name, offline, dict(options or {})
        self._next_step = 0

    def connect(self, *, resumed: bool) -> Any:
        import wandb

        settings = wandb.Settings()
        given = {
            "project": self._project or settings.project or self.name,
            "name": self._run_name or self.version,
            "mode": None if self._offline is None else "offline" if self._offline else "online",
            "reinit": "create_new",  # another run of this process is not ended
            "settings": wandb.Settings(init_timeout=_INIT_SECONDS),
            **self._options,
        }
        run = wandb.init(id=self.run_id, resume="allow" if resumed else None, **given)
        self._next_step = max(int(run.step), self._next_step if resumed else 0)
        return run

    def stored_steps(self) -> Mapping[str, Collection[int]]:
        if self.experiment.settings.mode != "offline":
            return defaultdict(lambda: range(int(self.experiment.starting_step)))
        folder = Path(self.experiment.settings.wandb_dir)
        stored: dict[str, set[int]] = defaultdict(set)
        for file in sorted(folder.glob(f"offline-run-*-{self.run_id}/run-{self.run_id}.wandb")):
            for row in rows_of(file):
                for name in row:
                    stored[name.removesuffix("._type")].add(int(row["_step"]))  # of an image and the like
        self._next_step = max((step + 1 for steps in stored.values() for step in steps), default=self._next_step)
        return stored

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        step = max(step, self._next_step)
        self.experiment.log(dict(metrics), step=step)
        self._next_step = step

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.send_media(name, lambda: _wandb().Image(image), step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self.send_media(name, lambda: _wandb().Html(f"<pre>{html.escape(text)}</pre>"), step)

    def log_histogram(self, name: str, values: Any, step: int) -> None:
        self.send_media(name, lambda: _wandb().Histogram(values), step)

    def log_audio(self, name: str, samples: Any, sample_rate: int, step: int) -> None:
        self.send_media(name, lambda: _wandb().Audio(samples, sample_rate=sample_rate), step)

    def send_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.experiment.config.update(dict(params), allow_val_change=True)

    def send_summary(self, metrics: Mapping[str, float]) -> None:
        self.experiment.summary.update(dict(metrics))

    def send_checkpoint(self, path: Path, name: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self.run_id}", type="model", metadata={"checkpoint": path.name})
        artifact.add_dir(str(path))
        self.experiment.log_artifact(artifact, aliases=[name, path.name])

    def disconnect(self, status: str) -> None:
        self._next_step += 1  # W&B has closed the last step
        self.experiment.finish(exit_code=0 if status == "finished" else 1)


def _wandb() -> Any:
    import wandb

    return wandb


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The history in one offline file of W&B, as W&B's own command prints it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    return [record["history"]["item"] for record in records if record.get("type") == "history"]
