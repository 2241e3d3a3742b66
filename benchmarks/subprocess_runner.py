"""Another Python process with a limit on its time: what it breaks or holds on the GPU ends with it. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",  # what a killed process had printed is there
    "PYTHONFAULTHANDLER": "1",
    "DISABLE_CUPTI_LAZY_REINIT": "1",  # profiling around CUDA graphs crashes otherwise; torch sets both likewise
    "TEARDOWN_CUPTI": "0",
}
_KILLING = 10.0
"""Seconds that a killed process may take to give its memory back."""


class Subprocess:
    """A Python process in a group of its own; its output goes to a file, since grandchildren would keep a pipe open."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        """Start `python *command`, which finds the packages of this checkout first."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def wait(self, seconds: float) -> int | None:
        """The exit code; None if the process, with those that it started, was killed after so many seconds."""
        try:
            return self._process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        except BaseException:  # ours is interrupted: a group of its own does not hear of that
            self.kill()
            raise

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it, and those that it started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILLING)


def tail(output: Path, lines: int = 20, characters: int = 2000) -> str:
    """The end of what was printed."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return "\n".join(text.rstrip().splitlines()[-lines:])[-characters:]
