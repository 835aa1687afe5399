"""Saving and loading beside paddle.save and paddle.load: stall, throughput, a tiny state, a pin (P1 to P7).

    python benchmarks/checkpoint.py [--sizes 1,16,256,1024] [--pairs 5] [--dir PATH] [--json]

Sizes are in MB. Every figure is a median over interleaved pairs: ours, theirs, ours, theirs, ... on the same disk.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import paddle
from pairs import at_least_one

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore

MB = 1_000_000


def seconds(function: Callable[[], Any]) -> float:
    gc.collect()
    os.sync()  # what earlier steps wrote or deleted is not this one's cost
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def state_of(megabytes: float) -> dict[str, paddle.Tensor]:
    """Tensors as a model has them: some large, many small."""
    count = max(4, min(60, int(megabytes)))
    numbers = max(1, int(megabytes * MB / 4 / count))
    return {f"layers.{i}.weight": paddle.rand([numbers]) for i in range(count)}


def save(store: CheckpointStore, step: int, tensors: dict[str, Any], background: bool = False) -> None:
    """Save, and keep the checkpoint before it too: deleting that is measured apart."""
    name = store.candidate(step, 0).name
    files = {"model.pdparams": tensors}
    pins = {"latest": [name], "before": [entry.name for entry in store.by_pin("latest")]}
    store.save(
        step=step,
        epoch=0,
        files=files,
        states={"trainer.json": {"global_step": step}},
        pins=pins,
        background=background,
    )


def fsync_tree(path: Path) -> None:
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def paddle_save(tensors: dict[str, Any], path: Path) -> None:
    paddle.save(tensors, str(path))
    fsync_tree(path)


def floor(arrays: list[np.ndarray], path: Path) -> None:
    """Write, SHA-256 and fsync, the hash in a thread beside the write: what no careful writer can do without."""

    def hash_all() -> None:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array)

    hashing = threading.Thread(target=hash_all)
    hashing.start()
    with open(path, "wb", buffering=0) as file:
        for array in arrays:
            file.write(array.data)
        hashing.join()
        os.fsync(file.fileno())
    fsync_tree(path)


def peak_memory(function: Callable[[], None]) -> int:
    """Bytes by which resident memory rises at most while `function` runs."""
    page = resource.getpagesize()
    highest = before = resident(page)
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident(page))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return max(highest, resident(page)) - before


def resident(page: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * page


def measure_size(megabytes: float, pairs: int, directory: Path) -> dict[str, float]:
    tensors = state_of(megabytes)
    arrays = [tensor.numpy() for tensor in tensors.values()]
    nbytes = sum(array.nbytes for array in arrays)
    buffers = [np.empty_like(array) for array in arrays]
    for buffer in buffers:
        buffer.fill(0)
    times: dict[str, list[float]] = {}

    def record(name: str, function: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds(function))

    def copy() -> None:
        for buffer, array in zip(buffers, arrays):
            np.copyto(buffer, array)

    memory = 0
    store = CheckpointStore(directory / "ours")
    behind = CheckpointStore(directory / "background")
    memory = peak_memory(lambda: (save(behind, 0, tensors, background=True), behind.wait())[1])

    def ours(step: int) -> None:
        record("save", lambda: save(store, step, tensors))
        record("delete", lambda: store.set_pins({"before": []}))

    def theirs(step: int) -> None:
        record("paddle_save", lambda: paddle_save(tensors, directory / f"theirs{step}"))
        (directory / f"theirs{step - 1}").unlink(missing_ok=True)

    def least(step: int) -> None:
        record("floor", lambda: floor(arrays, directory / f"floor{step}"))
        (directory / f"floor{step - 1}").unlink(missing_ok=True)

    def beside(step: int) -> None:
        record("copy", copy)
        record("stall", lambda: save(behind, step, tensors, background=True))
        behind.wait()
        behind.set_pins({"before": []})

    # Each keeps its previous file until the new one is written, and all take turns at being first.
    turns = [ours, theirs, least, beside]
    for step in range(1, pairs + 1):
        for measure in turns[step % 4 :] + turns[: step % 4]:
            measure(step)
    paddle_save(tensors, directory / "theirs.pdparams")
    for _ in range(pairs):

        def load() -> None:
            fresh = CheckpointReader(directory / "ours")
            entry = fresh.newest()
            assert entry is not None
            for name, array in fresh.read(entry).tensors("model.pdparams").items():
                np.copyto(buffers[int(name.split(".")[1])], array)

        record("load", load)
        record("paddle_load", lambda: paddle.load(str(directory / "theirs.pdparams")))
        record("hash", lambda: [hashlib.sha256(array).digest() for array in arrays])
        record("read", lambda: (directory / "theirs.pdparams").read_bytes())
    store.close()
    behind.close()
    shutil.rmtree(directory)
    return {
        "bytes": float(nbytes),
        "memory": float(memory),
        **{name: statistics.median(taken) for name, taken in times.items()},
    }


def measure_pins(directory: Path) -> dict[str, float]:
    store = CheckpointStore(directory)
    tiny = {"w": paddle.ones([10])}
    commits = [seconds(lambda: save(store, step, tiny)) for step in range(1, 31)]  # noqa: B023
    entry = store.entries()[-1]
    before = sum(
        path.lstat().st_size for path in directory.rglob("*") if path.suffix == ".pdparams" and not path.is_symlink()
    )
    pins = [seconds(lambda: store.tag(entry, f"tag{index}")) for index in range(30)]  # noqa: B023
    after = sum(
        path.lstat().st_size for path in directory.rglob("*") if path.suffix == ".pdparams" and not path.is_symlink()
    )
    alone = [seconds(lambda: save(store, step, tiny)) for step in range(100, 110)]  # noqa: B023
    name = store.candidate(200, 0).name

    def with_pins() -> None:
        many = {f"pin{i}": [name] for i in range(10)} | {"latest": [name]}
        store.save(step=200, epoch=0, files={"model.pdparams": tiny}, states={}, pins=many)

    ten_more = seconds(with_pins)
    return {
        "tiny_commit": statistics.median(commits),
        "tag": statistics.median(pins),
        "pin_in_a_save": max(0.0, ten_more - statistics.median(alone)) / 10,
        "pin_bytes": float(after - before),
    }


def measure_share(directory: Path, slices: int) -> dict[str, float]:
    """What background saves take of a training's time at an interval of 100 stalls: slices with a save and without."""
    width = 1448  # two layers of 8.4 MB
    model = paddle.nn.Sequential(paddle.nn.Linear(width, width), paddle.nn.ReLU(), paddle.nn.Linear(width, width))
    optimizer = paddle.optimizer.SGD(1e-4, parameters=model.parameters())
    x = paddle.rand([16, width])
    store = CheckpointStore(directory)
    numbers = iter(range(10**6))

    def train(steps: int) -> None:
        for _ in range(steps):
            model(x).mean().backward()
            optimizer.step()
            optimizer.clear_grad()

    def background_save() -> None:
        save(store, next(numbers), dict(model.state_dict()), background=True)

    def settle() -> None:
        store.wait()
        store.set_pins({"before": []})

    train(20)
    step = seconds(lambda: train(20)) / 20
    stalls = []
    for _ in range(5):
        stalls.append(seconds(background_save))
        settle()
    steps = max(1, round(100 * statistics.median(stalls) / step))
    ratios, shares = [], []
    for number in range(2 * slices):
        if number % 2 == 0:
            without = seconds(lambda: train(steps))
            continue
        with_save = seconds(lambda: (stalls.append(seconds(background_save)), train(steps))[1])
        settle()
        ratios.append(with_save / without)
        shares.append(stalls[-1] / with_save)
    store.close()
    return {"interval": steps * step, "stall_share": statistics.median(shares), "slower": statistics.median(ratios) - 1}


