"""The user's files: reading is limited by kind, size and depth, and writing is all or nothing."""

from __future__ import annotations

import json
import os
import reprlib
import secrets
import stat
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cascli.errors import UsageError

MEGABYTE = 1 << 20
PROMPTS_BYTES = 64 * MEGABYTE
"""Limit for a prompt or a file of prompts: more than any context holds."""
YAML_BYTES = 4 * MEGABYTE
JSON_BYTES = 1024 * MEGABYTE
"""Limit for saved results, which contain whole traces."""
# Paths of a shell's <(...) and of pipes.
_PIPES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
"""How gzip, zip, zstd, xz and bzip2 files begin."""


def text_of(path: Path, max_bytes: int, *, encoding: str = "utf-8", cut: bool = False) -> str:
    """The text of a file of at most `max_bytes` bytes.

    Args:
        path: the file.
        max_bytes: its greatest size.
        encoding: of the text.
        cut: leave out a part of a character at the end, where writing may have stopped.

    Raises:
        UsageError: it is missing, not a regular file (a device, or a pipe that may have no writer), too large, or not
            text.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not str(path).startswith(_PIPES):
            raise UsageError(f"{path}: cannot be read: it is {'a folder' if path.is_dir() else 'not a regular file'}")
        with path.open("rb") as file:
            data = bounded(file, str(path), max_bytes)
        if data.startswith(_PACKED):
            raise UsageError(f"{path}: cannot be read: it is compressed; unpack it first")
        return getincrementaldecoder(encoding)().decode(data, final=not cut)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # not text, or a name with a NUL
        raise UsageError(f"{path}: cannot be read: {error}") from None


def bounded(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    """Read all of `file`, which may have at most `max_bytes` bytes.

    Raises:
        UsageError: it is longer, or endless.
    """
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UsageError(f"{name}: larger than {max_bytes // MEGABYTE} MB")
    return data


def json_of(text: str | bytes, where: str) -> Any:
    """The JSON value in `text`.

    Raises:
        UsageError: it is not JSON, is nested too deeply, or has a number with thousands of digits; the message starts
            with `where`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        raise UsageError(f"{where}{line}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except ValueError as error:  # too many digits, or bytes that are not text
        raise UsageError(f"{where}: not JSON: {str(error).split(';')[0]}") from None


def printed(value: object) -> str:
    """`value` shortened for an error message, however large it is."""
    shorten = reprlib.Repr()
    shorten.maxlevel, shorten.maxlist, shorten.maxtuple, shorten.maxdict = 2, 4, 4, 4
    shorten.maxstring = shorten.maxother = 80
    try:
        return shorten.repr(value)
    except (RecursionError, ValueError):  # a number whose digits Python refuses to print
        return f"a {type(value).__name__}"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the file's path to the system error of a failed write: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a result file so that a crash leaves the old file or the new one, never half of it.

    A path that is not a regular file, such as /dev/null or a named pipe, is written to directly and not replaced.

    Args:
        path: the destination, in an existing folder.
        content: what to write.
        durable: flush to disk, so that a power cut does not leave an empty file either.
    """
    with named(path):  # not the partial file, which users do not know
        _write(path, content.encode() if isinstance(content, str) else content, durable)


def _write(path: Path, data: bytes, durable: bool) -> None:
    descriptor = _descriptor(path)
    if descriptor is not None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        with os.fdopen(os.dup(descriptor), "wb") as file:  # at the shell's position in it, not at its start
            file.write(data)
        return
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = behind_links(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None  # a private file stays private throughout
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(partial, flags, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if mode is not None:
            partial.chmod(mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _descriptor(path: Path) -> int | None:
    """Descriptor of the open file that a path such as /dev/stdout names; None for other paths."""
    if os.name == "nt":
        return None
    named = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(path))
    is_number = str(path.parent) in ("/dev/fd", "/proc/self/fd") and path.name.isdecimal()
    return int(path.name) if is_number else named


def behind_links(path: Path) -> Path:
    """The path with links resolved, so that writing to it keeps the link.

    Raises:
        UsageError: the links form a cycle.
    """
    try:
        real = path.resolve()
    except RuntimeError:
        real = path
    if real.is_symlink():  # Python 3.13 and later return the link itself instead of raising an error
        raise UsageError(f"{path}: a symbolic link that points to itself")
    return real
