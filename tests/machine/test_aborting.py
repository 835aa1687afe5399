"""An abort from within Paddle: something can be said before, as long as Python runs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from paddlelite_trainer.machine.aborting import call_on_abort
call_on_abort(lambda: os.write(1, b"said"))

class Late:
    def __del__(self, abort=os.abort):
        abort()

if sys.argv[1] == "running":
    os.abort()
sys.modules["late"] = Late()  # modules go while Python is finalizing
"""


@pytest.mark.parametrize(("when", "said"), [("running", b"said"), ("finalizing", b"")])
def test_what_is_to_be_said_before_an_abort_is_said_unless_python_is_finalizing(when: str, said: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, when], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, said)
