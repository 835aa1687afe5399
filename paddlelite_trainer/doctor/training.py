"""Checks of a fit on one device: the bits of a loop by hand, of a resumed run, and what the Trainer costs beside it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle
from paddle.io import DataLoader

from ..callbacks import ModelCheckpoint
from ..machine.device import resolve_device
from ..machine.precision import PRECISIONS
from .finding import Finding
from .workload import (
    SCALER,
    EachStep,
    Network,
    Numbers,
    batches,
    bits,
    by_hand,
    microseconds_by_hand,
    microseconds_by_trainer,
    trainer,
    why_not,
)

STEPS = 6
MOST_ADDED_US, MOST_ADDED_SHARE = 60.0, 0.03
REPORT_IT = "attach the report to a bug report: this should not be"
_READS = ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__")


def checks(quick: bool) -> Iterator[tuple[str, Callable[[], Finding]]]:
    resolve_device().activate()
    for precision in PRECISIONS:
        name = f"{precision} beside a loop by hand"
        yield name, lambda precision=precision, name=name: check_precision(precision, name)  # type: ignore[misc]
    yield "resume from every step", lambda: check_resume(quick)
    yield "reads of the device by the host", check_reads
    yield "waits of the host in a step", check_waits
    yield "what a step costs", lambda: check_overhead(quick)
    yield "what a loader costs", lambda: check_loader(quick)
    yield "batches copied ahead", lambda: check_prefetch(quick)


def check_precision(precision: str, check: str) -> Finding:
    note = why_not(precision)
    if note is not None:
        return Finding(check, "not possible here", note)
    given = batches(STEPS)
    if precision == "64-true":
        given = [[x.astype("float64"), y] for x, y in given]
    expected, each = by_hand(given, precision), EachStep()
    options = {"scaler_options": SCALER} if precision.startswith("16") else {}
    trainer(each, max_steps=STEPS, precision=precision, precision_options=options).fit(Network(), given)
    same = sum(one == other for one, other in zip(each.seen, expected))
    numbers = {"steps": STEPS, "same": same}
    if each.seen == expected:
        return Finding(check, "ok", f"the same bits after each of {STEPS} steps", numbers=numbers)
    if by_hand(given, precision) != expected:
        words = "the loop by hand itself has other bits each time"
        remedy = "some kernels are not deterministic here; Trainer(deterministic=True) asks for those that are"
        return Finding(check, "warning", words, remedy, numbers)
    return Finding(
        check, "failed", f"other bits than the loop by hand: {same} of {STEPS} steps are the same", REPORT_IT, numbers
    )


def check_resume(quick: bool) -> Finding:
    """A network with dropout, shuffled data; each step's checkpoint is gone on from to the end."""
    check = "resume from every step"
    loader = DataLoader(Numbers(5 * 8), batch_size=8, shuffle=True)

    def fit(root: str, *callbacks: Any, **options: Any) -> Network:
        module = Network(dropout=0.2)
        saving = {"default_root_dir": root, "run_name": "run", "enable_checkpointing": bool(callbacks)}
        trainer(*callbacks, max_epochs=2, **saving).fit(module, loader, **options)
        return module

    with tempfile.TemporaryDirectory(prefix="paddlelite-doctor-") as root:
        whole = bits(fit(root, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)))
        saved = sorted((Path(root) / "run/checkpoints").glob("step-*"))
        tried = saved[:: 3 if quick else 1]
        same = [bits(fit(root, ckpt_path=path)) == whole for path in tried]
    numbers = {"steps": len(tried), "same": sum(same)}
    if all(same):
        return Finding(check, "ok", f"the same bits in the end from each of {len(tried)} steps", numbers=numbers)
    words = f"{len(tried) - sum(same)} of {len(tried)} resumed runs ended with other bits"
    remedy = "if a loop by hand differs each time too, kernels are not deterministic: Trainer(deterministic=True)"
    return Finding(check, "failed", words, remedy, numbers)


def check_reads() -> Finding:
    """How often Python asks for a Tensor's numbers in a step, for which the host waits for the device.

    Paddle's own functions may do so too: what the loop by hand has is not counted.
    """
    check, given = "reads of the device by the host", batches(20)
    network = Network()
    optimizer = network.configure_optimizers()
    with _counted_reads() as by_itself:
        for number, batch in enumerate(given):
            network.training_step(batch, number).backward()
            optimizer.step()
            optimizer.clear_grad()
    with _counted_reads() as counts:
        trainer(max_epochs=1).fit(Network(), given)
    more = sum(counts.values()) - sum(by_itself.values())
    numbers = {"steps": len(given), "by_hand": dict(by_itself), "with_trainer": dict(counts)}
    words = f"{sum(by_itself.values())} in {len(given)} steps by hand, {max(0, more)} more in a fit"
    if more < len(given):
        return Finding(check, "ok", f"{words}: none more in a step", numbers=numbers)
    return Finding(check, "failed", f"{words}: {more / len(given):.1f} a step", REPORT_IT, numbers)


