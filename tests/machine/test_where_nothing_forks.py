"""Without what Windows lacks: every part is imported, a fit runs and is resumed, and workers are one clear error."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Python's own libraries and filelock choose by platform as they are imported, so they come before the names are hidden.
PROGRAM = """
import concurrent.futures, multiprocessing, os, pathlib, select, shutil, signal, subprocess, sys, tempfile
root = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(root), str(root / "tests")]
import filelock, paddle, tensorboardX
HIDDEN = {
    os: "fork forkpty register_at_fork memfd_create MFD_CLOEXEC O_DIRECTORY posix_fallocate posix_fadvise getpgid "
    "getpgrp tcgetpgrp setsid killpg mkfifo sync uname chown WNOHANG sched_getaffinity getloadavg sendfile pread "
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

import importlib
for path in sorted((root / "paddlelite_trainer").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] not in ("__main__", "outside"):  # scripts
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
import paddlelite_trainer
from paddlelite_trainer import Trainer, callbacks
from paddlelite_trainer.cli import main
from paddlelite_trainer.errors import DataError
for owner in (paddlelite_trainer, callbacks):
    for name in owner.__all__:
        getattr(owner, name)
import models
runs = tempfile.mkdtemp()
for epochs in (1, 2):
    trainer = Trainer(max_epochs=epochs, default_root_dir=runs, seed=1)
    trainer.fit(models.Classifier(), models.make_batches(3), models.make_batches(1), ckpt_path="last")
assert trainer.current_epoch == 2 and os.listdir(runs) == ["version_0"]
assert main(["ckpt", "verify", runs]) == 0
shutil.rmtree(runs)
data = paddle.io.TensorDataset([paddle.zeros([8, 4])])
try:
    trainer.fit(models.Classifier(), paddle.io.DataLoader(data, batch_size=2, num_workers=2))
except DataError as error:
    print("REFUSED", error)
"""


def test_without_what_windows_lacks_it_is_imported_trains_and_resumes_and_refuses_workers():
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], capture_output=True, text=True, timeout=240, check=False
    )
    assert found.returncode == 0, found.stderr
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("REFUSED ")]
    assert "num_workers=2 needs processes that fork, which this system has not. Set num_workers=0" in line
