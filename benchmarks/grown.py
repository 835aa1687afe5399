"""What grows: many tensors, a large tensor, many checkpoints, many epochs and steps; seconds and memory of each.

    python benchmarks/grown.py [tensors|bytes|checkpoints|copies|epochs|steps ...] [--share 1.0] [--dir PATH]

Each row is of processes of its own. `--share 0.1` does a tenth of each, `--only 10000` the sizes named alone. The whole
takes about 40 minutes, 14 GB of memory and 10 GB of disk. Memory is the peak over what the process had before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIZES = {
    "tensors": [20_000, 50_000, 200_000],
    "bytes": [500_000_000, 4_400_000_000],
    "checkpoints": [1_000, 3_000, 10_000],
    "copies": [1_000],
    "epochs": [1_000, 3_000, 10_000],
    "steps": [100_000, 1_000_000],
}


def peak() -> float:
    """The process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """The process's present memory in MB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print seconds and by how much the peak rose; what has risen before is not seen again."""
    before, start = peak(), time.perf_counter()
    yield
    print(f"measured\t{what}\t{time.perf_counter() - start}\t{peak() - before}", flush=True)


def quiet(root: Path, **settings: Any) -> Any:
    from paddlelite_trainer import Trainer

    nothing = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(**{"default_root_dir": root, "run_name": "run", "seed": 1, **nothing, **settings})
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    return trainer