@contextmanager
def _counted_reads() -> Iterator[dict[str, int]]:
    counts: dict[str, int] = {}
    originals = {name: getattr(paddle.Tensor, name) for name in _READS if hasattr(paddle.Tensor, name)}

    def counting(name: str, original: Any) -> Any:
        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return original(self, *arguments, **options)

        return counted

    for name, original in originals.items():
        setattr(paddle.Tensor, name, counting(name, original))
    try:
        yield counts
    finally:
        for name, original in originals.items():
            setattr(paddle.Tensor, name, original)


class Heavy(Network):
    """A step whose work on the device takes long and whose asking for it does not."""

    def __init__(self, products: int, size: int = 2048) -> None:
        super().__init__()
        self.products, self.big = products, paddle.randn([size, size]) / size
        self.moments: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.moments.append(time.perf_counter())
        queue(self.big, self.products)
        return super().training_step(batch, batch_idx)


def queue(big: Any, products: int) -> None:
    with paddle.no_grad():
        product = big
        for _ in range(products):
            product = paddle.matmul(product, big)


def check_waits() -> Finding:
    """Whether a step returns while the device is still busy with it."""
    check, device = "waits of the host in a step", resolve_device()
    if not device.is_accelerator:
        return Finding(check, "not possible here", "the CPU computes at once")
    products, asked, took = 4, 0.0, 0.0
    big = paddle.randn([2048, 2048]) / 2048
    while took < 0.05 and products < 256:
        products *= 2
        device.synchronize()
        began = time.perf_counter()
        queue(big, products)
        asked = time.perf_counter() - began
        device.synchronize()
        took = time.perf_counter() - began
    if asked > took / 2:
        return Finding(check, "not possible here", f"{device.name} computes at once, while it is asked")
    heavy = Heavy(products)
    trainer(max_epochs=1).fit(heavy, batches(5))
    device.synchronize()
    between = [(later - earlier) * 1e3 for earlier, later in zip(heavy.moments, heavy.moments[1:])]
    numbers = {"device_ms": round(took * 1e3, 1), "host_ms": [round(one, 1) for one in between]}
    words = f"the host asks for a step in {min(between):.1f} ms, and the device computes it in {took * 1e3:.0f} ms"
    if min(between) < took * 1e3 / 2:
        return Finding(check, "ok", words, numbers=numbers)
    return Finding(check, "failed", f"a step waits for the device: {words}", REPORT_IT, numbers)


def check_overhead(quick: bool) -> Finding:
    given = batches(60 if quick else 300)
    pairs = [(microseconds_by_hand(given), microseconds_by_trainer(given)) for _ in range(3 if quick else 9)]
    return _compared("what a step costs", "a step of a tiny network", pairs)


def check_loader(quick: bool) -> Finding:
    workers = 1

    def loader() -> DataLoader:
        return DataLoader(Numbers(32 * (40 if quick else 200)), batch_size=32, num_workers=workers, shuffle=True)

    pairs = [(microseconds_by_hand(loader()), microseconds_by_trainer(loader())) for _ in range(2 if quick else 5)]
    return _compared("what a loader costs", f"a step on a DataLoader with {workers} worker", pairs)


def _compared(check: str, what: str, pairs: list[tuple[float, float]]) -> Finding:
    """By the median of the differences: a pair is measured one right after the other."""
    hand, added = statistics.median(one for one, _ in pairs), statistics.median(two - one for one, two in pairs)
    numbers = {"hand_us": round(hand, 1), "added_us": round(added, 1), "rounds": len(pairs)}
    words = f"{what}: {hand:.0f} us by hand, {added:+.0f} us with the Trainer"
    if added <= max(MOST_ADDED_US, hand * MOST_ADDED_SHARE):
        return Finding(check, "ok", words, numbers=numbers)
    remedy = "run it again on a machine that does nothing else; if it stays, attach the report to a bug report"
    return Finding(check, "warning", words, remedy, numbers)


def check_prefetch(quick: bool) -> Finding:
    """Steps on batches that come from a worker, with their copies ahead of the steps and within them."""
    check = "batches copied ahead"
    if not resolve_device().is_accelerator:
        return Finding(check, "not possible here", "on the CPU there is nothing to copy")
    width, count = (4096, 12) if quick else (65536, 40)
    found = {}
    for prefetch in (False, True, "auto"):
        loader = DataLoader(Numbers(64 * count, width), batch_size=64, num_workers=1)
        module = Network(width)
        found[str(prefetch)] = microseconds_by_trainer(loader, 1, module, prefetch_to_device=prefetch)
    numbers = {name: round(one) for name, one in found.items()}
    words = ", ".join(f"{one / 1e3:.1f} ms a step with {name}" for name, one in found.items())
    words = f"prefetch_to_device: {words}"
    if found["auto"] > 1.15 * min(found["False"], found["True"]):
        better = "True" if found["True"] < found["False"] else "False"
        return Finding(
            check, "warning", words, f"pass prefetch_to_device={better} if your own steps show the same", numbers
        )
    return Finding(check, "ok", words, numbers=numbers)
