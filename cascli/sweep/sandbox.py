"""Run a model's code in a process of its own: little time, memory and disk, one process, no network.

This keeps accidents small; it is no prison. Code is run only where the user allows it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

SECONDS = 10
_LIMITS = {"CPU": SECONDS, "AS": 2**30, "FSIZE": 2**20, "NOFILE": 32, "NPROC": 0, "CORE": 0}
_GUARD = f"""
import ctypes, resource, socket
try:
    # A user and a network namespace of its own, where the system allows it: no interface is up in there.
    ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000)
except (OSError, AttributeError):
    pass
for kind, limit in {_LIMITS}.items():
    if hasattr(resource, "RLIMIT_" + kind):
        resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
def refuse(*_, **__):
    raise OSError("no network here")
import _socket
socket.socket = socket.create_connection = _socket.socket = refuse
"""
# The code that says "passed" is known to nobody but the caller: a program that ends itself early has not passed.
_RUN = """
import os
end = os._exit
exec(compile({program!r}, 'answer', 'exec'), {{'__name__': 'answer'}})
end({code})
"""


def passes(program: str) -> bool:
    """Whether a program runs to its end, in time, and without an error."""
    code = random.SystemRandom().randint(64, 250)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _GUARD + _RUN.format(program=program, code=code)],
            cwd=folder,
            env={"PATH": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=SECONDS + 2) == code
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the program left behind
            process.wait()
