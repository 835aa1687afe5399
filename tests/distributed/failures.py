"""Runs jobs of two ranks one after the other, in each of which one rank fails in a way of its own.

python failures.py OUT CASE...            "CASE, again" right after CASE runs its command once more, and nobody fails

"1 WAY in PLACE" is what rank 1 does, "* WAY in PLACE" what both do.

The ranks are forked here, once Paddle is imported, each into a session of its own: what is left of it afterwards is an
orphan. Of each job results.jsonl has how its ranks ended and what they left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from forked import free_ports, start_rank

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.machine import meeting

MUST_END_SECONDS = 30
FAILS_AT = 4  # steps, of 9
MOMENT = "moment"


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def exhaust_memory() -> None:
    raise MemoryError("Unable to allocate 42 TiB")


def raise_it() -> None:
    raise ValueError("a cosmic ray")


WAYS: dict[str, Callable[[], Any]] = {
    "raises": raise_it,
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "leaves by os._exit": lambda: os._exit(3),
    "leaves by sys.exit": lambda: sys.exit(4),
    "leaves by sys.exit(0)": lambda: sys.exit(0),
    "runs out of memory": exhaust_memory,
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hangs": lambda: time.sleep(1000),
    "takes longer": lambda: time.sleep(float(os.environ["TAKES_SECONDS"])),
}


class TakesTwo(Exception):
    """Pickle does not bring it back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Plan:
    """`case` is "rank WAY in PLACE"; the moment at which it happens is left in `root`."""

    def __init__(self, case: str, rank: int, root: Path) -> None:
        self.root = root
        self.is_mine = case[:1] in ("*", str(rank))
        self.way, _, self.place = case[2:].partition(" in ")
        self.done = False

    def act(self, place: str, step: int) -> None:
        if self.is_mine and place == self.place and step >= FAILS_AT and not self.done:
            self.done = True
            (self.root / MOMENT).write_text(str(time.time()))
            WAYS.get(self.way, bool)()

    def full_disk(self, *_: Any, **__: Any) -> None:
        (self.root / MOMENT).write_text(str(time.time()))
        full_disk()


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __init__(self, plan: Plan, place: str, owner: Any) -> None:
        self.plan, self.place, self.owner = plan, place, owner

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index >= 20 or self.place == "the dataset":
            self.plan.act(self.place, self.owner.global_step if self.place == "the dataset" else FAILS_AT)
        return np.random.RandomState(index).randn(4).astype("float32") + np.float32(np.random.randn() * 0.01)


class Share(paddle.io.IterableDataset):  # type: ignore[misc]
    """Of a length that nobody knows, so that the ranks agree before each batch whether there is one."""

    def __init__(self, plan: Plan, owner: Any) -> None:
        self.plan, self.owner = plan, owner

    def __iter__(self) -> Any:
        for index in range(12):
            self.plan.act("a share of the data", self.owner.global_step)
            yield np.random.RandomState(index).randn(4).astype("float32")


