"""One row of `benchmarks.gpu`: what its process is asked for, and how its answer comes back. No torch.

A failed capture, or a kernel that reads where it must not, leaves a CUDA context in which nothing works any more: each
row is measured by a process of its own (`benchmarks.gpu_pair`). It saves its entry after every part, so that a row
that fails or is killed half-way keeps what it had.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.subprocess_runner import Subprocess, tail

_LEAST = 20.0
"""Seconds under which no row is begun: importing and loading alone take most of them."""
_MARGIN = 15.0
"""Seconds, of the row's limit, in which no further part is begun."""
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Ask:
    """What a row's process is to measure."""

    config: Any
    """A pair's name or file, or what would be in the file."""
    compiled: bool
    device: str
    dtype: str
    k: int
    tokens: int
    contexts: list[int]
    repeats: int
    until: float = float("inf")
    """The time of day after which no further part is begun."""

    @property
    def name(self) -> str:
        """Of the pair."""
        return str(self.config["name"] if isinstance(self.config, dict) else self.config)

    def save(self, path: Path) -> None:
        """Write it for the process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Ask:
        """Read it there."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Job:
    """A row, and the seconds that it is expected to take."""

    ask: Ask
    seconds: float

    @property
    def least(self) -> float:
        """Seconds under which it is not begun: compiling has nothing to show half-way."""
        return 0.6 * self.seconds if self.ask.compiled else _LEAST


def run(job: Job, limit: float) -> dict[str, Any]:
    """The row's entry, whatever becomes of its process within `limit` seconds."""
    about = {"name": job.ask.name, "compiled": job.ask.compiled}
    if limit < job.least:
        return {**about, "skipped": OUT_OF_TIME}
    start = time.monotonic()
    with TemporaryDirectory(prefix="cascli-gpu-") as folder:
        request, result, output = (Path(folder) / name for name in ("request.json", "result.json", "output.txt"))
        soft = limit - min(_MARGIN, limit / 4)
        Ask(**{**asdict(job.ask), "until": time.time() + soft}).save(request)
        code = Subprocess(command(request, result), output).wait(limit)
        said = tail(output)
        print(said, file=sys.stderr)
        found = {**about, **(json.loads(result.read_text(encoding="utf-8")) if result.exists() else {})}
    found["wall_seconds"] = time.monotonic() - start
    if code is None and "profiles" not in found:
        found["skipped"] = OUT_OF_TIME
    if code is None:
        found["error"] = f"killed after {limit:.0f} s\n{said}"
    elif code != 0:
        found["error"] = said or f"exit code {code}"
    return found


def command(request: Path, result: Path) -> list[str]:
    """The arguments of the row's Python process."""
    return ["-m", "benchmarks.gpu_pair", str(request), str(result)]
