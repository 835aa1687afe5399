"""Workers that are spawned instead of forked: the same batches, and what only they can fail of is one clear sentence.

What they share with forked ones is tested for both, in the other files of this directory.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from loaders import Augmented, AugmentedStream, Loader, augmented, noisy_collate, plain, read, source
from paddle.io import Dataset, IterableDataset, TensorDataset

from paddlelite_trainer import Trainer
from paddlelite_trainer.data import worker_pool
from paddlelite_trainer.data.handing_over import handed_over
from paddlelite_trainer.data.module import DataModule
from paddlelite_trainer.data.whole import loader_of
from paddlelite_trainer.data.workers import Workers
from paddlelite_trainer.errors import ConfigurationError, DataError
from paddlelite_trainer.importing import module_named

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a new process cannot be given a descriptor of memory."""
    monkeypatch.setattr(worker_pool, "HANDS_OVER_DESCRIPTORS", False)


# -- the same batches --------------------------------------------------------------------------------------------------


class OfEveryKind(Dataset):
    """Random numbers of three libraries, in the default type, and Tensors that the dataset holds."""

    def __init__(self) -> None:
        self.tensors = [paddle.to_tensor([index], dtype="bfloat16") for index in range(20)]
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        _, numbers = Augmented()[index]
        return {"numbers": numbers, "drawn": paddle.rand([2]), "held": self.tensors[index], "epoch": self.epoch}


def described(batch: Any) -> Any:
    return {
        name: (str(field.dtype), field.astype("float64").tolist(), str(field.place)) for name, field in batch.items()
    }


def test_a_spawned_worker_makes_the_batches_of_this_process_and_of_a_fork() -> None:
    found: dict[str, Any] = {}
    paddle.set_default_dtype("float64")
    try:
        for context, settings in (
            ("none", {"num_workers": 0}),
            ("fork", {"num_workers": 1}),
            ("spawn", {"num_workers": 1, "persistent_workers": True}),
        ):
            batches = source(Loader(OfEveryKind(), batch_size=3, shuffle=True, **settings))
            batches = source(batches.loader, multiprocessing_context="auto" if context == "none" else context)
            found[context] = []
            for epoch in range(2):
                batches.tell_epoch(epoch)
                found[context].append([described(batch) for batch in batches.epoch(epoch, epoch)])
            batches.close()
    finally:
        paddle.set_default_dtype("float32")
    assert found["none"][0][0]["drawn"][0] == "paddle.float64"
    assert found["spawn"] == found["fork"] == found["none"]


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_spawned_workers_read_an_iterable_dataset_as_forked_ones(workers: int) -> None:
    def epochs(context: str) -> list[Any]:
        settings = {"num_workers": workers, "persistent_workers": True, "collate_fn": noisy_collate}
        batches = source(Loader(AugmentedStream(), batch_size=3, **settings), multiprocessing_context=context)
        found = [read(batches, *position) for position in ((0, 0), (1, 0), (1, 4))]
        batches.close()
        return found

    assert epochs("spawn") == epochs("fork")


@pytest.mark.soak
def test_a_worker_s_import_is_no_part_of_the_time_that_a_batch_may_take() -> None:
    batches = source(Loader(SlowToArrive(4), batch_size=2, num_workers=1, timeout=2), multiprocessing_context="spawn")
    assert read(batches, 0) == [[0, 1], [2, 3]]
    batches.close()


@pytest.mark.soak
@pytest.mark.parametrize("settings", [{}, {"persistent_workers": True}])
def test_batches_through_the_pipe_are_the_same(settings: dict[str, Any], through_the_pipe: None) -> None:
    reference = [read(source(augmented()), epoch) for epoch in range(2)]
    batches = source(augmented(num_workers=2, multiprocessing_context="spawn", **settings))
    assert [read(batches, epoch, 2 * epoch) for epoch in range(2)] == [reference[0], reference[1][2:]]
    batches.close()


class Large(Dataset):
    """A batch is much more than a pipe holds, and so are the indices of one."""

    def __len__(self) -> int:
        return 80_000

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full([10], index)


class Reused(IterableDataset):
    """Every sample is the same array, filled anew."""

    def __iter__(self) -> Iterator[Any]:
        array = np.zeros([4])
        for index in range(12):
            array[:] = index
            yield array


