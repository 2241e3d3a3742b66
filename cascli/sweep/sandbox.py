"""Run a model's code in a process of its own: little time, memory and disk, one process, no network.

This keeps accidents small; it is no prison. Code is run only where the user allows it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

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
socket.socket = socket.create_connection = refuse
"""
_RUN = "exec(compile({program!r}, 'answer', 'exec'), {{'__name__': 'answer'}})"


def passes(program: str) -> bool:
    """Whether a program ends by itself, in time, and without an error."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _GUARD + _RUN.format(program=program)],
                cwd=folder,
                env={"PATH": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS + 2,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