def verdicts(size: dict[str, float]) -> list[tuple[str, str, str, bool]]:
    """(promise, figure, bound, held) for one size; the bounds are those that the project promises."""
    stall_bound = 1.3 * size["copy"] + 0.010
    load_bound = 1.2 * max(size["hash"], size["read"]) + 0.5
    floor_share = size["floor"] / size["save"]
    return [
        ("P1 stall of a background save", ms(size["stall"]), f"<= {ms(stall_bound)}", size["stall"] <= stall_bound),
        (
            "P1 ... against the synchronous save",
            ms(size["stall"]),
            f"<= {ms(size['save'])}",
            size["stall"] <= size["save"],
        ),
        ("P3 of write + fsync + sha256", f"{floor_share:.2f}x", ">= 0.90x", floor_share >= 0.9),
        (
            "P3 against paddle.save + fsync",
            ms(size["save"]),
            f"< {ms(size['paddle_save'])}",
            size["save"] < size["paddle_save"],
        ),
        ("P5 choose + verify + load", ms(size["load"]), f"<= {ms(load_bound)}", size["load"] <= load_bound),
        (
            "P6 extra host memory",
            f"{size['memory'] / MB:.0f} MB",
            f"<= {size['bytes'] / MB + 64:.0f} MB",
            size["memory"] <= size["bytes"] + 64 * MB,
        ),
    ]


