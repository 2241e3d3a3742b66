"""Pairs at real shapes on a GPU, with random weights: `python -m benchmarks.gpu --help`, `make bench-gpu`.

For each pair: step times, c compared with the ratio of bytes, v, share of the memory bandwidth, speculation at chosen
acceptance rates compared with theory, and transformers on the same weights. transformers has no setting for how many
drafts to accept, so its assisted generation is timed per round, and its speed at an acceptance rate is computed from
the tokens per round at that rate. Each row (a pair with plain or compiled steps) is measured in its own process. The
file is written after each part of a row, and stderr has its figures, so that a run that is cut off leaves what it has
measured; on SIGTERM it ends as if the time were up. No network is needed. The last line is one JSON document.

Time budget in seconds, on an H100: 520 in all, which leaves 20 of nine minutes for Python to start and end.
- 400 for rows. The plain rows take about 315 of them: 55, 45, 65, 75, 75. In each, 10 to 15 go to starting and loading,
  5 to capturing graphs, 3 to 20 to steps, 5 to 20 to speculation, 10 to transformers, 5 to the profiler.
- A compiled row takes 180 to 330, nearly all of it in torch.compile: first cascli's steps, at the end those of
  transformers, whose generate compiles automatically with a static cache. It runs after its pair's plain row if that
  leaves the expected time of the remaining rows; otherwise it is deferred to the end and gets what the tests left.
  That is seldom enough: `--only-compiled --no-tests --add -o FILE` measures such rows in a separate run and adds them
  to the file.
- A row may use the time that the remaining rows are not expected to need. In its last 15 seconds it starts no further
  part (`left_out` in its entry lists those); at its end it is killed, and what it had saved is kept. Parts for which
  there was no time are marked as such in the file and in the table.
- At most 120 for the tests, in parallel processes. `--no-tests` gives this time to the rows, `--tests-only` the other
  way round.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import gpu_job, needs
from benchmarks.gpu_job import Ask, Job
from benchmarks.gpu_tests import groups, run_tests
from benchmarks.machine import facts
from benchmarks.shapes import PAIRS, pair_config

PACKAGES = ("torch", "transformers", "triton")
_UNKNOWN_SECONDS = (120.0, 300.0)
"""Seconds that a pair with real weights is assumed to need, with plain and with compiled steps."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a pair with real weights instead: name or YAML file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of a run; at most 64 for targets beyond 10 GB")
    parser.add_argument("--context", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--repeats", type=int, default=5, help="at most 3 for targets beyond 10 GB")
    parser.add_argument(
        "--pairs",
        type=int,
        nargs="*",
        choices=range(len(PAIRS)),
        metavar="N",
        help="only those with these numbers, from 0",
    )
    parser.add_argument("--shrink", type=int, default=1, help="divide widths and layers, to try the program out")
    parser.add_argument("--seconds", type=float, default=520, help="end after this long, tests included")
    parser.add_argument("--test-seconds", type=float, default=120, help="of these, kept for the tests")
    parser.add_argument("--no-compiled", action="store_true", help="leave out compiled steps")
    parser.add_argument("--only-compiled", action="store_true", help="leave out steps as they are")
    tests = parser.add_mutually_exclusive_group()
    tests.add_argument("--no-tests", action="store_true", help="measure pairs alone")
    tests.add_argument("--tests-only", action="store_true", help="run the GPU tests alone")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here, part by part")
    parser.add_argument(
        "--add", action="store_true", help="to the rows and tests that the file has, not in their place"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, test and print one JSON document."""
    options = arguments(argv)
    needs.check(purposes(options))
    from benchmarks.gpu_table import show

    end = time.monotonic() + options.seconds
    document: dict[str, Any] = {"schema": "cascli.gpu/1", **facts(PACKAGES), "device": options.device, "pairs": []}
    if options.add:
        document |= _before(options.output)
    jobs = [] if options.tests_only else planned(options)
    kept = 0.0 if options.no_tests else options.test_seconds
    _write(document, options.output)  # a file that cannot be written is an error now, not after the first row
    try:
        waiting = measure(jobs, end - kept, document, options.output, put_off=True)
        if not options.no_tests:
            document["tests"] = run_tests(groups(), min(options.test_seconds, end - time.monotonic()))
            _write(document, options.output)
        measure(waiting, end, document, options.output, put_off=False)
    finally:
        show(document)
        print(json.dumps(document), flush=True)


def purposes(options: argparse.Namespace) -> list[str]:
    """Return what is planned besides measuring on a CPU."""
    return ["cuda"] * options.device.startswith("cuda") + ["tests"] * (not options.no_tests)


def _before(output: Path | None) -> dict[str, Any]:
    """Return the rows and tests of the file that results are added to."""
    if output is None or not output.exists():
        return {}
    found = json.loads(output.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("pairs", "tests") if key in found}


def planned(options: argparse.Namespace) -> list[Job]:
    """Return the rows in their order: each pair with plain steps, then compiled if that is measured."""
    compile_too = options.device.startswith("cuda") and not options.no_compiled
    found = []
    for config, seconds, compiled_seconds in _configs(options):
        if not options.only_compiled:
            found.append(Job(_ask(config, options, compiled=False), seconds))
        if compile_too:
            found.append(Job(_ask(config, options, compiled=True), compiled_seconds))
    return found


def _configs(options: argparse.Namespace) -> list[tuple[Any, float, float]]:
    """Return the pairs, with the seconds for each of their rows."""
    if options.config:
        path = Path(options.config)
        return [(str(path.absolute()) if path.exists() else options.config, *_UNKNOWN_SECONDS)]
    chosen = PAIRS if options.pairs is None else [PAIRS[number] for number in options.pairs]
    return [
        (pair_config(each.draft, each.target, options.shrink), each.seconds, each.compiled_seconds) for each in chosen
    ]


def _ask(config: Any, options: argparse.Namespace, *, compiled: bool) -> Ask:
    return Ask(
        config=config,
        compiled=compiled,
        device=options.device,
        dtype=options.dtype,
        k=options.k,
        tokens=options.tokens,
        contexts=options.context,
        repeats=options.repeats,
    )


def measure(
    jobs: Sequence[Job], end: float, document: dict[str, Any], output: Path | None, *, put_off: bool
) -> list[Job]:
    """Measure rows until `end`, a reading of the monotonic clock, adding them to the document.

    Returns:
        Compiled rows that would have left others too little time, if rows may be deferred.
    """
    waiting = []
    for number, job in enumerate(jobs):
        left = end - time.monotonic()
        rest = jobs[number + 1 :]
        others = sum(each.seconds for each in rest if not each.ask.compiled)
        if put_off and job.ask.compiled and left < job.seconds + others:
            waiting.append(job)
            continue
        if job.ask.compiled:  # a compiled row leaves other compiled rows their expected time too
            others = sum(each.seconds for each in rest)
        add = partial(_add, document, output)
        add(gpu_job.run(job, min(left, max(job.seconds, left - others)), add))
    return waiting


def _add(document: dict[str, Any], output: Path | None, found: dict[str, Any]) -> None:
    """Add a row, or replace it, in the document and its file; print the fields that are new."""
    row: dict[str, Any] = next((each for each in document["pairs"] if _key(each) == _key(found)), {})
    document["pairs"] = in_order([*document["pairs"], found])
    document["device"] = found.get("device", document["device"])
    new = {key: value for key, value in found.items() if key in ("name", "compiled") or row.get(key) != value}
    print(json.dumps(new), file=sys.stderr, flush=True)
    _write(document, output)


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with each pair's next to each other, compiled last; the latest if a row is repeated."""
    latest = {_key(row): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    return [latest[key] for name in names for key in ((name, False), (name, True)) if key in latest]


def _key(row: dict[str, Any]) -> tuple[str, bool]:
    return row["name"], row["compiled"]


def _write(document: dict[str, Any], output: Path | None) -> None:
    if output:
        new = output.with_name(output.name + ".new")
        new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        new.replace(output)  # atomic: a run that is killed here leaves the file as it was


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the processes of rows and tests too
    main()
