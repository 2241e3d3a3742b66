"""The hub's cache on this disk: where a model is in it, what a download that was cut off left, and removal.

The cache belongs to the hub's library and is shared with other programs, so only what the library's own plan names is
removed, and parts of files that no program can finish.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascli.config import HubSource
from cascli.errors import RunError
from cascli.weights.disk import writing

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Plan:
    """The removal of snapshots of one repository, with the files that no other snapshot needs."""

    bytes: int
    strategy: Any
    """The library's own object."""

    @property
    def paths(self) -> list[Path]:
        """What is deleted."""
        parts = (self.strategy.repos, self.strategy.snapshots, self.strategy.blobs, self.strategy.refs)
        return [path for part in parts for path in part]


def snapshot(source: HubSource) -> Path | None:
    """The folder of this revision in the cache, complete or not; None if there is none."""
    repository = _repository(source)
    commit = source.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (repository / "refs" / commit).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    folder = repository / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def unfinished(source: HubSource) -> list[Path]:
    """Parts of files of this repository; later downloads begin with new ones."""
    return sorted((_repository(source) / "blobs").glob("*.incomplete"))


def plans(snapshots: Iterable[Path]) -> list[Plan]:
    """How to remove these snapshots, one plan per repository.

    Raises:
        RunError: the library does not know one of them, because something in its repository's folder is missing.
    """
    from huggingface_hub import scan_cache_dir

    wanted: dict[Path, set[str]] = defaultdict(set)
    for folder in snapshots:
        wanted[folder.parent.parent].add(folder.name)
    found = []
    for repository, commits in wanted.items():
        cache = scan_cache_dir(repository.parent)
        # Several repositories can have a commit of the same name.
        mine = replace(cache, repos=frozenset(each for each in cache.repos if each.repo_path == repository))
        if not commits <= {each.commit_hash for repo in mine.repos for each in repo.revisions}:
            raise RunError(
                f"{repository}: something is missing in this folder, so the hub's library cannot remove a part of it.\n"
                "Delete the folder yourself: all of it can be downloaded again."
            )
        strategy = mine.delete_revisions(*commits)
        found.append(Plan(strategy.expected_freed_size, strategy))
    return found


def execute(plan: Plan) -> None:
    """Remove what a plan names.

    Raises:
        RunError: something could not be removed.
    """
    linked = [path for path in plan.strategy.repos if path.is_symlink()]
    folders = [path.resolve() for path in linked]
    with writing(_cache(), variable="HF_HOME"), quiet():
        plan.strategy.execute()
        for folder in folders:  # the library removes only the link to a repository that was moved elsewhere
            shutil.rmtree(folder)
    for path in linked:
        path.unlink(missing_ok=True)
    left = [path for path in plan.paths if path.exists()]
    if left:  # which the library only logs
        raise RunError(f"{left[0]}: cannot be removed; check who may write there.")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the hub's library logs and warns of: cascli says it in words of its own."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _repository(source: HubSource) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return _cache() / repo_folder_name(repo_id=source.hub, repo_type="model")


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).resolve()  # as the library's own paths are
