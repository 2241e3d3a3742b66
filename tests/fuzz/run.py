"""Changed files one after the other, each read by the real command line in a process forked from a warm one."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz import known
from tests.fuzz.targets import Target, named, targets

SECONDS = 60
"""Time after which an input counts as a hang; the slowest good one takes two seconds on a busy machine."""
MEMORY = 4 << 30
"""Limit in addition to what the process has already mapped."""
CODES = {0, 2, 3}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Tally:
    """Results of a target's inputs."""

    tried: int = 0
    accepted: int = 0
    slowest: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)


def verdict(code: int | None, said: str) -> str | None:
    """What is wrong with how an input ended; None if nothing is."""
    if code is None:
        return "hang"
    if code < 0:
        return f"signal {-code}"
    if code not in CODES:
        return f"exit {code}"
    if "Traceback" in said or "panicked at" in said:
        return "traceback"
    if "cascli: unexpected" in said:
        return "unexpected"
    if CONTROL.search(said):
        return "control character"
    return "long" if code and len(said.splitlines()) > 2 else None


def attempt(arguments: list[str], here: Path, printed: str = os.devnull) -> tuple[int | None, str, float]:
    """Run a command whose stdout goes to the file `printed`.

    Returns its exit code (negative: the signal; None: it was killed after the time limit), stderr, and seconds.
    """
    out = here / "stderr"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_cascli(arguments, out, printed)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - start > SECONDS:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, "", time.monotonic() - start
        time.sleep(0.003)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # whatever is still running
    said = out.read_text(encoding="utf-8", errors="replace")
    return os.waitstatus_to_exitcode(ended[1]), said, time.monotonic() - start


def _be_cascli(arguments: list[str], out: Path, printed: str) -> None:
    """Run the command line in the child process; never returns."""
    from cascli.cli.app import main

    code = 1
    try:
        os.setsid()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number, place in ((0, os.devnull), (1, printed), (2, out)):
            os.dup2(os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        sys.argv = ["cascli", *arguments]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def inputs(home: Path, seconds: float, random: Random, only: str | None) -> Iterator[tuple[Target, str, bytes]]:
    """Good files, inputs that failed before, then changed files of all targets in turn until the time is up."""
    found = [target for target in targets(home) if only in (None, target.name)]
    end = time.monotonic() + seconds
    for target in found:
        for seed in target.seeds:
            yield target, "good", seed.read_bytes()
    for name, what, data in known.cases(home):
        if only in (None, name):
            yield named(found, name), what, data
    while time.monotonic() < end:
        for target in found:
            yield target, "", target.change(random.choice(target.seeds).read_bytes(), random)


def fuzz(home: Path, seconds: float, seed: int, only: str | None = None, save: Path | None = None) -> dict[str, Tally]:
    """Try inputs for `seconds`; failures are saved in `save`, one folder per target."""
    tallies: dict[str, Tally] = {}
    for number, (target, what, data) in enumerate(inputs(home, seconds, Random(seed), only)):
        arguments = target.command(target.place(data, home))
        code, said, took = attempt(arguments, home)
        shutil.rmtree(home / "cache" / "models", ignore_errors=True)
        tally = tallies.setdefault(target.name, Tally())
        tally.tried, tally.accepted = tally.tried + 1, tally.accepted + (code == 0)
        tally.slowest = max(tally.slowest, took)
        wrong = verdict(code, said)
        if what == "good" and code != 0:
            wrong = f"a good file ends with {code}"
        if wrong:
            tally.failures[wrong] += 1
            print(
                f"{target.name}: {what or f'input {number} of seed {seed}'}: {wrong}\n{said[-1500:]}", file=sys.stderr
            )
            if save and not what:
                place = save / target.name.replace(" ", "--")
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{seed}-{number}").write_bytes(data)
    return tallies