def ms(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


def megabytes_in(text: str) -> list[float]:
    sizes = [float(size) for size in text.split(",")]
    if not all(size > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes must be above 0, got {text}")
    return sizes


def existing_directory(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=megabytes_in, default="1,16,128,1024", help="state sizes in MB, comma separated"
    )
    parser.add_argument("--pairs", type=at_least_one, default=5)
    parser.add_argument(
        "--dir",
        type=existing_directory,
        default=None,
        help="a directory on the disk to measure; a temporary one by default",
    )
    parser.add_argument("--json", action="store_true", help="print figures in seconds and bytes for programs")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()} {platform.release()}",
        "versions": f"paddle {paddle.__version__}, numpy {np.__version__}, python {platform.python_version()}",
    }
    with tempfile.TemporaryDirectory(dir=arguments.dir) as root:
        results["sizes"] = {}
        for megabytes in arguments.sizes:
            results["sizes"][f"{megabytes:g}"] = measure_size(megabytes, arguments.pairs, fresh(Path(root) / "size"))
        results["small"] = measure_pins(fresh(Path(root) / "pins"))
        results["share"] = measure_share(fresh(Path(root) / "share"), 3 * arguments.pairs)
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    print(f"{results['machine']}; {results['versions']}; medians of {arguments.pairs} interleaved pairs\n")
    for megabytes, size in results["sizes"].items():
        gigabytes = size["bytes"] / 1e9
        print(
            f"{megabytes} MB: save {ms(size['save'])} ({gigabytes / size['save']:.2f} GB/s), paddle.save + fsync "
            f"{ms(size['paddle_save'])} ({gigabytes / size['paddle_save']:.2f} GB/s); "
            f"load verified {ms(size['load'])}, paddle.load {ms(size['paddle_load'])}"
        )
        for promise, figure, bound, held in verdicts(size):
            print(f"    {promise:<38} {figure:>12}   {bound:<16} {'yes' if held else 'NO'}")
        print(f"    deleting the checkpoint before it          {ms(size['delete']):>12}")
    share = results["share"]
    print(
        f"training 17 MB with a background save every {share['interval']:.2f} s (100 stalls): "
        f"P2 waits {share['stall_share']:.2%} of the time (<= 1 %), and is {share['slower']:+.2%} slower in all"
    )
    small = results["small"]
    print(f"tiny state: P4 commit {ms(small['tiny_commit'])} (<= 50 ms)")
    print(
        f"one more pin: P7 {ms(small['pin_in_a_save'])} within a save, {ms(small['tag'])} as a durable tag of its own "
        f"(<= 1 ms), {small['pin_bytes']:.0f} bytes (0)"
    )


def fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


if __name__ == "__main__":
    main()
