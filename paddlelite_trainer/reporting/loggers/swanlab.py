"""SwanLabLogger: an experiment at SwanLab, or in its offline files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import explains_unknown_arguments
from .service import ServiceLogger


class SwanLabLogger(ServiceLogger):
    """An experiment at SwanLab; `experiment` is the `swanlab.Run`.

        Trainer(logger="swanlab")
        Trainer(logger=SwanLabLogger("digits", mode="offline"))

    SwanLab's step is `global_step`; of each name it takes no step that is not later than its last, and says nothing: a
    number logged at an earlier one goes to the next step. An offline experiment has a folder for each process that
    worked on it, under one id, for `swanlab sync`.

    Args:
        project: by default SwanLab's own setting, or the name of the directory that holds the runs.
        name: of the experiment; by default that of the run's directory.
        mode: "online", "local", "offline" or "disabled"; by default SwanLab's own setting (SWANLAB_MODE).
        log_model: whether the best checkpoint goes along as files as the fit ends; online only.
        options: more arguments of `swanlab.init`: workspace, tags, log_dir, ...
    """

    LIBRARY = "swanlab"

    @explains_unknown_arguments(
        {
            "save_dir": "options={'log_dir': ...} says where SwanLab keeps its files",
            "experiment_name": "pass name=",
            "logdir": "options={'log_dir': ...}",
            "id": "the run has an id of its own, which resumes it",
            "resume": "a run that goes on is resumed there",
        }
    )
    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        mode: str | None = None,
        log_model: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(log_model=log_model)
        self._project, self._run_name, self._mode, self._options = project, name, mode, dict(options or {})
        self._latest: dict[str, int] = {}

    def connect(self, *, resumed: bool) -> Any:
        import swanlab

        self._latest = {}
        return swanlab.init(
            **{
                "project": self._project or self.name,
                "name": self._run_name or self.version,
                "mode": self._mode,
                "id": self.run_id,
                "resume": "allow",
                "reinit": True,
                **self._options,
            }
        )

    def stored_steps(self) -> Mapping[str, Collection[int]]:
        stored: dict[str, set[int]] = defaultdict(set)
        for file in sorted(self.experiment.dir.parent.glob(f"run-*-{self.run_id}/run-{self.run_id}.swanlab")):
            for name, step, _ in points_of(file):
                stored[name].add(step)
        return stored

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        self.experiment.log(dict(metrics), step=step)

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.send_media(name, lambda: _swanlab().Image(image), step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self.send_media(name, lambda: _swanlab().Text(text), step)

    def log_audio(self, name: str, samples: Any, sample_rate: int, step: int) -> None:
        self.send_media(name, lambda: _swanlab().Audio(samples.T, sample_rate=sample_rate), step)

    def send_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.experiment.config.update(dict(params))

    def send_checkpoint(self, path: Path, name: str) -> None:
        self.experiment.save(f"{path}/*", base_path=str(path.parent), policy="now")

    def disconnect(self, status: str) -> None:
        run = self.experiment
        if run.alive:
            run.finish(
                state="success" if status == "finished" else "crashed", error=None if status == "finished" else status
            )


def _swanlab() -> Any:
    import swanlab

    return swanlab


def points_of(file: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of each number in one offline file of SwanLab, read by its own reader."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader, points = DataStoreReader(), []
    if not file.stat().st_size:  # of a process that was killed before SwanLab had written anything
        return []
    reader.open(file)
    for data in reader:
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "scalar":
            points.append((record.scalar.key, int(record.scalar.step), float(record.scalar.value.number)))
    reader.close()
    return points
