"""What the weights of a pair take on this disk, and their removal: for `cascli pairs rm` and `path`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascli.config import HubSource, PairConfig, PypiSource, RandomSource, Source
from cascli.errors import CascliError
from cascli.weights import store
from cascli.weights.disk import tree_bytes, writing
from cascli.weights.home import PACKED, cache_home, packed_family
from cascli.weights.report import silent


@dataclass(frozen=True)
class Held:
    """The files of one model of a pair that cascli, or the hub's library on its behalf, has stored on this disk."""

    role: str
    source: Source
    paths: list[Path] = field(default_factory=list)
    """In cascli's own cache: converted and packed files, and those of an unfinished download."""
    snapshot: Path | None = None
    """In the hub's cache, which other programs also read."""
    bytes: int = 0
    used_by: list[str] = field(default_factory=list)
    """Other pairs that are complete on this disk and need these files, which are then kept."""
    revision: Any = None
    """The hub library's plan for removing its part."""


def held(config: PairConfig, others: Mapping[str, PairConfig]) -> list[Held]:
    """What each model of a pair takes on this disk, without the user's own folders and files.

    Args:
        config: the pair.
        others: all other pairs, by name.
    """
    entries = []
    for role, model in config.models.items():
        if isinstance(model.source, RandomSource):
            continue
        snapshot = _folder(model.source) if isinstance(model.source, HubSource) else None
        revision = None if snapshot is None else _hub_revision(snapshot)
        paths = [path for path in _own(model.source) if path.exists()]
        size = sum(path.stat().st_size if path.is_file() else tree_bytes(path) for path in paths)
        size += revision.expected_freed_size if revision is not None else 0
        users = [name for name, other in others.items() if _needs(other, model.source)]
        entries.append(Held(role, model.source, paths, snapshot, size, users, revision))
    return entries


def remove(what: Held) -> None:
    """Remove these files, after waiting for any process that is fetching them; a second removal does nothing.

    Raises:
        RunError: they cannot be removed.
    """
    copy = store.converted(what.source)
    with store.locked(copy.name if copy else "packed", silent), writing(cache_home()):
        for path in what.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if what.revision is not None:
        what.revision.execute()


def _own(source: Source) -> Iterator[Path]:
    """Where files of a source can be in cascli's own cache."""
    if isinstance(source, PypiSource):
        yield store.staging_of(source)
    copy = store.converted(source)
    folder = copy or _folder(source)
    if folder is not None:
        for dtype in PACKED:
            yield from (cache_home() / "packed").glob(f"*-{packed_family(folder, dtype)}-*")
    if copy is not None:
        yield copy  # last: packed files are found by its name


def _folder(source: Source) -> Path | None:
    try:
        return store.locate(source)
    except CascliError:
        return None


def _needs(config: PairConfig, source: Source) -> bool:
    """Whether a pair is complete on this disk and has a model from `source`."""
    sources = [model.source for model in config.models.values()]
    return source in sources and all(isinstance(each, RandomSource) or _folder(each) is not None for each in sources)


def _hub_revision(snapshot: Path) -> Any:
    """The hub library's plan for removing a snapshot and those of the repository's files that only it needs."""
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir().delete_revisions(snapshot.name)
