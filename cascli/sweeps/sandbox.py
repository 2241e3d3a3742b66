"""Check whether a model's code passes tests: both run behind walls, in two processes isolated from each other.

The answer runs in one; the tests call it over a pipe from the other, and rebuild its results from plain values, so that
no object, frame or exit code of the answer can influence the verdict. SECURITY.md lists what such code can still do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from cascli.errors import RunError, UsageError
from cascli.sweeps import guard

SECONDS = guard.SECONDS + 2


@cache
def missing_walls() -> dict[str, str]:
    """The walls that this system does not provide, with the reasons; empty if it provides all."""
    try:
        done = subprocess.run([*_python(), "probe"], capture_output=True, timeout=30, cwd="/", env={})
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(guard.WALLS, str(error) or type(error).__name__)


def check(*, unsafe: bool) -> str | None:
    """Refuse to run code without walls, or with `unsafe` return a warning that names the missing ones.

    Raises:
        UsageError: a wall is missing, and `unsafe` is false.
    """
    missing = missing_walls()
    if not missing:
        return None
    what = "; ".join(f"{name} ({why})" for name, why in missing.items())
    if not unsafe:
        raise UsageError(
            f"generated code cannot be sandboxed here: {what}.\n"
            "Use Linux 5.13 or newer with Landlock and seccomp, or use --unsafe-code-execution to run it anyway."
        )
    return f"generated code runs WITHOUT a sandbox for {what}: it can do whatever you can"


def passes(answer: str, tests: str, name: str, *, unsafe: bool = False) -> bool:
    """Whether the function `name` that `answer` defines passes the `check` that `tests` define, in time.

    Any failure, in this process or in theirs, counts as "no".

    Raises:
        RunError: a wall is missing, and `unsafe` is false.
    """
    try:
        return _passes(answer, tests, name, "!" if unsafe else "")
    except (OSError, ValueError, MemoryError):
        return False


def _passes(answer: str, tests: str, name: str, mark: str) -> bool:
    ends: list[int] = []
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            requests, replies, verdict = (_pipe(ends) for _ in range(3))
            for role, text, handles in (
                ("serve", answer, (requests[0], replies[1])),
                ("judge", tests, (replies[0], requests[1], verdict[1])),
            ):
                source = _source(text, name)
                ends.append(source)
                children.append(_start(f"{role}{mark}", (source, *handles), folder))
            for end in (*requests, *replies, verdict[1]):  # only the children keep their ends open
                os.close(end)
                ends.remove(end)
            return _verdict(children[1], verdict[0])
        finally:
            for child in children:
                _end(child)
            for end in ends:
                with suppress(OSError):
                    os.close(end)


def _verdict(judge: subprocess.Popen[bytes], verdict: int) -> bool:
    try:
        code = judge.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    os.set_blocking(verdict, False)  # without walls, a child left behind by the tests may hold the other end
    try:
        message = os.read(verdict, 16)
    except BlockingIOError:
        message = b""
    if message == guard.UNWALLED:
        raise RunError("the sandbox for generated code, which worked before, can no longer be set up: it was not run.")
    return code == 0 and message == b"passed"


def _pipe(ends: list[int]) -> tuple[int, int]:
    pair = os.pipe()
    ends.extend(pair)
    return pair


def _source(text: str, name: str) -> int:
    """An unnamed file that holds a program: it has no length limit, and no command line shows it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the child reads it; closed with the others
    file.write(json.dumps({"text": text, "name": name}).encode("utf-8", "replace"))
    file.seek(0)
    handle = os.dup(file.fileno())
    file.close()
    return handle


def _start(role: str, handles: tuple[int, ...], folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_python(), role, *map(str, handles)],
        pass_fds=handles,
        cwd=folder,
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(child: subprocess.Popen[Any]) -> None:
    """Kill a process and, without walls, any children it may have left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _python() -> list[str]:
    """The interpreter without this environment's packages: behind the walls it can only read Python's own folder."""
    base = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    return [str(base), "-I", "-S", str(Path(guard.__file__))]
