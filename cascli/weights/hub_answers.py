"""Responses of a hub are checked before huggingface_hub uses them, time out, and end when the user interrupts.

Commit ids, ETags and file names become paths in the hub's cache, and several versions of the library use them
unchecked; a hub that accepts a connection and sends nothing would block forever. Files arrive in threads that the
library waits for, however long they take, before an interruption of the main thread counts.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from cascli.errors import RunError

SECONDS = 30
"""Timeout for a connection, and between two pieces of a response."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"[\w.:+=-]+")


@contextmanager
def checked(source: object) -> Iterator[None]:
    """Check every response that huggingface_hub gets inside this context.

    Raises:
        RunError: an id or a name could lead out of the cache; the message starts with `source`.
    """
    from huggingface_hub import get_session

    session = get_session()
    before = session.event_hooks
    with _interrupted() as interrupted:

        def sent(request: Any) -> None:
            _go_on(interrupted)
            _patient(request)

        def received(response: Any) -> None:
            _check(response, source)
            response.iter_raw = _until(interrupted, response.iter_raw)

        hooks = {
            "request": [*before.get("request", []), sent],
            "response": [*before.get("response", []), received],
        }
        session.event_hooks = before | hooks
        try:
            yield
        finally:
            session.event_hooks = before


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that is set when the user or the system ends the program, before that takes effect."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield event
        return

    def noting(effect: Callable[..., object]) -> Callable[..., object]:
        def note(*what: object) -> object:
            try:
                return effect(*what)
            except BaseException:  # others only take note of the signal
                event.set()
                raise

        return note

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number, handler in ours.items():
        signal.signal(number, noting(handler))
    try:
        yield event
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _go_on(interrupted: threading.Event) -> None:
    if interrupted.is_set():
        raise KeyboardInterrupt


def _until(interrupted: threading.Event, read: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    """`read`, which ends with KeyboardInterrupt at the next piece of a response after an interruption."""

    def pieces(*how: Any, **more: Any) -> Iterator[bytes]:
        for piece in read(*how, **more):
            _go_on(interrupted)
            yield piece

    return pieces


def _patient(request: Any) -> None:
    """Set a timeout where the library sets none."""
    limits = request.extensions.get("timeout") or {}
    names = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: limits.get(name) or SECONDS for name in names}


def _check(response: Any, source: object) -> None:
    commit = response.headers.get("x-repo-commit")
    if commit is not None:
        _commit(commit, source)
        for name in ("etag", "x-linked-etag"):
            tag = response.headers.get(name, "x").removeprefix("W/").strip('"')
            if not _TAG.fullmatch(tag) or ".." in tag:
                raise RunError(f"{source}: the hub answered with {name} {tag[:60]!r}, which is not a valid one.")
    if "/api/" in response.url.path and "json" in response.headers.get("content-type", ""):
        response.read()
        if response.is_success:
            _check_listing(response.json(), source)


def _check_listing(listing: Any, source: object) -> None:
    """A repository's description, or its list of files."""
    if isinstance(listing, Mapping):
        if isinstance(listing.get("sha"), str):
            _commit(listing["sha"], source)
        _check_listing(listing.get("siblings"), source)
    elif isinstance(listing, list):
        for entry in listing:
            named = [entry.get(key) for key in ("path", "rfilename")] if isinstance(entry, Mapping) else []
            for name in named:
                if name is not None and not _inside(name):
                    raise RunError(f"{source}: the hub lists a file {str(name)[:60]!r}, which is outside its folder.")


def _commit(text: str, source: object) -> None:
    if not _COMMIT.fullmatch(text):
        raise RunError(f"{source}: the hub answered with the commit id {text[:60]!r}, which is not a valid one.")


def _inside(name: object) -> bool:
    """Whether a file name stays inside the folder that it is put into, on any system."""
    if not isinstance(name, str) or not name or any(sign in name for sign in "\\:\0"):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
