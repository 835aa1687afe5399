"""Trains with a RemoteCopy and is killed (SIGKILL) at one of the calls that reach the remote.

    python tests/callbacks/remote_killed.py ROOT URL NAME ENDING NTH

At the NTH call of that name whose path has that ending.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
import small_runs  # noqa: E402
from remote_support import hook  # noqa: E402

import conftest  # noqa: E402, F401  maps callbacks/ into the package
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy  # noqa: E402


def main(root: str, url: str, name: str, ending: str, nth: int) -> None:
    copy = RemoteCopy(url)
    seen = []

    def around(number: int, called: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        path = str(args[1] if called in ("put_file", "mv") else args[0])
        if called == name and path.endswith(ending):
            seen.append(path)
            if len(seen) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return call()

    hook(copy.remote, around)
    keep = ModelCheckpoint(monitor="val_loss", every_n_train_steps=1, save_top_k=2)
    trainer = small_runs.trainer(Path(root), [keep, copy], max_epochs=3)
    trainer.fit(small_runs.net(), small_runs.batches(), small_runs.batches(2, 5), ckpt_path="last")


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
