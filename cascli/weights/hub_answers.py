"""What a hub answers is checked before huggingface_hub believes it, and waited for no longer than it is worth.

Commit ids, ETags and file names become paths of the hub's cache, which several versions of the library take as they
come; a hub that accepts a connection and says nothing would be waited for without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from cascli.errors import RunError

SECONDS = 30
"""For a connection, and between two pieces of an answer."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"[\w.:+=-]+")


@contextmanager
def checked(source: object) -> Iterator[None]:
    """Check every answer that huggingface_hub gets while this lasts.

    Raises:
        RunError: an id or a name that could lead out of the cache; `source` is in front.
    """
    from huggingface_hub import get_session

    session = get_session()
    before = session.event_hooks
    hooks = {
        "request": [*before.get("request", []), _patient],
        "response": [*before.get("response", []), lambda response: _check(response, source)],
    }
    session.event_hooks = before | hooks
    try:
        yield
    finally:
        session.event_hooks = before


def _patient(request: Any) -> None:
    """Put a limit where the library sets none."""
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
    """Whether a file's name stays in the folder that it is put into, on any system."""
    if not isinstance(name, str) or not name or any(sign in name for sign in "\\:\0"):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