@pytest.mark.soak
def test_large_tasks_and_batches_through_the_pipe_hold_nobody_up(through_the_pipe: None) -> None:
    settings = {"num_workers": 2, "multiprocessing_context": "spawn", "prefetch_factor": 3}
    batches = source(Loader(Large(), batch_size=10_000, shuffle=True, **settings))
    seen = np.concatenate([batch.numpy()[:, 0] for batch in batches.epoch(0)])
    batches.close()
    assert sorted(seen) == list(range(80_000))
    stream = source(Loader(Reused(), batch_size=None, **settings))
    assert [batch.tolist()[0] for batch in stream.epoch(0)] == [index for index in range(12) for _ in range(2)]
    stream.close()


@pytest.mark.soak
def test_what_goes_wrong_behind_the_pipe_is_told_in_the_same_words(through_the_pipe: None) -> None:
    settings = {"num_workers": 2, "multiprocessing_context": "spawn"}
    batches = source(Loader(Broken("raise"), batch_size=3, **settings))
    with pytest.raises(KeyError, match="no such picture") as caught:
        list(batches.epoch(0))
    assert "raised by sample 13 of Broken" in caught.value.__notes__
    batches = source(Loader(Broken("die"), batch_size=3, **settings))
    with pytest.raises(DataError, match=r"worker \d \(pid \d+\) was killed by SIGKILL while loading a batch"):
        list(batches.epoch(0))
    batches = source(Loader(Broken("stop"), batch_size=3, timeout=1, **settings))
    with pytest.raises(DataError, match="gave no batch within timeout=1 s"):
        list(batches.epoch(0))


class Broken(Dataset):
    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == 13:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "stop":
                time.sleep(60)
            raise KeyError("no such picture")
        return index


class SlowToArrive(Dataset):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        return index

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(3)
        self.__dict__.update(state)


def test_workers_that_are_spawned_again_and_again_are_told_of_once(recwarn: pytest.WarningsRecorder) -> None:
    for settings, told in (({}, 1), ({"persistent_workers": True}, 0)):
        loader = Loader(SlowToArrive(2), num_workers=1, **settings)
        workers = Workers(loader, seed=1, name="train_dataloader", multiprocessing_context="spawn")
        for epoch in range(3):
            with workers.of_epoch(epoch):
                pass
            workers.close()
        texts = [str(one.message) for one in recwarn if "are spawned anew for every epoch" in str(one.message)]
        assert len(texts) == told
        assert all("train_dataloader: its workers" in text and "persistent_workers=True" in text for text in texts)
        recwarn.clear()


# -- which way they start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "methods", "expected"),
    [
        ("linux", ["fork", "spawn"], "fork"),
        ("darwin", ["spawn", "fork"], "spawn"),
        ("win32", ["spawn"], "spawn"),
    ],
)
def test_workers_fork_where_that_is_safe(
    platform: str, methods: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    assert worker_pool.start_method("auto") == expected
    assert worker_pool.start_method("spawn") == "spawn"


def test_another_way_is_refused_and_so_is_a_fork_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"Trainer\(multiprocessing_context=...\) must be 'auto', 'spawn' or"):
        Trainer(max_epochs=1, multiprocessing_context="forkserver")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ConfigurationError, match=r"where the system has it, 'fork', got 'fork'"):
        Trainer(max_epochs=1, multiprocessing_context="fork")


def test_the_loaders_made_here_have_workers_where_paddle_s_own_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.warns(UserWarning, match="num_workers = 0"):
        assert Loader(Holding(1), num_workers=2).num_workers == 0
    datamodule = DataModule.from_datasets(Holding(1), batch_size=2, num_workers=2)
    assert loader_of("fit", "train_dataloaders", [1, 2], 2, 3, None).num_workers == 3
    assert datamodule.train_dataloader().num_workers == 2


# -- what cannot be handed over ----------------------------------------------------------------------------------------


class Holding(Dataset):
    def __init__(self, what: Any) -> None:
        self.what = what

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


class Stubborn(Holding):
    def __getstate__(self) -> Any:
        raise RuntimeError("I stay here")


def local_class() -> Any:
    class Local(Holding):
        pass

    return Local(1)


def local_function() -> Any:
    def keep(samples: Any) -> Any:
        return samples

    return keep


def of_a_notebook() -> Any:
    return type("InACell", (Holding,), {"__module__": "__main__", "__qualname__": "InACell"})


