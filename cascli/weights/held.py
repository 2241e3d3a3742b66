"""What the weights of a pair take on this disk, and their removal: for `cascli pairs rm` and `path`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cascli.config import HubSource, PairConfig, PathSource, PypiSource, RandomSource, Source
from cascli.errors import CascliError, RunError
from cascli.weights import hub_cache, store
from cascli.weights.disk import tree_bytes
from cascli.weights.home import PACKED, cache_home, packed_family
from cascli.weights.report import silent


@dataclass(frozen=True)
class Held:
    """The files of one model of a pair that cascli, or the hub's library on its behalf, has stored on this disk."""

    role: str
    source: Source
    paths: list[Path] = field(default_factory=list)
    """Converted and packed files, and those of an unfinished download."""
    snapshot: Path | None = None
    """Files in the hub's cache, which other programs also read; complete or not."""
    used_by: list[str] = field(default_factory=list)
    """Other pairs that are complete on this disk and need these files, which are then kept."""

    @property
    def removable(self) -> bool:
        """Whether there is anything to remove."""
        return bool(self.paths or self.snapshot) and not self.used_by


@dataclass(frozen=True)
class Removal:
    """What removing models deletes; what several of them share counts once."""

    paths: list[Path]
    plans: list[hub_cache.Plan]
    locks: list[str]
    bytes: int


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
        snapshot = hub_cache.snapshot(model.source) if isinstance(model.source, HubSource) else None
        paths = [path for path in _own(model.source) if path.exists() or path.is_symlink()]
        users = [name for name, other in others.items() if _needs(other, model.source)]
        entries.append(Held(role, model.source, paths, snapshot, users))
    return entries


def removal(models: Sequence[Held]) -> Removal:
    """What is deleted with these models, and how much that frees."""
    paths = list(dict.fromkeys(path for model in models for path in model.paths))
    plans = hub_cache.plans([model.snapshot for model in models if model.snapshot is not None])
    copies = [store.converted(model.source) for model in models if _is_there(model.source)]
    locks = sorted({"packed", *(copy.name for copy in copies if copy is not None)})
    size = sum(map(_bytes, paths)) + sum(plan.bytes for plan in plans)
    return Removal(paths, plans, locks, size)


def remove(what: Removal) -> None:
    """Remove these files, after waiting for any process that is fetching them; a second removal does nothing.

    Raises:
        RunError: they cannot be removed.
    """
    with ExitStack() as locks:
        for key in what.locks:  # always in the same order, so that two removals cannot wait for each other
            locks.enter_context(store.locked(key, silent))
        for path in what.paths:
            _delete(path)
    for plan in what.plans:
        hub_cache.execute(plan)


def _delete(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    except OSError as error:  # that of a whole folder names a file inside it, without its path
        raise RunError(f"{path}: cannot be removed: {error.strerror}.") from None


def _bytes(path: Path) -> int:
    """What removing a path frees: only the link of one."""
    if path.is_symlink():
        return 0
    return tree_bytes(path) if path.is_dir() else path.stat().st_size


def _own(source: Source) -> Iterator[Path]:
    """Where files of a source can be that only cascli, or a download that was cut off, has made."""
    if isinstance(source, PypiSource):
        yield store.staging_of(source)
    if isinstance(source, HubSource):
        yield from hub_cache.unfinished(source)
    copies = store.copies(source)
    there = store.converted(source) if _is_there(source) else None
    folders = [*copies, *filter(None, [there or _folder(source)])]
    for folder in dict.fromkeys(folders):
        for dtype in PACKED:
            yield from (cache_home() / "packed").glob(f"*-{packed_family(folder, dtype)}-*")
    yield from copies  # last: packed files are found by their names


def _is_there(source: Source) -> bool:
    """Whether a file of the user still exists; true for other sources."""
    return not isinstance(source, PathSource) or Path(source.path).expanduser().exists()


def _folder(source: Source) -> Path | None:
    try:
        return store.locate(source)
    except CascliError:
        return None


def _needs(config: PairConfig, source: Source) -> bool:
    """Whether a pair is complete on this disk and has a model in the same folder as `source`."""
    sources = [model.source for model in config.models.values() if not isinstance(model.source, RandomSource)]
    folders = [_folder(each) for each in sources]
    return None not in folders and (source in sources or _folder(source) in folders)
