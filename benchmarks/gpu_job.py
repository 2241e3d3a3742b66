"""One row of `benchmarks.gpu`: the request to its process, and how the result comes back. Does not import torch.

After a failed capture or an illegal memory access nothing works in a CUDA context any more, so each row is measured in
its own process (`benchmarks.gpu_pair`). The process saves its entry after every part, so a row that fails or is killed
keeps its results so far; and they are passed on at once, in case this process is killed too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.subprocess_runner import Subprocess, tail

_LEAST = 20.0
"""Seconds below which no row is started: importing and loading alone take most of them."""
_MARGIN = 15.0
"""Seconds at the end of a row's limit in which no further part is started."""
_LOOKING = 0.2
"""Seconds between two looks at the process and its entry."""
OUT_OF_TIME = "out of time"
UNFINISHED = "not finished when this was written"
Seen = Callable[[dict[str, Any]], None]
"""Called with the entry of a running row whenever a part is done."""


@dataclass(frozen=True)
class Ask:
    """What the process of a row has to measure."""

    config: Any
    """A pair's name or file, or the contents of one."""
    compiled: bool
    device: str
    dtype: str
    k: int
    tokens: int
    contexts: list[int]
    repeats: int
    until: float = float("inf")
    """Time (`time.time()`) after which no further part is started."""

    @property
    def name(self) -> str:
        """Name of the pair."""
        return str(self.config["name"] if isinstance(self.config, dict) else self.config)

    def save(self, path: Path) -> None:
        """Write the request for the process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Ask:
        """Read the request in the process."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Job:
    """A row and the seconds that it is expected to take."""

    ask: Ask
    seconds: float

    @property
    def least(self) -> float:
        """Seconds below which the row is not started: half-finished compilation yields no result."""
        return 0.6 * self.seconds if self.ask.compiled else _LEAST


def run(job: Job, limit: float, seen: Seen = lambda _: None) -> dict[str, Any]:
    """Measure a row in at most `limit` seconds and return its entry, whatever happens to its process."""
    about = {"name": job.ask.name, "compiled": job.ask.compiled}
    if limit < job.least:
        return {**about, "skipped": OUT_OF_TIME}
    start = time.monotonic()
    with TemporaryDirectory(prefix="cascli-gpu-") as folder:
        request, result, output = (Path(folder) / name for name in ("request.json", "result.json", "output.txt"))
        soft = limit - min(_MARGIN, limit / 4)
        Ask(**{**asdict(job.ask), "until": time.time() + soft}).save(request)
        code = _wait(
            Subprocess(command(request, result), output), limit, result, lambda entry: seen({**about, **entry})
        )
        print(tail(output), file=sys.stderr)
        said = tail(output, lines=80, characters=6000)
        found = {**about, **_entry(result)}
    found["wall_seconds"] = time.monotonic() - start
    if code is None and "profiles" not in found:
        found["skipped"] = OUT_OF_TIME
    if code is None:
        found["error"] = f"killed after {limit:.0f} s\n{said}"
    elif code != 0:
        found["error"] = said or f"exit code {code}"
    return found


def _wait(child: Subprocess, limit: float, result: Path, seen: Seen) -> int | None:
    """Return the exit code, None if the process was killed after `limit` seconds; pass on each new entry."""
    end, known = time.monotonic() + limit, dict[str, Any]()
    try:
        while (code := child.poll()) is None and time.monotonic() < end:
            time.sleep(_LOOKING)
            if (entry := _entry(result)) != known:
                known = entry
                seen({**entry, "error": UNFINISHED})
        return code
    finally:
        child.kill()


def _entry(result: Path) -> dict[str, Any]:
    """Return what the process has saved so far."""
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    return found


def command(request: Path, result: Path) -> list[str]:
    """Return the arguments of the row's Python process."""
    return ["-m", "benchmarks.gpu_pair", str(request), str(result)]
