"""Commands in processes forked from one that has imported everything: they start in milliseconds, not in five seconds.

`start` and `run` ask that process, which begins with the first of them: `python -m tests.warm` in the environment that
the tests began with. Its children have their own arguments, environment, folder and streams, and end with the code
of any interpreter. What a test of starting is about (what is imported when, variables that libraries read while they
are imported, numbers of threads) needs a fresh process: `tests.commands.program` or `shell`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

Stream = Literal["kept", "closed", "gone", "full"]
"""Where a child writes: into a file that the result holds, nowhere (closed), into a pipe that nobody reads, or to a
full disk."""

_ENVIRONMENT = {**os.environ}
IMPORTED = (
    "cascli.models.load",
    "cascli.engine",
    "cascli.jobs.generate",
    "cascli.render.export",
    "rich.progress",
    "tokenizers.trainers",
    "transformers.convert_slow_tokenizer",
    "transformers.conversion_mapping",
    "transformers.integrations.finegrained_fp8",
    "transformers.loss.loss_utils",
    "transformers.models.qwen2.modeling_qwen2",
    "typer.main",
)
"""With what these import: most of what an answer of a tiny pair needs."""
_SECONDS = 300
"""After which a child is ended."""


@dataclass
class Child:
    """A running command."""

    args: list[str]
    pid: int
    asked: socket.socket
    written: tuple[IO[bytes], IO[bytes]]

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit code (negative: the signal) and what it wrote."""
        code = int(_line(self.asked))
        self.asked.close()
        said = []
        for file in self.written:
            file.seek(0)
            said.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.args, code, *said)


def run(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and wait; like `start`."""
    return start(*arguments, **how).wait()


def start(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: Stream = "kept",
    stderr: Stream | Literal["stdout"] = "kept",
) -> Child:
    """Start `cascli` with these arguments; after `-c`, `python` with these. There is nothing on its stdin."""
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by `wait`
    ours, theirs = socket.socketpair()
    asked = {
        "arguments": arguments,
        "environment": dict(os.environ if env is None else env),
        "folder": str(cwd or Path.cwd()),
        "streams": [stdout, stderr],
    }
    with theirs:
        request = json.dumps(asked).encode()
        fds = [theirs.fileno(), *(file.fileno() for file in files)]
        socket.send_fds(_warm(), [len(request).to_bytes(4)], fds)
        _warm().sendall(request)
    return Child([*arguments], int(_line(ours)), ours, files)


@functools.cache
def _warm() -> socket.socket:
    """The connection to the warm process, which ends when this one does."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        root = Path(__file__).parent.parent
        subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=_ENVIRONMENT | one, cwd=root, stdin=subprocess.DEVNULL
        )
    return ours


def _line(connection: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n"):
        more = connection.recv(1)
        assert more, "the warm process has ended"
        found += more
    return found.decode()


# ---- the warm process


def _serve(connection: socket.socket) -> None:
    """Fork a child for each request."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a process with threads must not be forked"
    gc.collect()
    gc.freeze()
    while True:
        head, fds, *_ = socket.recv_fds(connection, 4, 3)
        if not head:
            return
        request = b""
        while len(request) < int.from_bytes(head):
            request += connection.recv(int.from_bytes(head) - len(request))
        if os.fork() == 0:  # waits for the child, so that several can run at a time
            if (child := os.fork()) == 0:
                connection.close()
                asked = json.loads(request)
                _become(asked, fds)
                _end(_obey(asked["arguments"]))
            told = socket.socket(fileno=fds[0])
            told.sendall(f"{child}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told.sendall(f"{code}\n".encode())
            os._exit(0)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _become(asked: dict[str, Any], fds: list[int]) -> None:
    """Take the environment, folder and streams of a fresh process."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [each for each in places if each and each not in sys.path]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell that run beside it ignore it
    signal.alarm(_SECONDS)
    for number, (how, fd) in enumerate(zip(asked["streams"], fds[1:], strict=True), 1):
        if how == "gone":
            read, fd = os.pipe()
            os.close(read)
        elif how == "full":
            fd = os.open("/dev/full", os.O_WRONLY)
        os.dup2(1 if how == "stdout" else fd, number)
    for number, how in enumerate(asked["streams"], 1):
        if how == "closed":
            os.close(number)
    os.closerange(3, 256)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        made = _stream(number)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)


def _stream(number: int) -> io.TextIOWrapper | None:
    """What an interpreter makes of a descriptor at its start."""
    try:
        os.fstat(number)
    except OSError:
        return None
    whole = number > 0 and bool(os.environ.get("PYTHONUNBUFFERED"))
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    errors = "backslashreplace" if number == 2 else errors or "strict"
    binary: Any = open(number, "wb" if number else "rb", buffering=0 if whole else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(binary, encoding or "utf-8", errors, line_buffering=number == 2, write_through=whole)


def _obey(arguments: list[str]) -> int:
    """The exit code."""
    try:
        if arguments[:1] == ["-c"]:
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = ["cascli", *arguments]
            from cascli.__main__ import main

            main()
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End like an interpreter, except that modules, which are the warm process's, are not taken down."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError):
            code = 120
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # libraries would report as leaks what the collector was told to leave
