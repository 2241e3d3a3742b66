"""The tests that need a GPU, for `benchmarks.gpu`: each test function in its own process. Does not import torch.

One process per core, long tests first, so the total is little more than the longest. A kernel that breaks the CUDA
context of its process fails only the tests of its own function. Tests that passed before the time was up count.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, deque
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
"""One compiles every kernel for GPUs that may be absent, which takes a minute; the others skip themselves on a GPU."""
_FLAGS = ("-vv", "--tb=short", "--durations=10", "--color=no", "-p", "no:cacheprovider")
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_DURATION = re.compile(r"^ *([\d.]+)s (call|setup|teardown) +(\S+::.+?) *$", re.MULTILINE)


LONGEST = (
    "test_greedy_answers_differ_only_by_rounding",
    "test_the_laws_hold_on_the_device",
    "test_five_tokens_of_captured_rounds_follow_their_law",
    "test_five_tokens_without_graphs_follow_their_law",
    "test_it_computes_what_the_plain_one_does",
    "test_compiled_steps_write_the_same",
    "test_a_truncated_round_equals_the_plain_path",
)
"""Started before the others: they load many models, compile many kernels, or write thousands of answers."""
_LOOKING = 0.05
"""Seconds between two polls of the processes."""


def groups() -> list[str]:
    """Return the pytest names of all test functions, longest-running first."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))]
    names = [
        f"{path}::{name}"
        for path in files
        if path.name not in _NEED_NO_GPU
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    order = {name: place for place, name in enumerate(LONGEST)}
    return sorted(names, key=lambda each: order.get(each.partition("::")[2], len(order)))


def run_tests(names: Sequence[str], seconds: float, at_once: int | None = None) -> dict[str, Any]:
    """Run tests within a time limit; return counts, the names of failures, the slowest tests, and output.

    Args:
        names: as pytest names them.
        seconds: after which running tests are killed and no others are started.
        at_once: number of concurrent processes; by default the number of cores.
    """
    end = time.monotonic() + seconds
    with TemporaryDirectory(prefix="cascli-tests-") as folder:
        outputs = [Path(folder) / f"{number}.txt" for number in range(len(names))]
        codes = _in_turn(names, outputs, end, at_once or os.cpu_count() or 1)
        texts = [output.read_text(encoding="utf-8", errors="replace") if output.exists() else "" for output in outputs]
        ends = [tail(output, lines=80, characters=4000) for output in outputs]
    bad = [number for number, code in enumerate(codes) if code != 0]
    found = summary("\n".join(texts))
    told = {_function(name) for name in found["failures"]}
    # A test that crashed or could not be collected has printed no outcome.
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


def _in_turn(names: Sequence[str], outputs: Sequence[Path], end: float, at_once: int) -> list[int | None]:
    """Return the exit codes; None for processes that had not ended or not started when the time was up."""
    codes: list[int | None] = [None] * len(names)
    waiting, running = deque(range(len(names))), dict[int, Subprocess]()
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                number = waiting.popleft()
                running[number] = Subprocess(["-m", "pytest", *_FLAGS, names[number]], outputs[number])
            for number, child in [*running.items()]:
                codes[number] = child.poll()
                if codes[number] is not None:
                    del running[number]
            time.sleep(_LOOKING)
    finally:
        for child in running.values():
            child.kill()
    return codes


def summary(text: str) -> dict[str, Any]:
    """Return counts and names from the lines that pytest printed."""
    outcomes: dict[str, str] = {}
    for name, outcome in _OUTCOME.findall(text):
        if outcomes.get(name) not in ("FAILED", "ERROR"):  # a later line about the teardown does not undo a failure
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
    """Return file and test function of a name, which pytest prints with a different path and with parameters."""
    path, _, function = name.partition("::")
    return Path(path).name, function.partition("[")[0]


def _short(name: str) -> str:
    return name.removeprefix(f"{ROOT}/")
