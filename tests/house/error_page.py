"""Provokes every error of the package once, for the examples of docs/errors.md.

python tests/house/error_page.py        the page's messages, written anew
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Module, Trainer, errors, load_weights
from paddlelite_trainer.callbacks import ModelCheckpoint, NonFiniteGuard, RemoteCopy

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def _run_in(folder: Path, **settings: Any) -> Trainer:
    settings = {"max_epochs": 1, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(default_root_dir=folder, **settings)
    trainer.fit(Classifier(), make_batches(), ckpt_path="last")
    return trainer


def configuration(folder: Path) -> None:
    Trainer(max_epochs=1, accumulate_grad_batches=0)


def configuration_type(folder: Path) -> None:
    ModelCheckpoint(save_top_k="3")


def no_trainer(folder: Path) -> None:
    Classifier().trainer.global_step  # noqa: B018


def data(folder: Path) -> None:
    quiet_trainer().fit(Classifier(), [])


def training(folder: Path) -> None:
    class Forgot(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

    quiet_trainer().fit(Forgot(), make_batches())


def non_finite(folder: Path) -> None:
    class Explodes(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * float("inf")

    quiet_trainer(callbacks=[NonFiniteGuard(action="stop")]).fit(Explodes(), make_batches())


def not_found(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).fit(Classifier(), make_batches(), ckpt_path=folder / "version_7")


def corrupt(folder: Path) -> None:
    trainer = _run_in(folder)
    (weights,) = trainer.run_dir.glob("checkpoints/step-*/model.pdparams")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    quiet_trainer(default_root_dir=folder).fit(Classifier(), make_batches(), ckpt_path=weights.parent)


def mismatch(folder: Path) -> None:
    class Wider(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.more = paddle.nn.Linear(2, 2)

    _run_in(folder)
    quiet_trainer(default_root_dir=folder, max_epochs=2).fit(Wider(), make_batches(), ckpt_path="last")


def save(folder: Path) -> None:
    class FillsTheDisk(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
            checkpoints = trainer.run_dir / "checkpoints"
            checkpoints.rmdir() if checkpoints.is_dir() else None
            checkpoints.write_text("a file where the directory was")

    _run_in(folder, callbacks=[FillsTheDisk()])


def remote(folder: Path) -> None:
    (folder / "file").write_text("no directory")
    _run_in(folder, callbacks=[RemoteCopy(f"file://{folder}/file/run", what="all")])


def unserializable(folder: Path) -> None:
    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"handle": open}

    _run_in(folder, callbacks=[Keeps()])


class _Command:
    def __reduce__(self) -> Any:
        return print, ("this would have run",)


def unsafe(folder: Path) -> None:
    (folder / "weights.pdparams").write_bytes(pickle.dumps({"weight": _Command()}))
    load_weights(Classifier(), folder / "weights.pdparams")


def locked(folder: Path) -> None:
    trainer = _run_in(folder)
    hold = "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    script = f"import sys, filelock; {hold}"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(trainer.run_dir / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        _run_in(folder, max_epochs=2)
    finally:
        holder.kill()
        holder.wait()


PROVOKED: dict[type[BaseException], Callable[[Path], None]] = {
    errors.ConfigurationError: configuration,
    errors.ConfigurationTypeError: configuration_type,
    errors.NoTrainerError: no_trainer,
    errors.DataError: data,
    errors.TrainingError: training,
    errors.NonFiniteError: non_finite,
    errors.CheckpointNotFoundError: not_found,
    errors.CheckpointCorruptError: corrupt,
    errors.CheckpointMismatchError: mismatch,
    errors.CheckpointSaveError: save,
    errors.RemoteError: remote,
    errors.UnserializableStateError: unserializable,
    errors.UnsafePickleError: unsafe,
    errors.RunLockedError: locked,
}


def message_of(error: type[BaseException], folder: Path) -> str:
    """What it says, with the folder named `runs` and numbers of processes and times named as such."""
    try:
        PROVOKED[error](folder)
    except error as raised:
        assert type(raised) is error, type(raised)
        text = str(raised).replace(str(folder), "runs")
        return re.sub(r"\b(pid|process) \d+", r"\1 4711", text)
    raise AssertionError(f"{error.__name__} was not raised")


def written(page: str, error: type[BaseException]) -> str | None:
    """The message that the page gives for an error, or None."""
    found = re.search(rf"^## {error.__name__}\n.*?^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    return None if found is None else found.group(1)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for error in PROVOKED:
        with tempfile.TemporaryDirectory() as folder:
            message = message_of(error, Path(folder))
        before = written(page, error)
        print(f"{error.__name__}\n  {message}\n")
        if before is not None:
            start, section, rest = page.partition(f"## {error.__name__}\n")
            rest = rest.replace(f"```text\n{before}\n```", f"```text\n{message}\n```", 1)
            page = start + section + rest
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
