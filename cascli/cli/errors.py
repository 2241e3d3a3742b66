"""Turns exceptions into messages and exit codes: 1 check failed, 2 usage, 3 runtime, 130 interrupted."""

from __future__ import annotations

import codecs
import errno
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer

from cascli.cli.environment import is_on, warn_unknown
from cascli.errors import CascliError, PairWarning, first_line, plain

INTERRUPTED = 130
RUNTIME = 3
USAGE = 2


class Terminated(KeyboardInterrupt):
    """Terminated by the system or another program: like Ctrl-C, but always ends the whole command."""


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that its errors become one or two lines on stderr; CASCLI_DEBUG=1 shows tracebacks."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        quiet = bool(kwargs.get("quiet")) or is_on("CASCLI_QUIET")
        try:
            warn_unknown(quiet=quiet)
            with _pair_warnings_as_notes(quiet=quiet):
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if is_on("CASCLI_DEBUG"):
                traceback.print_exc()
            _end(*message_and_code(error))

    return wrapper


@contextmanager
def _pair_warnings_as_notes(*, quiet: bool) -> Iterator[None]:
    """Show what is warned of a pair as one line of text; Python adds the place in the code."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, PairWarning):
            before(message, category, *where, **more)
        elif not quiet and sys.stderr is not None:
            with suppress(OSError):
                print(plain(str(message)), file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def message_and_code(error: Exception) -> tuple[str, int]:
    """The message for an error, in one or two lines, and its exit code."""
    if isinstance(error, CascliError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return os_message(error), RUNTIME
    if isinstance(error, RuntimeError | MemoryError):
        return _runtime_message(error), RUNTIME
    message = f"unexpected {type(error).__name__}: {first_line(error)}"
    return f"{message}\nCASCLI_DEBUG=1 shows where this happened.", RUNTIME


def _end(message: str, code: int) -> NoReturn:
    prefix = "\n" if code == INTERRUPTED and sys.stderr.isatty() else ""  # the ^C that a terminal shows, or an answer
    complain(plain(message), prefix)
    raise typer.Exit(code) from None


def complain(message: str, prefix: str = "") -> None:
    """Print an error on stderr; if that cannot be written, the exit code alone tells what happened."""
    with suppress(OSError):
        print(f"{prefix}cascli: {message}", file=sys.stderr)


def os_message(error: OSError) -> str:
    """One line about a failing file, folder or disk."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {error.filename or 'a file'}; free some and try again."
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


def _runtime_message(error: Exception) -> str:
    first = first_line(error)
    if isinstance(error, MemoryError) or "alloc" in first or "out of memory" in first.lower():
        return f"out of memory: {first}\nUse a smaller --dtype, pair or prompt."
    return f"{first}\nCASCLI_DEBUG=1 shows where this happened."


_ASCII = {"–": "-", "—": "-", "…": ".", "·": "-", "≥": ">", "≤": "<", "≠": "!", "α": "a", "°": "'", "’": "'", "−": "-"}


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """ASCII for cascli's own symbols, on a terminal or pipe without Unicode; a question mark for any other."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error("cascli", in_ascii)


def silence_stdout() -> None:
    """The reader went away (`cascli ... | head`): print nothing more, not even when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