LAMBDA = r"is a lambda \(test_spawned_workers.py, line \d+\): write it as a function, by `def` at the top level of a m"
LOCAL = r"which is defined within a function: define it at the top level of a module"
CANNOT = r"which cannot be pickled \(.*\): make it where it is first used, in __getitem__ or worker_init_fn, or leave"
UNPICKLABLE = {
    "lambda": (lambda: {"collate_fn": lambda samples: samples}, f"collate_fn {LAMBDA}"),
    "local function": (lambda: {"collate_fn": local_function()}, rf"collate_fn is the function keep \(.*\), {LOCAL}"),
    "worker_init_fn": (lambda: {"worker_init_fn": lambda worker: None}, f"worker_init_fn {LAMBDA}"),
    "local class": (lambda: {"dataset": local_class()}, f"dataset is a Local, {LOCAL}"),
    "lambda within": (
        lambda: {"dataset": Holding([paddle.nn.ReLU, {"to": functools.partial(map, lambda x: x)}])},
        rf"dataset\.what\[1\]\['to'\]\.args\[0\] {LAMBDA}",
    ),
    "open file": (lambda: {"dataset": Holding(sys.__stderr__)}, rf"dataset\.what is a TextIOWrapper, {CANNOT}"),
    "lock": (lambda: {"dataset": Holding({"a": threading.Lock()})}, rf"dataset\.what\['a'\] is a lock, {CANNOT}"),
    "generator": (lambda: {"dataset": Holding(x for x in "ab")}, rf"dataset\.what is a generator, {CANNOT}"),
    "a class's own refusal": (
        lambda: {"dataset": Stubborn(1)},
        r"dataset is a Stubborn, which cannot be pickled \(I stay here\)",
    ),
    "notebook": (
        lambda: {"dataset": of_a_notebook()(1)},
        r"dataset is a InACell, which is defined in a notebook or typed in, where no other process finds it: write it",
    ),
}


@pytest.mark.parametrize("kind", UNPICKLABLE)
def test_what_cannot_be_pickled_is_named_with_what_to_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, text = UNPICKLABLE[kind]
    if kind == "notebook":
        main = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
    parts = {"dataset": Holding(1), **make()}
    batches = source(
        Loader(parts.pop("dataset"), batch_size=2, num_workers=2, **parts), multiprocessing_context="spawn"
    )
    instead = r"Or fork the workers, Trainer\(multiprocessing_context='fork'\), or set num_workers=0\."
    with pytest.raises(DataError, match=rf"^train_dataloader: .* by pickle, and its {text}.*{instead}") as caught:
        list(batches.epoch(0))
    assert "\n" not in str(caught.value)


def test_a_map_of_a_file_is_handed_over_as_one(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.arange(3000.0).reshape(3, 1000))
    array = np.load(tmp_path / "many.npy", mmap_mode="r")
    pickled = handed_over(Holding([array, array[1:]]))
    assert len(pickled) < 20_000  # of 24,000 and 16,000 bytes, of which one is a copy
    whole, part = pickle.loads(pickled).what
    assert isinstance(whole, np.memmap) and whole.filename == array.filename
    assert (whole == array).all() and (part == array[1:]).all()


def test_tensors_come_out_as_they_went_in() -> None:
    held = [paddle.to_tensor([1, 2]), paddle.to_tensor(0.5), paddle.to_tensor([1.5], dtype="bfloat16")]
    dataset, layer = pickle.loads(handed_over([TensorDataset(held[:1]), paddle.nn.Linear(2, 2).weight]))
    assert dataset[1][0].tolist() == 2 and layer.shape == [2, 2]
    found = pickle.loads(handed_over(Holding([*held, held[0]]))).what
    assert [(one.dtype, one.shape, plain(one.astype("float32"))) for one in found[:3]] == [
        (one.dtype, one.shape, plain(one.astype("float32"))) for one in held
    ]
    assert found[3] is found[0]


# -- scripts -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, warnings
if __name__ == "__main__":
    warnings.simplefilter("ignore")  # in this process alone: the workers have to be quiet by themselves
import numpy as np, paddle
from paddlelite_trainer import Trainer
from models import Classifier

