"""MLFlowLogger: a run at an MLflow server, or in an MLflow database."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ...errors import explains_unknown_arguments
from .base import wav
from .service import ServiceLogger

RUN_TAG = "paddlelite.run_id"
_END_SECONDS = 60.0


class MLFlowLogger(ServiceLogger):
    """A run at MLflow; `experiment` is the `mlflow.MlflowClient`, and `mlflow_run_id` what its calls need.

        Trainer(logger="mlflow")
        Trainer(logger=MLFlowLogger("digits", tracking_uri="sqlite:///mlflow.db", log_model=True))

    MLflow gives a run an id of its own; ours is its tag `paddlelite.run_id`, by which it is found again. A
    hyper-parameter that has another value after a resume keeps its first one, since MLflow changes none. Numbers travel
    in a thread of this logger's, in order. A call to a server is tried 4 times, unless MLFLOW_HTTP_REQUEST_MAX_RETRIES
    is set.

    Args:
        experiment_name: by default the name of the directory that holds the runs.
        run_name: by default that of the run's directory.
        tracking_uri: of a server or database; by default MLflow's own setting (MLFLOW_TRACKING_URI).
        tags: of the run.
        log_model: whether the best checkpoint goes along as artifacts below `checkpoints/` as the fit ends.
    """

    LIBRARY = "mlflow"

    @explains_unknown_arguments(
        {
            "save_dir": "pass tracking_uri=",
            "prefix": "have it in the names that you log",
            "run_id": "the run has an id of its own, which finds it again",
            "artifact_location": "make the experiment with mlflow before",
            "synchronous": "numbers travel in a thread",
        }
    )
    def __init__(
        self,
        experiment_name: str | None = None,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        log_model: bool = False,
    ) -> None:
        super().__init__(log_model=log_model)
        self._experiment_name, self._run_name, self._tracking_uri = experiment_name, run_name, tracking_uri
        self._tags = dict(tags or {})
        self.mlflow_run_id: str | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._sent: list[Future[Any]] = []

    def connect(self, *, resumed: bool) -> Any:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow import MlflowClient

        client, name = MlflowClient(self._tracking_uri), self._experiment_name or self.name
        experiment = client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment is not None else client.create_experiment(name)
        found = client.search_runs([where], f"tags.`{RUN_TAG}` = '{self.run_id}'") if resumed else []
        if found:
            client.update_run(found[0].info.run_id, "RUNNING")
        else:
            tags = {**self._tags, RUN_TAG: self.run_id}
            found = [client.create_run(where, tags=tags, run_name=self._run_name or self.version)]
        self.mlflow_run_id = found[0].info.run_id
        self._thread, self._sent = ThreadPoolExecutor(1, "mlflow"), []
        return client

    def stored_steps(self) -> Mapping[str, Collection[int]]:
        run, client = self.mlflow_run_id, self.experiment
        return {
            name: {point.step for point in client.get_metric_history(run, name)}
            for name in client.get_run(run).data.metrics
        }

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._in_thread(self.experiment.log_batch, self.mlflow_run_id, points)

    def log_image(self, name: str, image: Any, step: int) -> None:
        self._spare(self._in_thread, self.experiment.log_image, self.mlflow_run_id, image, _file(name, step, "png"))

    def log_text(self, name: str, text: str, step: int) -> None:
        self._spare(self._in_thread, self.experiment.log_text, self.mlflow_run_id, text, _file(name, step, "md"))

    def log_audio(self, name: str, samples: Any, sample_rate: int, step: int) -> None:
        self._spare(self._in_thread, self._send_file, wav(samples, sample_rate), _file(name, step, "wav"))

    def _send_file(self, content: bytes, place: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(place).name
            path.write_bytes(content)
            self.experiment.log_artifact(self.mlflow_run_id, str(path), str(Path(place).parent))

    def send_hyperparams(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        there = self.experiment.get_run(self.mlflow_run_id).data.params
        new = [Param(name, str(value)) for name, value in params.items() if name not in there]
        self.experiment.log_batch(self.mlflow_run_id, params=new)

    def send_checkpoint(self, path: Path, name: str) -> None:
        self.experiment.log_artifacts(self.mlflow_run_id, str(path), f"checkpoints/{name}")
        self.experiment.set_tag(self.mlflow_run_id, f"checkpoints.{name}", path.name)

    def disconnect(self, status: str) -> None:
        assert self._thread is not None
        _, late = wait(self._sent, timeout=_END_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._raise_what_failed()
        if late:
            raise TimeoutError(f"the service has not taken {len(late)} points in {_END_SECONDS:.0f} seconds")
        self.experiment.set_terminated(self.mlflow_run_id, "FINISHED" if status == "finished" else "FAILED")

    def give_up(self, error: BaseException) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        super().give_up(error)

    def _in_thread(self, call: Any, *arguments: Any, **named: Any) -> None:
        assert self._thread is not None
        self._raise_what_failed()
        self._sent.append(self._thread.submit(call, *arguments, **named))

    def _raise_what_failed(self) -> None:
        done = [future for future in self._sent if future.done()]
        self._sent = [future for future in self._sent if not future.done()]
        for future in done:
            if not future.cancelled():
                future.result()


def _file(name: str, step: int, suffix: str) -> str:
    """Where an artifact is, of a resumed run the same again."""
    return f"{name}/step-{step:09}.{suffix}"
