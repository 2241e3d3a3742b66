"""The user's files: read within bounds of kind, size and depth, and written whole or not at all."""

from __future__ import annotations

import json
import os
import reprlib
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cascli.errors import UsageError

MEGABYTE = 1 << 20
PROMPTS_BYTES = 64 * MEGABYTE
"""Of a prompt or a file of them: more than any context holds."""
YAML_BYTES = 4 * MEGABYTE
JSON_BYTES = 1024 * MEGABYTE
"""Of saved results, which hold whole traces."""
# What a shell's <(...) and a pipe are called.
_PIPES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


def text_of(path: Path, most: int, *, encoding: str = "utf-8") -> str:
    """The text of a file of at most `most` bytes.

    Raises:
        UsageError: it is missing, no file (a device, or a pipe that nobody may be writing to), too large, or not text.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not str(path).startswith(_PIPES):
            raise UsageError(f"{path}: cannot be read: it is {'a folder' if path.is_dir() else 'not a regular file'}")
        with path.open("rb") as file:
            return bounded(file, str(path), most).decode(encoding)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # not text, or a name with a NUL
        raise UsageError(f"{path}: cannot be read: {error}") from None


def bounded(file: BinaryIO, name: str, most: int) -> bytes:
    """All of `file`, if that is at most `most` bytes.

    Raises:
        UsageError: it is more, or has no end.
    """
    data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(f"{name}: larger than {most // MEGABYTE} MB")
    return data


def json_of(text: str | bytes, where: str) -> Any:
    """The JSON value in `text`.

    Raises:
        UsageError: it is none, or nested too deeply, or has a number of thousands of digits; `where` is in front.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        raise UsageError(f"{where}{line}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except ValueError as error:  # of digits, or bytes that are no text
        raise UsageError(f"{where}: not JSON: {str(error).split(';')[0]}") from None


def printed(value: object) -> str:
    """`value` as an error may show it: shortened, however large it is."""
    shorten = reprlib.Repr()
    shorten.maxlevel, shorten.maxlist, shorten.maxtuple, shorten.maxdict = 2, 4, 4, 4
    shorten.maxstring = shorten.maxother = 80
    try:
        return shorten.repr(value)
    except (RecursionError, ValueError):  # a number whose digits Python refuses to print
        return f"a {type(value).__name__}"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say in what the system says of a failing write which file it was: a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a result file so that a crash leaves the old file or the new one, never half of it.

    What is no file, such as /dev/null or a named pipe, is written to and stays what it is.

    Args:
        path: where; its folder is there.
        content: what.
        durable: see it onto the disk, so that a power cut leaves no empty file either.
    """
    with named(path):  # nobody knows the partial one
        _write(path, content.encode() if isinstance(content, str) else content, durable)


def _write(path: Path, data: bytes, durable: bool) -> None:
    opened = _descriptor(path)
    if opened is not None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        with os.fdopen(os.dup(opened), "wb") as file:  # where the shell is in it, and not its beginning
            file.write(data)
        return
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = behind_links(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    kept = stat.S_IMODE(path.stat().st_mode) if path.exists() else None  # what is private stays so, all the while
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(partial, flags, 0o666 if kept is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if kept is not None:
            partial.chmod(kept)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _descriptor(path: Path) -> int | None:
    """The open file that a path such as /dev/stdout names."""
    if os.name == "nt":
        return None
    named = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(path))
    of_a_number = str(path.parent) in ("/dev/fd", "/proc/self/fd") and path.name.isdecimal()
    return int(path.name) if of_a_number else named


def behind_links(path: Path) -> Path:
    """The file itself: a link to it stays one.

    Raises:
        UsageError: links that lead in a circle.
    """
    try:
        real = path.resolve()
    except RuntimeError:
        real = path
    if real.is_symlink():  # Python 3.13 and later return the link itself instead of raising an error
        raise UsageError(f"{path}: a symbolic link that points to itself")
    return real
