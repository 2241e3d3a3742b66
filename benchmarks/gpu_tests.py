"""The tests that need a GPU, for `benchmarks.gpu`, some functions of a file to a process. Does not import torch.

One process per core, long tests first, so the total is little more than the longest; each process spends some ten
seconds on imports. A kernel that breaks the CUDA context of its process fails the tests that come after it, so what
fails is run again on its own. Tests that passed before the time was up count.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
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
_STARTED = re.compile(r"^\S+\.py::\w+", re.MULTILINE)
_TEST = re.compile(r"\S+\.py::\w+")
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
_TOGETHER = 6
"""Largest number of functions of a process."""
_LOOKING = 0.05
"""Seconds between two polls of the processes."""


def groups() -> list[list[str]]:
    """Return the pytest names of all test functions, those of one process together, longest-running first."""
    together: list[list[str]] = []
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))):
        found = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        names = [] if path.name in _NEED_NO_GPU else [f"{path}::{name}" for name in found]
        short = [name for name in names if name.partition("::")[2] not in LONGEST]
        together += [[name] for name in names if name not in short]
        together += [short[start : start + _TOGETHER] for start in range(0, len(short), _TOGETHER)]
    order = {name: place for place, name in enumerate(LONGEST)}
    return sorted(together, key=lambda names: order.get(names[0].partition("::")[2], len(order)))


@dataclass
class _Job:
    """A process with the tests of some functions of one file."""

    names: Sequence[str]
    output: Path
    again: bool = False
    """Whether it runs a function that failed in a process with others."""
    code: int | None = None
    """Exit code; None if it had not ended, or not begun, when the time was up."""

    @property
    def text(self) -> str:
        """What pytest has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def not_passed(self) -> list[str]:
        """The functions that failed or did not end; all of them if the process failed without saying in which."""
        if self.code == 0:
            return []
        text = self.text
        failed = {_function(name) for name in summary(text)["failures"]}
        ended = {_function(name) for name, _ in _OUTCOME.findall(text)}
        if self.code not in (0, 1):  # it crashed or was cut off, perhaps in a later case of the function it was in
            ended -= {_function(name) for name in _STARTED.findall(text)[-1:]}
        found = [name for name in self.names if _function(name) in failed or _function(name) not in ended]
        return found or list(self.names)

    def lines(self, leaving_out: Container[tuple[str, str]]) -> str:
        """What pytest has printed of the tests of all but some functions."""
        tests = ((line, _TEST.search(line)) for line in self.text.splitlines())
        return "\n".join(line for line, test in tests if test and _function(test[0]) not in leaving_out)


def run_tests(groups: Sequence[Sequence[str]], seconds: float, at_once: int | None = None) -> dict[str, Any]:
    """Run tests within a time limit; return counts, the names of failures, the slowest tests, and output.

    A function that fails in a process with others, which may have broken it, is run again on its own; that decides.

    Args:
        groups: test functions as pytest names them, those of one process together.
        seconds: after which running tests are killed and no others are started.
        at_once: number of concurrent processes; by default the number of cores.
    """
    end = time.monotonic() + seconds
    with TemporaryDirectory(prefix="cascli-tests-") as folder:
        jobs = _in_turn(groups, Path(folder), end, at_once or os.cpu_count() or 1)
        decided = {_function(job.names[0]) for job in jobs if job.again and job.code is not None}
        found = summary("\n".join(job.lines(() if job.again else decided) for job in jobs))
        bad = {}
        for job in jobs:
            names = [name for name in job.not_passed() if job.again or _function(name) not in decided]
            if names and not (job.again and job.code is None):  # the time was up: what it did with others counts
                bad[", ".join(map(_short, names))] = job, names, tail(job.output, lines=80, characters=4000)
    told = {_function(name) for name in found["failures"]}
    ended = [names for job, names, _ in bad.values() if job.code is not None]
    # A test that crashed or could not be collected has printed no outcome.
    broken = [_short(name) for names in ended for name in names if _function(name) not in told]
    found["failed"] += len(broken)
    found["failures"] += broken
    return {
        **found,
        "seconds": time.monotonic() - end + seconds,
        "out_of_time": [_short(name) for job, names, _ in bad.values() if job.code is None for name in names],
        "exit_codes": {label: job.code for label, (job, _, _) in bad.items()},
        "output": {label: text for label, (_, _, text) in bad.items()},
    }


def _in_turn(groups: Sequence[Sequence[str]], folder: Path, end: float, at_once: int) -> list[_Job]:
    """Run a process per group, and one for each function that did not pass in a process with others."""
    jobs = [_Job(names, folder / f"{number}.txt") for number, names in enumerate(groups)]
    waiting, running = deque(jobs), list[tuple[_Job, Subprocess]]()
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                running.append((job, Subprocess(["-m", "pytest", *_FLAGS, *job.names], job.output)))
            for job, child in [*running]:
                job.code = child.poll()
                if job.code is not None:
                    running.remove((job, child))
                    alone = job.not_passed() if len(job.names) > 1 else []
                    more = [_Job([name], folder / f"{len(jobs) + i}.txt", again=True) for i, name in enumerate(alone)]
                    jobs += more
                    waiting += more
            time.sleep(_LOOKING)
    finally:
        for _, child in running:
            child.kill()
    return jobs


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