class Net(Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        paddle.seed(7)
        self.plan = plan
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(4, 6), paddle.nn.BatchNorm1D(6), paddle.nn.Dropout(0.2), paddle.nn.Linear(6, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.plan.act("the step", self.global_step)
        loss = self.net(batch).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def on_before_backward(self, loss: Any) -> None:
        self.plan.act("the hook before backward", self.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.plan.act("validation", self.global_step)
        self.log("score", self.net(batch).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


class Fails(Callback):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.plan.act("a hook", trainer.global_step)
        if self.plan.way == "calls a barrier" and self.plan.is_mine and trainer.global_step == FAILS_AT:
            trainer.ranks.barrier()
        if self.plan.place == "a save" and self.plan.is_mine and trainer.global_step >= FAILS_AT:
            trainer.checkpoints.save = self.plan.full_disk

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        if self.plan.place == "the hook of a save" and self.plan.is_mine and trainer.global_step >= FAILS_AT:
            raise TakesTwo("flood", "fire")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.plan.act("the hook at an epoch's end", trainer.global_step)


def train(case: str, root: Path, rank: int) -> None:
    plan = Plan(case, rank, root)
    module = Net(plan)
    if plan.way == "hangs":
        meeting.TELL_SECONDS = 1.0
    if plan.place == "the time before its Trainer":
        paddle.distributed.init_parallel_env()
        plan.act(plan.place, FAILS_AT)
    trainer = Trainer(
        max_epochs=3,
        callbacks=[ModelCheckpoint(every_n_train_steps=1, monitor="score"), Fails(plan)],
        default_root_dir=root,
        run_name="run",
        seed=5,
        rank_timeout={"seconds": 3 if plan.way == "hangs" else 900},
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    workers = {"num_workers": 1, "use_shared_memory": False} if plan.place == "a loader's worker" else {}
    place = plan.place if workers else "the dataset"
    loaders = [
        paddle.io.DataLoader(Numbers(plan, place, module), batch_size=4, shuffle=True, **workers),
        paddle.io.DataLoader(Numbers(plan, "", module), batch_size=7),
    ]
    if plan.place == "a share of the data":
        loaders[0] = paddle.io.DataLoader(Share(plan, module), batch_size=4)
    if plan.place == "a step whose error is caught":
        plan.place = "the step"
        try:
            trainer.fit(module, *loaders, ckpt_path="last")
        except ValueError:
            time.sleep(1000)
    trainer.fit(module, *loaders, ckpt_path="last")
    state = [value.numpy() for value in module.state_dict().values()]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in state)).hexdigest()
    end = {"weights": digest, "history": trainer.history, "step": trainer.global_step}
    (root / f"rank{rank}.json").write_text(json.dumps(end))


def in_session(leader: int) -> list[int]:
    """Processes that a rank has left."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.name))
    return found


def job(case: str, root: Path) -> dict[str, Any] | None:
    """Start two ranks and wait for both; None in a rank, which goes on to train."""
    root.mkdir(exist_ok=True)
    for old in [*root.glob("rank*.json"), *root.glob(MOMENT)]:
        old.unlink()
    ports, pids = free_ports(3), []
    for rank in (0, 1):
        pid = start_rank(root, rank, 2, ports)
        if pid == 0:
            sys.argv = [sys.argv[0], case]
            train(case, root, rank)
            return None
        pids.append(pid)
    codes: dict[int, int | str] = {}
    patience = MUST_END_SECONDS + float(os.environ.get("TAKES_SECONDS", "0")) + 30  # the start, and what it has trained
    deadline = time.monotonic() + patience
    while len(codes) < 2 and time.monotonic() < deadline:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    ended_at = time.time()
    time.sleep(0.3)  # workers see that their parent is gone
    orphans = 0
    for rank, pid in enumerate(pids):
        left = [one for one in in_session(pid) if rank in codes]
        orphans += len(left)
        if rank not in codes:
            codes[rank] = "never ended"
        for one in (*left, *([] if isinstance(codes[rank], int) else [pid])):
            os.kill(one, signal.SIGKILL)
    ends = [root / f"rank{rank}.json" for rank in (0, 1)]
    return {
        "codes": [codes[rank] for rank in (0, 1)],
        "orphans": orphans,
        "seconds": ended_at - float((root / MOMENT).read_text()) if (root / MOMENT).exists() else None,
        "logs": [(root / f"log{rank}").read_text(errors="replace") for rank in (0, 1)],
        "ends": [json.loads(path.read_text()) if path.exists() else None for path in ends],
        "log paths": [str(root / f"log{rank}") for rank in (0, 1)],
    }


def main() -> None:
    out = Path(sys.argv[1])
    with (out / "results.jsonl").open("a") as file:
        for number, case in enumerate(sys.argv[2:]):
            is_again = case.endswith(", again")
            found = job("nobody fails" if is_again else case, out / str(number - is_again))
            if found is None:
                return  # this is a rank, at its end
            print(json.dumps([case, found]), file=file, flush=True)


if __name__ == "__main__":
    main()