# -- many tensors, and a large one -------------------------------------------------------------------------------------
def module_of(kind: str, size: int) -> Any:
    import paddle

    from paddlelite_trainer import Module

    class Grown(Module):
        """As many small parameters with a velocity each; or a small one and a buffer of so many bytes."""

        def __init__(self) -> None:
            super().__init__()
            count = size if kind == "tensors" else 1
            self.weights = paddle.nn.ParameterList([self.create_parameter([4]) for _ in range(count)])
            if kind == "bytes":
                self.register_buffer("table", paddle.ones([size // 4]))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return paddle.add_n(list(self.weights)).sum()

        def configure_optimizers(self) -> Any:
            return paddle.optimizer.Momentum(1e-6, parameters=self.parameters())

    return Grown()


def write_state(kind: str, size: int, root: Path) -> None:
    trainer = quiet(root, max_steps=1, async_checkpoint=False)
    with measured("a fit of one step, its save included"):
        trainer.fit(module_of(kind, size), [0, 0])
    with measured("a save"):
        trainer.save_checkpoint("kept")


def read_state(kind: str, size: int, root: Path) -> None:
    from paddlelite_trainer import Callback

    class First(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            print(f"measured\tresume, to its first batch\t{time.perf_counter() - start}\t{peak() - before}", flush=True)
            trainer.stop()

    module = module_of(kind, size)
    before, start = peak(), time.perf_counter()
    quiet(root, max_steps=3, callbacks=[First()], enable_checkpointing=False).fit(module, [0, 0], ckpt_path="last")


# -- many checkpoints --------------------------------------------------------------------------------------------------
def write_checkpoints(count: int, root: Path) -> None:
    from paddlelite_trainer import Callback
    from paddlelite_trainer.callbacks import ModelCheckpoint
    from paddlelite_trainer.checkpoint import CheckpointStore

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx in (1, count - tenth):
                self.start, self.processor = time.perf_counter(), time.process_time()
            elif batch_idx in (tenth, count - 1):
                which = "first" if batch_idx == tenth else "last"
                each = (time.perf_counter() - self.start) / (tenth - 1)
                processor = (time.process_time() - self.processor) / (tenth - 1)
                print(f"measured\ta step with its save, in the {which} tenth\t{each}\t0", flush=True)
                print(f"measured\tof it processor time\t{processor}\t0", flush=True)

    tenth = count // 10
    every = ModelCheckpoint(monitor="loss", save_top_k=-1, every_n_train_steps=1)
    with measured("the run"):
        quiet(root, max_epochs=1, callbacks=[Watch(), every]).fit(tiny(), batches_of(count))
    for what in ("step-*/manifest.json", "pins*.json"):
        total = sum(path.stat().st_size for path in (root / "run/checkpoints").glob(what))
        print(f"measured\tall {what}, in MB\t\t{total / 1e6}", flush=True)
    with measured("opening the store again"):
        store = CheckpointStore(root / "run")
    with measured("newest, verified"):
        store.newest()
    list_checkpoints(root)
    report(root)
    with measured("retention: all but the newest deleted at once"):
        store.set_pins({pin: [] for pin in store.pins() if pin != "latest"})
    assert len(store.entries()) == 1


def list_checkpoints(root: Path) -> None:
    command("ckpt ls --no-verify", "ckpt", "ls", "--no-verify", str(root / "run"))
    command("ckpt ls, every byte verified", "ckpt", "ls", str(root / "run"))


def report(root: Path) -> None:
    command("report", "report", str(root / "run"), "--output", str(root / "report.html"))
    print(f"measured\treport.html, in MB\t\t{(root / 'report.html').stat().st_size / 1e6}", flush=True)


def command(what: str, *arguments: str) -> None:
    """A command in a process of its own; its memory is that of the largest so far."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "paddlelite_trainer.cli", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parent.parent,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"measured\t{what}\t{time.perf_counter() - start}\t{used}", flush=True)


def copy_checkpoints(count: int, root: Path) -> None:
    """Each save waits for its copy, of which all are kept; names are put at intervals where they are many."""
    import numpy as np

    from paddlelite_trainer.checkpoint import CheckpointStore, Copier, Remote

    store, remote, put = CheckpointStore(root / "run"), Remote(f"file://{root}/remote"), [0]
    own_put = remote.objects.put

    def counted(key: str, data: bytes) -> None:
        put[0] += len(data)
        own_put(key, data)

    remote.objects.put = counted  # type: ignore[method-assign]
    copier = Copier(store, remote, is_wanted=lambda name: True, everything=True, logs=True)
    copier.start()
    names: list[str] = []
    tenth = count // 10
    for step in range(1, count + 1):
        if (step - 1) % tenth == 0:
            start, processor, before = time.perf_counter(), time.process_time(), put[0]
        names.insert(0, store.candidate(step, 0).name)
        pins = {"best": names, "latest": names[:1], f"step={step}": names[:1]}
        store.save(step=step, epoch=0, files={"model.pdparams": {"w": np.zeros(4, "float32")}}, states={}, pins=pins)
        while copier.behind:
            time.sleep(0.0005)
        if step in (tenth, count - count % tenth):
            which = "first" if step == tenth else "last"
            seconds, size = (time.perf_counter() - start) / tenth, (put[0] - before) / tenth
            print(f"measured\ta save and its copy, in the {which} tenth\t{seconds}\t0", flush=True)
            print(f"measured\tof it processor time\t{(time.process_time() - processor) / tenth}\t0", flush=True)
            print(f"measured\tmanifest and names put for it, in MB\t\t{size / 1e6}", flush=True)
    with measured("the rest of the names"):
        copier.wait(600)
    copier.finish()


# -- long runs ---------------------------------------------------------------------------------------------------------
def tiny() -> Any:
    import paddle

    from paddlelite_trainer import Module

    class Tiny(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = paddle.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch).mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self.layer(batch).mean())

        def configure_optimizers(self) -> Any:
            return paddle.optimizer.SGD(1e-12, parameters=self.parameters())

    return Tiny()


def batches_of(count: int) -> list[Any]:
    import paddle

    return [paddle.ones([1, 1])] * count


def run_long(epochs: int, steps_an_epoch: int, root: Path, *, resumes: bool) -> None:
    from paddlelite_trainer import Callback, CSVLogger, TensorBoardLogger
    from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint

    class Watch(Callback):
        """Time of an epoch in the second tenth and the last one, and by how much the peak of memory rose till there."""

        def __init__(self) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            epoch, now = trainer.current_epoch, time.perf_counter()
            if resumes:
                print(f"measured\tresume, to its first batch\t{now - begin}\t{peak() - before}", flush=True)
                trainer.stop()
            if epoch in (epochs // 10, epochs - epochs // 10):
                self.start, self.processor = now, time.process_time()
            elif epoch in (2 * (epochs // 10), epochs - 1):
                which = "second" if epoch < epochs // 2 else "last"
                parts = epoch - (epochs // 10 if which == "second" else epochs - epochs // 10)
                each = (now - self.start) / parts
                processor = (time.process_time() - self.processor) / parts
                print(f"measured\tan epoch, in the {which} tenth\t{each}\t{peak() - at_start}", flush=True)
                print(f"measured\tof it processor time\t{processor}\t{resident()}", flush=True)

    batches = batches_of(steps_an_epoch)
    callbacks: list[Any] = [Watch(), ModelCheckpoint(), EarlyStopping("val", patience=10**9), LRMonitor("step")]
    at_start = peak()
    loggers = [CSVLogger(), TensorBoardLogger()]
    trainer = quiet(root, max_epochs=epochs + resumes, callbacks=callbacks, logger=loggers, log_every_n_steps=10)
    begin, before = time.perf_counter(), peak()
    trainer.fit(tiny(), batches, batches[:1], ckpt_path="last")
    if not resumes:
        for name in ("metrics.csv", "**/events.*", "journal.jsonl", "train.log", "history/*", "latest/trainer.json"):
            size = sum(path.stat().st_size for path in (root / "run").glob(name))
            print(f"measured\t{name}, in MB\t\t{size / 1e6}", flush=True)
        list_checkpoints(root)
        report(root)


PARTS: dict[str, list[Callable[[int, Path], None]]] = {
    "tensors": [
        lambda size, root: write_state("tensors", size, root),
        lambda size, root: list_checkpoints(root),
        lambda size, root: read_state("tensors", size, root),
    ],
    "bytes": [
        lambda size, root: write_state("bytes", size, root),
        lambda size, root: list_checkpoints(root),
        lambda size, root: read_state("bytes", size, root),
    ],
    "checkpoints": [write_checkpoints],
    "copies": [copy_checkpoints],
    "epochs": [
        lambda size, root: run_long(size, 10, root, resumes=False),
        lambda size, root: run_long(size, 10, root, resumes=True),
    ],
    "steps": [
        lambda size, root: run_long(100, size // 100, root, resumes=False),
        lambda size, root: run_long(100, size // 100, root, resumes=True),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--share", type=float, default=1.0, help="of each size; default 1.0")
    parser.add_argument("--only", type=int, nargs="*", help="sizes to measure, in place of the usual ones")
    parser.add_argument("--dir", default=None, help="a directory on the disk to measure; a temporary one by default")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # part, its number and size, in a process of its own
    given = parser.parse_args()
    if given.one:
        part, number, size = given.one
        PARTS[part][int(number)](int(size), Path(given.dir))
        return
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    print(f"{'part':<12}{'size':>14}  {'what':<46}{'seconds':>10}{'MB':>12}")
    for part in given.parts or PARTS:
        for whole in given.only or SIZES[part]:
            size = max(100, int(whole * given.share))
            with tempfile.TemporaryDirectory(dir=given.dir) as root:
                for number in range(len(PARTS[part])):
                    command = [sys.executable, "-W", "ignore", __file__, "--dir", root, "--one", part, str(number)]
                    with subprocess.Popen([*command, str(size)], stdout=subprocess.PIPE, text=True) as process:
                        assert process.stdout is not None
                        for line in process.stdout:
                            if line.startswith("measured\t"):
                                _, what, seconds, memory = line.rstrip("\n").split("\t")
                                shown = f"{float(seconds):,.3f}" if seconds else ""
                                print(
                                    f"{part:<12}{size:>14,}  {what:<46}{shown:>10}{float(memory):>12,.3f}", flush=True
                                )
                    if process.returncode:
                        sys.exit(f"{part} of {size:,} ended with {process.returncode}")


if __name__ == "__main__":
    main()
