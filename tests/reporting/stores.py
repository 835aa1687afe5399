"""Runs with every logger at once, killed where asked, and what is then in each store, read by its own library."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("csv", "tensorboard", "visualdl", "wandb", "mlflow", "swanlab")
Curves = dict[str, list[tuple[int, float]]]


def loggers_of(root: Path, names: Any = NAMES, *, down: bool = False, **options: Any) -> list[Any]:
    """One of each, offline, whose store is below `root`; or with services that do not answer."""
    from paddlelite_trainer import (
        CSVLogger,
        MLFlowLogger,
        SwanLabLogger,
        TensorBoardLogger,
        VisualDLLogger,
        WandbLogger,
    )

    away = "http://127.0.0.1:9"
    makers = {
        "csv": CSVLogger,
        "tensorboard": TensorBoardLogger,
        "visualdl": VisualDLLogger,
        "wandb": lambda: WandbLogger(
            "runs", offline=not down, options={"dir": root / ("x" if down else "w")}, **options
        ),
        "mlflow": lambda: MLFlowLogger(tracking_uri=away if down else f"sqlite:///{root}/mlflow.db", **options),
        "swanlab": lambda: SwanLabLogger(
            mode="online" if down else "offline", options={"log_dir": root / ("x" if down else "s")}
        ),
    }
    return [makers[name]() for name in names]


def prepared(root: Path, *, down: bool = False) -> None:
    """What the libraries would ask the network or write elsewhere for."""
    (root / "w").mkdir(parents=True, exist_ok=True)
    (root / "s").mkdir(exist_ok=True)
    (root / "x").mkdir(exist_ok=True)
    os.environ.update(WANDB_SILENT="true", WANDB_CONSOLE="off", MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")
    if down:
        away = "http://127.0.0.1:9"
        os.environ.update(WANDB_BASE_URL=away, WANDB_API_KEY="a" * 40, SWANLAB_API_HOST=away, SWANLAB_WEB_HOST=away)
        os.environ.update(SWANLAB_API_KEY="a" * 21, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")


# -- what is in a store: {the run's name: {name: [(step, value), ...]}} ------------------------------------------------
def in_csv(root: Path) -> dict[str, Curves]:
    found: dict[str, Curves] = {}
    for path in sorted(root.glob("runs/*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value not in ("", None):
                        found.setdefault(path.parent.name, {}).setdefault(name, []).append(
                            (int(row["step"]), float(value))
                        )
    return found


def in_tensorboard(root: Path) -> dict[str, Curves]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, Curves] = {}
    for run in sorted(root.glob("runs/*")):
        reader = EventAccumulator(str(run))
        reader.Reload()
        tags = reader.Tags()["scalars"]
        if tags:
            found[run.name] = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}
    return found


def in_visualdl(root: Path) -> dict[str, Curves]:
    from visualdl import LogReader

    found: dict[str, Curves] = {}
    for path in sorted(root.glob("runs/*/vdlrecords.*")):
        reader = LogReader(file_path=str(path))
        for tag in reader.get_tags().get("scalar", []):
            points = [(point.id, point.value) for point in reader.get_data("scalar", tag)]
            found.setdefault(path.parent.name, {}).setdefault(tag, []).extend(points)
    return found


def in_wandb(root: Path) -> dict[str, Curves]:
    from paddlelite_trainer.reporting.loggers.wandb import rows_of

    found: dict[str, Curves] = {}
    for file in sorted(root.glob("w/wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime):
        for row in rows_of(file):
            for name, value in row.items():
                if not name.startswith("_") and isinstance(value, (int, float)):
                    found.setdefault(file.stem, {}).setdefault(name, []).append((row["_step"], float(value)))
    return found


def in_mlflow(root: Path) -> dict[str, Curves]:
    from mlflow import MlflowClient

    if not (root / "mlflow.db").exists():
        return {}
    client, found = MlflowClient(f"sqlite:///{root}/mlflow.db"), {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found[run.info.run_id] = {
            name: sorted((point.step, point.value) for point in history) for name, history in points.items()
        }
    return found


def in_swanlab(root: Path) -> dict[str, Curves]:
    from paddlelite_trainer.reporting.loggers.swanlab import points_of

    found: dict[str, Curves] = {}
    for file in sorted(root.glob("s/run-*/*.swanlab"), key=lambda path: path.stat().st_ctime):
        for name, step, value in points_of(file):
            found.setdefault(file.stem, {}).setdefault(name, []).append((step, value))
    return found


READERS = {
    "csv": in_csv,
    "tensorboard": in_tensorboard,
    "visualdl": in_visualdl,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "swanlab": in_swanlab,
}


# -- the names of what is no number ------------------------------------------------------------------------------------
def media_in_tensorboard(root: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = root.glob("runs/*")
    reader = EventAccumulator(str(run))
    reader.Reload()
    tags = reader.Tags()
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]} - {"hparams"}
    return {*tags["images"], *tags["audio"], *tags["histograms"], *texts}


def media_in_visualdl(root: Path) -> set[str]:
    from visualdl import LogReader

    (path,) = root.glob("runs/*/vdlrecords.*")
    tags = LogReader(file_path=str(path)).get_tags()
    return {tag for kind in ("image", "text", "histogram", "audio") for tag in tags.get(kind, [])}


def media_in_wandb(root: Path) -> set[str]:
    from paddlelite_trainer.reporting.loggers.wandb import rows_of

    files = root.glob("w/wandb/offline-run-*/*.wandb")
    rows = [row for file in files for row in rows_of(file)]
    return {name.removesuffix("._type") for row in rows for name in row if name.endswith("._type")}


def media_in_mlflow(root: Path) -> set[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {one.path for one in client.list_artifacts(run.info.run_id) if one.is_dir}


def media_in_swanlab(root: Path) -> set[str]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    records = []
    for file in root.glob("s/run-*/*.swanlab"):
        reader = DataStoreReader()
        reader.open(file)
        records += [Record.FromString(data) for data in reader]
    return {record.media.key for record in records if record.WhichOneof("record_type") == "media"}


# -- a run in a process of its own -------------------------------------------------------------------------------------
def run(root: Path, *arguments: str, returncode: int = 0) -> str:
    """`python stores.py ROOT ...`; it may be killed, where that is what is asked for."""
    ended = subprocess.run(
        [sys.executable, __file__, str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        cwd=root,
    )
    assert ended.returncode == returncode, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "GLOG_minloglevel": "2"}


def main(root: Path, killed_at: int, names: Any = NAMES, then: str = "", service: str = "") -> None:
    prepared(root, down=service == "down")
    from models import Classifier, make_batches

    from paddlelite_trainer import Trainer
    from paddlelite_trainer.callbacks import LRMonitor

    class Killed(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    Trainer(max_epochs=1, logger=["visualdl", "wandb", "mlflow", "swanlab"])  # which loads none of them
    loaded = sorted({"visualdl", "wandb", "mlflow", "swanlab"} & sys.modules.keys())
    trainer = Trainer(
        max_epochs=4,
        logger=loggers_of(root, names, down=service == "down"),
        callbacks=[LRMonitor("step")],
        default_root_dir=root / "runs",
        run_name="mine",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        seed=3,
    )
    trainer.fit(Killed(), make_batches(3), make_batches(1), ckpt_path="last")
    print("loaded:", loaded)
    if then:
        trainer.test(dataloaders=make_batches(1), verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",") if len(sys.argv) > 3 else NAMES, *sys.argv[4:])
