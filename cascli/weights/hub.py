"""Models from the Hugging Face hub, kept in the hub's own cache, which other tools share.

Errors of huggingface_hub are turned into messages that say what to do next.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cascli.config import HubSource
from cascli.errors import CascliError, RunError, first_line
from cascli.weights.disk import writing
from cascli.weights.hub_answers import SECONDS, checked
from cascli.weights.hub_cache import quiet
from cascli.weights.manifest import sha256_of
from cascli.weights.report import Report

_ALLOW_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40
_URL_SECRETS = re.compile(r"(?<=://)[^\s/@]*@|\?[^\s'\")]+")
_one_at_a_time = threading.RLock()
_TRANSPORTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}
_IGNORE_PATTERNS = [
    "consolidated*",
    "original/*",
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "metal/*",
    "runs/*",
    "checkpoint-*",
]


def cached_snapshot(source: HubSource) -> Path | None:
    """The folder of this repository and revision in the hub cache; None unless it has a config and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**_files(source), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except ValueError as error:  # a name that cannot be a repository
        raise RunError(f"{source}: {first_line(error)}") from None
    return folder if has_model(folder) else None


def repair(source: HubSource, folder: Path, names: list[str], report: Report) -> Path:
    """Fetch the named files of a snapshot again, and all that it lacks; return its folder.

    The commit stays, wherever its branch has moved since. The old files are put back if no new ones arrive.

    Raises:
        RunError: gated, no network, or not enough disk space.
    """
    from huggingface_hub import HfApi

    pinned = source.model_copy(update={"revision": folder.name})
    with _explained(source), _one_at_a_time, checked(source), quiet():
        HfApi().repo_info(source.hub, revision=folder.name)  # a download would be content with what there is
    links = {folder / name: (folder / name).readlink() for name in names}
    blobs = {path: path.resolve() for path in links}
    aside = {blob: blob.with_name(f"{blob.name}.changed") for blob in blobs.values()}
    try:
        with writing(folder, variable="HF_HOME"):
            for path, blob in blobs.items():
                if blob.exists():
                    blob.replace(aside[blob])
                path.unlink()
        download_snapshot(pinned, report)
        missing = [path.name for path in links if not path.exists()]
        if missing:
            raise RunError(f"{source}: the hub did not send {missing[0]}.\nTry again: complete files are kept.")
    finally:
        for path, link in links.items():
            if not path.is_symlink():
                path.symlink_to(link)
        for blob, old in aside.items():
            if old.exists() and blob.exists():
                old.unlink()
            elif old.exists():
                old.replace(blob)
    return folder


def download_snapshot(source: HubSource, report: Report) -> Path:
    """Download configuration, tokenizer and safetensors of `source` and return their folder.

    Raises:
        RunError: gated, not found, no network, no safetensors, or not enough disk space.
    """
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    # One at a time, since `checked` and `quiet` change what belongs to the whole process.
    with _explained(source), writing(cache, variable="HF_HOME"), _one_at_a_time, checked(source), quiet():
        folder = snapshot_download(**_files(source), tqdm_class=_reporting(report))
    if not has_model(Path(folder)):
        raise RunError(f"{source}: the repository has no config.json with safetensors weights.\nChoose one that has.")
    return Path(folder)


def _files(source: HubSource) -> dict[str, Any]:
    names = {"allow_patterns": _ALLOW_PATTERNS, "ignore_patterns": _IGNORE_PATTERNS}
    return {"repo_id": source.hub, "revision": source.revision, **names}


def has_model(folder: Path) -> bool:
    """Whether `folder` has a config.json and every safetensors file of its index, or the only one."""
    if not (folder / "config.json").is_file():
        return False
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / shard).is_file() for shard in set(index["weight_map"].values()))
    except FileNotFoundError:
        return (folder / "model.safetensors").is_file()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def changed(folder: Path) -> list[str] | None:
    """The files of a snapshot whose content does not match their name in the hub's cache.

    That is a sha256 for large files, and git's hash for the others. None if the cache has no such names.
    """
    named = {path: path.resolve().name for path in sorted(folder.rglob("*")) if path.is_symlink()}
    hashes = {_SHA256_DIGITS: sha256_of, _SHA1_DIGITS: _git_hash}
    known = {path: name for path, name in named.items() if len(name) in hashes}
    if not known:
        return None
    different = [path for path, name in known.items() if not path.exists() or hashes[len(name)](path) != name]
    return [path.relative_to(folder).as_posix() for path in different]


def _git_hash(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    try:
        yield
    except CascliError:
        raise
    except Exception as error:
        message = _message(error, source)
        if message is None:
            raise
        raise RunError(f"{source}: {_URL_SECRETS.sub('', message)}") from None


def _message(error: Exception, source: HubSource) -> str | None:
    """What an error means, and what to do; None for errors that are not the hub's."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{source.hub}"
    match error:
        case errors.GatedRepoError():
            return f"the repository is gated.\nAccept its licence on {page}, run 'hf auth login' and try again."
        case errors.RevisionNotFoundError():
            return f"the repository has no revision '{source.revision}'. See {page} for those it has."
        case errors.RepositoryNotFoundError():
            return "no such repository, or it is private. Check 'hub:'; for a private one run 'hf auth login'."
        case errors.HFValidationError():
            return first_line(error)
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return _unreached(error, source)
        case errors.HfHubHTTPError():
            return _refused(error)
    # The transport library differs between versions of huggingface_hub, and so do its errors.
    if type(error).__module__.partition(".")[0] in _TRANSPORTS:
        return f"the connection to the hub broke: {first_line(error)}\nTry again: complete files are kept."
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return "a file arrived with another length than the hub says it has.\nTry again: complete files are kept."
    if isinstance(error, ValueError | LookupError | TypeError | AssertionError | AttributeError):
        return f"the hub's answer is invalid: {first_line(error)[:200]}"
    return None


def _unreached(error: Exception, source: HubSource) -> str:
    """Why the hub did not answer, where huggingface_hub reports only that its cache has no such entry."""
    from huggingface_hub import errors

    if isinstance(error.__cause__, errors.HfHubHTTPError):
        return _refused(error.__cause__)
    if "Timeout" in type(error.__cause__).__name__:
        return f"the hub has not responded for {SECONDS} s.\nTry again later."
    return (
        "the hub cannot be reached (or HF_HUB_OFFLINE is set) and the model is not in the hub's cache.\n"
        f"Run 'hf download {source.hub} --revision {source.revision}' with a network, or give the model as 'path:'."
    )


def _refused(error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    if status in {401, 403}:
        return f"the hub refused access ({status}). Log in with 'hf auth login', or check what your token may read."
    if status == 429:
        return "the hub is limiting requests from this machine (429).\nTry again later, or log in with 'hf auth login'."
    return f"the hub answered with an error: {first_line(error)}\nTry again later."


def _reporting(report: Report) -> Any:
    """A progress bar class that draws nothing; the bar that counts written bytes forwards them to `report`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            self._done, self._turn = 0, threading.Lock()
            super().__init__(*args, **(kwargs | {"disable": True}))
            self.total = kwargs.get("total") or 0

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                with self._turn:  # files arrive in several threads
                    self._done += int(n or 0)
                    report("download", self._done, max(int(self.total), self._done))

    return Bar