class Data(paddle.io.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return np.random.randn(4).astype("float32"), index % 3

def train():
    loader = paddle.io.DataLoader(Data(), batch_size=2, num_workers=1)
    quiet = {{"enable_progress_bar": False, "enable_model_summary": False, "logger": False}}
    trainer = Trainer(max_epochs=1, multiprocessing_context="spawn", seed=1, **quiet)
    trainer.fit(Classifier(), loader)
    print("TRAINED", trainer.global_step, flush=True)

print("IMPORTED as", __name__, flush=True)
{end}
"""


def run_script(directory: Path, end: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = directory / "train.py"
    script.write_text(SCRIPT.format(end=textwrap.dedent(end)))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **options}
    return subprocess.run(
        [sys.executable, str(script)], env=env, cwd=directory, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_script_s_workers_are_quiet_and_import_it_without_training(tmp_path: Path) -> None:
    done = run_script(tmp_path, 'if __name__ == "__main__":\n    train()')
    assert done.returncode == 0, done.stderr
    assert "TRAINED 4" in done.stdout
    assert done.stdout.count("IMPORTED as __mp_main__") == 1
    assert done.stderr == ""


def test_a_script_that_trains_as_it_is_imported_is_one_clear_error(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train()")
    assert done.returncode == 1
    assert "train_dataloader: this script trains, or makes a Trainer of several ranks, as it is imported" in done.stderr
    assert "Put that under `if __name__ == '__main__':`" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "TRAINED" not in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1


IMPORTED = """
import sys
import paddle
from models import Classifier, make_batches
from paddlelite_trainer import Trainer

class Data(paddle.io.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index

Trainer(max_epochs=1, default_root_dir={root!r}, logger=False).fit(Classifier(), make_batches(1))
"""


@pytest.mark.soak
def test_a_worker_that_imports_another_script_s_class_does_not_train_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script_of_a_dataset.py").write_text(IMPORTED.format(root=str(tmp_path / "runs")))
    monkeypatch.syspath_prepend(tmp_path)
    dataset = module_named("script_of_a_dataset").Data()
    batches = source(Loader(dataset, batch_size=2, num_workers=1), multiprocessing_context="spawn")
    assert read(batches, 0) == [[0, 1], [2, 3]]
    assert not (tmp_path / "runs").exists()


@pytest.mark.soak
def test_a_class_below_the_guard_is_one_clear_error(tmp_path: Path) -> None:
    end = """
    if __name__ == "__main__":
        class Below(Data):
            pass
        Data = Below
        train()
    """
    done = run_script(tmp_path, end)
    assert done.returncode == 1
    assert "DataError: a spawned worker could not make what it was handed" in done.stderr
    assert "Can't get attribute 'Below'" in done.stderr
    assert "and not below `if __name__ == '__main__':`" in done.stderr


@pytest.mark.soak
def test_a_script_that_fails_as_it_is_imported_is_named(tmp_path: Path) -> None:
    done = run_script(tmp_path, 'if __name__ == "__main__":\n    train()\nelse:\n    raise OSError("no licence")')
    assert done.returncode == 1
    assert "OSError: no licence" in done.stderr
    assert "worker 0 (pid" in done.stderr
    assert "ended with exit code 1 as it was started. A spawned worker imports this script" in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_start_ends_the_run_without_their_words(number: signal.Signals, tmp_path: Path) -> None:
    end = f"""
    import os, signal, time
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        train()
    else:
        os.killpg(0, {int(number)})
        time.sleep(2)
    """
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(end=textwrap.dedent(end)))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=60)  # a worker that lived on would hold the pipes open
    assert process.returncode != 0
    assert errors.count("Traceback") <= 1
    assert "_fixup_main" not in errors
    assert "Termination signal" not in errors


@pytest.mark.soak
def test_a_preempted_run_does_not_wait_for_workers_that_do_not_come_up(tmp_path: Path) -> None:
    end = """
    import multiprocessing, os, signal, threading, time
    class Data(Data):
        def __init__(self):
            self.held = np.zeros([1_000_000])  # more than a pipe takes
    def preempt():
        while not multiprocessing.active_children():
            time.sleep(0.01)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
    if __name__ == "__main__":
        threading.Thread(target=preempt, daemon=True).start()
        train()
    else:
        time.sleep(90)
    """
    began = time.monotonic()
    done = run_script(tmp_path, end)
    assert done.returncode == 75, done.stderr
    assert time.monotonic() - began < 60
