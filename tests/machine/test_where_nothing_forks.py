"""Without what Windows lacks: every part is imported, a fit runs and is resumed, and workers are spawned."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Python's own libraries and filelock choose by platform as they are imported, so they come before the names are hidden.
# A spawned worker imports this script too, and so they are hidden in it before it comes to its work. WNOHANG stays:
# Python on Linux waits for processes with it.
PROGRAM = """
import concurrent.futures, multiprocessing, os, pathlib, select, shutil, signal, subprocess, sys, tempfile, types
import multiprocessing.connection, multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker
if __name__ == "__main__":
    multiprocessing.resource_tracker.ensure_running()  # of a spawn on Linux, which needs some of the names itself
root = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(root), str(root / "tests")]
import filelock, numpy, paddle, tensorboardX
HIDDEN = {
    os: "fork forkpty register_at_fork memfd_create MFD_CLOEXEC O_DIRECTORY posix_fallocate posix_fadvise getpgid "
    "getpgrp tcgetpgrp setsid killpg mkfifo sync uname chown sched_getaffinity getloadavg sendfile pread "
    "pwrite fdatasync",
    signal: "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGQUIT SIGTSTP SIGCONT alarm setitimer pthread_kill "
    "pthread_sigmask sigwait siginterrupt",
    select: "poll epoll POLLIN POLLHUP",
}
for owner, names in HIDDEN.items():
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline"):
    sys.modules[name] = None
multiprocessing.get_all_start_methods = lambda: ["spawn"]

import paddlelite_trainer
from paddlelite_trainer import Trainer, callbacks
from paddlelite_trainer.data import worker_pool, worker_process
import models
worker_pool.HANDS_OVER_DESCRIPTORS = False
worker_process.sys = types.SimpleNamespace(**{**vars(sys), "platform": "win32"})  # no prctl

class Data(paddle.io.Dataset):
    dies = False
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if self.dies:
            os._exit(3)
        if paddle.io.get_worker_info() is not None:
            assert not hasattr(os, "fork") and not hasattr(select, "poll") and not hasattr(signal, "SIGKILL")
        return numpy.random.randn(4).astype("float32"), index % 3

def import_everything():
    import importlib
    for path in sorted((root / "paddlelite_trainer").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] not in ("__main__", "outside"):  # scripts
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    for owner in (paddlelite_trainer, callbacks):
        for name in owner.__all__:
            getattr(owner, name)

def train_and_resume(runs, loader):
    for epochs in (1, 2):
        trainer = Trainer(max_epochs=epochs, default_root_dir=runs, run_name="run", seed=1)
        model = models.Classifier()
        trainer.fit(model, loader, models.make_batches(1), ckpt_path="last")
    assert trainer.current_epoch == 2 and os.listdir(runs) == ["run"]
    return [weight.numpy().tobytes() for weight in model.parameters()]

def main():
    import_everything()
    from paddlelite_trainer.cli import main as command
    from paddlelite_trainer.errors import DataError
    runs = tempfile.mkdtemp()
    here = train_and_resume(runs, paddle.io.DataLoader(Data(), batch_size=2, shuffle=True))
    assert command(["ckpt", "verify", runs]) == 0
    shutil.rmtree(runs)
    runs = tempfile.mkdtemp()
    loader = paddle.io.DataLoader(Data(), batch_size=2, shuffle=True, num_workers=2)
    print("THE SAME", train_and_resume(runs, loader) == here)
    shutil.rmtree(runs)
    dataset = Data()
    dataset.dies = True
    loader = paddle.io.DataLoader(dataset, batch_size=2, num_workers=1)
    try:
        Trainer(max_epochs=1, default_root_dir=runs).fit(models.Classifier(), loader)
    except DataError as error:
        print("TOLD", error)
    shutil.rmtree(runs)

if __name__ == "__main__":
    main()
"""


def test_without_what_windows_lacks_it_is_imported_trains_with_spawned_workers_and_resumes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    found = subprocess.run(
        [sys.executable, str(script), str(ROOT)], capture_output=True, text=True, timeout=240, check=False
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert "THE SAME True" in lines
    (told,) = [line for line in lines if line.startswith("TOLD ")]
    assert "ended with exit code 3 while loading a batch. Run with num_workers=0 to see where it happens." in told
