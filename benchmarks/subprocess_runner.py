"""A Python process with a time limit: what it breaks or holds on the GPU ends with it. Does not import torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",  # keeps the output of a killed process
    "PYTHONFAULTHANDLER": "1",
    "DISABLE_CUPTI_LAZY_REINIT": "1",  # profiling around CUDA graphs crashes otherwise; torch sets both as well
    "TEARDOWN_CUPTI": "0",
}
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_KILLING = 10.0
"""Seconds that a killed process may take to release its memory."""


def _end_with_parent() -> None:
    """Have Linux kill the calling process when its parent is gone: it would hold the GPU, and slow what comes next."""
    if _LIBRARY is not None:
        _LIBRARY.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Subprocess:
    """A Python process in its own process group; output goes to a file, since grandchildren would keep a pipe open."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        """Start `python *command` with this checkout first on the path."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None if the process and its children were killed after this many seconds."""
        try:
            return self._process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        except BaseException:  # on an interrupt of ours, which the child's process group does not receive
            self.kill()
            raise

    def poll(self) -> int | None:
        """Return the exit code; None while the process is running."""
        return self._process.poll()

    def kill(self) -> None:
        """Kill the process and its children."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILLING)


def tail(output: Path, lines: int = 20, characters: int = 2000) -> str:
    """Return the end of the output."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return "\n".join(text.rstrip().splitlines()[-lines:])[-characters:]
