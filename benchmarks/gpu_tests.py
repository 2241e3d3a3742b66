"""The tests that need a GPU, for `benchmarks.gpu`: every test function in a process of its own, all at once. No torch.

Side by side they take as long as the longest; and a kernel that breaks its process's CUDA context fails its own
function's tests alone. What had passed when the time was up counts.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.subprocess_runner import ROOT, Subprocess, tail

FOLDERS = ("tests/gpu", "tests/kernels")
_NEED_NO_GPU = (
    "test_audit.py",
    "test_compile_for_gpu.py",
    "test_in_decoding.py",
    "test_lanes_in_decoding.py",
    "test_law_in_decoding.py",
)
"""The first compiles every kernel for a GPU that need not be there, which takes a minute; on a GPU the other skips."""
_FLAGS = ("-vv", "--tb=short", "--durations=10", "--color=no", "-p", "no:cacheprovider")
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_DURATION = re.compile(r"^ *([\d.]+)s (call|setup|teardown) +(\S+::.+?) *$", re.MULTILINE)


def groups() -> list[str]:
    """Every test function, as pytest names it."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))]
    return [
        f"{path}::{name}"
        for path in files
        if path.name not in _NEED_NO_GPU
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def run_tests(names: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run these within so many seconds: counts, the names of those that failed, the slowest, and what was said."""
    end = time.monotonic() + seconds
    with TemporaryDirectory(prefix="cascli-tests-") as folder:
        outputs = [Path(folder) / f"{number}.txt" for number in range(len(names))]
        children: list[Subprocess] = []
        try:
            for name, output in zip(names, outputs, strict=True):
                children.append(Subprocess(["-m", "pytest", *_FLAGS, name], output))
            codes = [child.wait(end - time.monotonic()) for child in children]
        finally:
            for child in children:
                child.kill()
        texts = [output.read_text(encoding="utf-8", errors="replace") for output in outputs]
        ends = [tail(output, lines=80, characters=4000) for output in outputs]
    bad = [number for number, code in enumerate(codes) if code != 0]
    found = summary("\n".join(texts))
    told = {_function(name) for name in found["failures"]}
    # One that broke off, or could not be collected, has printed no outcome.
    broken = [_short(names[i]) for i in bad if codes[i] is not None and _function(names[i]) not in told]
    found["failed"] += len(broken)
    found["failures"] += broken
    return {
        **found,
        "seconds": time.monotonic() - end + seconds,
        "out_of_time": [_short(name) for name, code in zip(names, codes, strict=True) if code is None],
        "exit_codes": {_short(names[number]): codes[number] for number in bad},
        "output": {_short(names[number]): ends[number] for number in bad},
    }


def summary(text: str) -> dict[str, Any]:
    """Counts and names of what pytest printed, line by line."""
    outcomes: dict[str, str] = {}
    for name, outcome in _OUTCOME.findall(text):
        if outcomes.get(name) not in ("FAILED", "ERROR"):  # which a later line on its teardown does not undo
            outcomes[name] = outcome
    counts = Counter(outcomes.values())
    slowest = sorted(
        ((float(spent), f"{name} ({when})") for spent, when, name in _DURATION.findall(text)), reverse=True
    )
    return {
        "passed": counts["PASSED"] + counts["XPASS"],
        "failed": counts["FAILED"] + counts["ERROR"],
        "skipped": counts["SKIPPED"] + counts["XFAIL"],
        "failures": [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")],
        "slowest": [{"seconds": spent, "test": name} for spent, name in slowest[:10]],
    }


def _function(name: str) -> tuple[str, str]:
    """The file and the test function of a name, which pytest prints with another path and with parameters."""
    path, _, function = name.partition("::")
    return Path(path).name, function.partition("[")[0]


def _short(name: str) -> str:
    return name.removeprefix(f"{ROOT}/")
