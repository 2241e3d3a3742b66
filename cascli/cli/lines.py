"""Input lines: typed, with a shell's keys and history, or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cascli.errors import UsageError

MOST_KEPT = 1000
"""Maximum number of lines of history."""


def next_line(prompt: str) -> str | None:
    """The next line without its line end; None when there are no more. The prompt is shown only on a terminal.

    Raises:
        UsageError: a line that is not UTF-8 text, or longer than any prompt may be.
    """
    if sys.stdin is None:
        return None
    if not sys.stdin.isatty():
        return _piped()
    if not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        print(file=sys.stderr)
        return None
    except UnicodeDecodeError:
        raise UsageError("this line is not UTF-8 text.") from None


class _OneLine:
    """A file that ends after one line, for `bounded`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, most: int) -> bytes:
        return self._file.readline(most)


def _piped() -> str | None:
    from cascli.files import PROMPTS_BYTES, bounded

    line = bounded(_OneLine(sys.stdin.buffer), "a line of stdin", PROMPTS_BYTES)  # type: ignore[arg-type]
    if not line:
        return None
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError("this line of stdin is not UTF-8 text.") from None


@contextmanager
def history(path: Path) -> Iterator[None]:
    """Save typed lines to this file; if it cannot be written, do without.

    Piped input is not saved, and only the user may read the file.
    """
    readline = _readline() if sys.stdin is not None and sys.stdin.isatty() else None
    if readline is None:
        yield
        return
    readline.clear_history()
    readline.set_history_length(MOST_KEPT)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def _readline() -> Any:
    """Python's readline; None on systems without it, where lines can still be typed."""
    try:
        import readline
    except ImportError:
        return None
    return readline
