"""Whether a comparison is fair on a machine that others use: `python -m benchmarks.fairness -o FILE.json`.

Both schedules run the same comparison in turn: on the machine as it is, and under a load that comes and goes (busy
processes, in slots of some seconds that are on or off at random). Requirements: on a quiet machine the two agree within
3%; under load the median error of a fair ratio against the quiet one is at most 10%. The error of the sequential ratio
is reported with it. The pair's steps are also timed next to zero, one and two processes that are always busy, to show
what the load does to the ratio itself, whatever the schedule.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.machine import facts
from cascli import compare, load_pair
from cascli.analysis.statistics import median
from cascli.jobs.profile import profile
from cascli.models.pair import Pair
from cascli.prompts import builtin

STRATEGIES = ("target", "speculative:k=4", "speculative-cascade:rule=token-v3,alpha=0.3,k=4")
SCHEDULES: tuple[Literal["fair", "sequential"], ...] = ("fair", "sequential")
PROMPTS = 12
"""Number of different prompts; quiet and loaded runs use the same ones."""
Ratios = dict[str, list[float]]
"""By strategy: its speed relative to the target's, in each repeat."""
Log = list[tuple[int, float, bool]]
"""Slots of a load: the process, when the slot began, and whether the process was busy in it."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="threads of every run (default all cores)")
    parser.add_argument("--quiet-runs", type=int, default=5)
    parser.add_argument("--loaded-runs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2, help="busy processes of the load")
    parser.add_argument("--slot", type=float, default=5.0, help="seconds that a process is on or off")
    parser.add_argument("--step-repeats", type=int, default=8, help="timed steps of each kind beside busy processes")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON document."""
    options = arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = load_pair(options.config, dtype=options.dtype)
    quiet = measured(pair, options.quiet_runs, options.max_new_tokens)
    steps = beside(pair, options.step_repeats) if options.step_repeats else []
    log: Log = []
    loaded: dict[str, Ratios] = {}
    if options.loaded_runs:
        with load(options.processes, options.slot) as log:
            loaded = measured(pair, options.loaded_runs, options.max_new_tokens)
    document: dict[str, Any] = {
        "schema": "cascli.fairness/1",
        **facts(),
        "pair": options.config,
        "dtypes": pair.info.dtypes,
        "max_new_tokens": options.max_new_tokens,
        "threads": torch.get_num_threads(),
        "quiet": quiet,
        "loaded": loaded,
        "quiet_difference": difference(quiet),
        "loaded_error": {schedule: error(ratios, quiet) for schedule, ratios in loaded.items()},
        "steps": steps,
        "load": [{"process": place, "began": began, "busy": busy} for place, began, busy in sorted(log, key=_began)],
    }
    text = json.dumps(document, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measured(pair: Pair, runs: int, tokens: int) -> dict[str, Ratios]:
    """Return the ratios by schedule; both schedules answer a prompt before either takes the next one."""
    found: dict[str, Ratios] = {schedule: {name: [] for name in STRATEGIES[1:]} for schedule in SCHEDULES}
    for repeat in range(runs):
        for schedule in SCHEDULES if repeat % 2 else SCHEDULES[::-1]:
            comparison = compare(
                pair,
                builtin()[7 * (repeat % PROMPTS) % len(builtin())],
                STRATEGIES,
                max_new_tokens=tokens,
                temperature=0,
                schedule=schedule,
                measure=False,
                warm_up=repeat == 0,
            )
            for row in comparison.summary[1:]:
                found[schedule][row.strategy].append(row.speed_vs_target or 0.0)
    return found


def difference(quiet: dict[str, Ratios]) -> dict[str, float]:
    """Return, by strategy, the median relative difference of fair to sequential ratios of the same prompts."""
    return {
        name: median([a / b for a, b in zip(quiet["fair"][name], quiet["sequential"][name], strict=True)]) - 1
        for name in STRATEGIES[1:]
    }


def error(loaded: Ratios, quiet: dict[str, Ratios]) -> dict[str, float]:
    """Return the median error of single ratios against the quiet one of the same prompt, or of all if it has none."""
    result = {}
    for name, ratios in loaded.items():
        both = [median(pair) for pair in zip(quiet["fair"][name], quiet["sequential"][name], strict=True)]
        by_prompt = {i: median(both[i::PROMPTS]) for i in range(min(PROMPTS, len(both)))}
        truths = [by_prompt.get(i % PROMPTS, median(both)) for i in range(len(ratios))]
        result[name] = median([abs(ratio / truth - 1) for ratio, truth in zip(ratios, truths, strict=True)])
    return result


def beside(pair: Pair, repeats: int) -> list[dict[str, float]]:
    """Time steps, and the ratio of a speculation round (k = 4) to a target step, next to busy processes; twice."""
    found = []
    for threads in dict.fromkeys((torch.get_num_threads(), 1)):
        for processes in (0, 1, 2) * 2:
            with at_most(threads), load(processes, 0.0):
                steps = profile(pair, 100, blocks=[1, 5], repeats=repeats)
            draft, target, block = steps.draft[1].median, steps.target[1].median, steps.target[5].median
            found.append(
                {"threads": threads, "busy": processes, "draft": draft, "target": target, "target_of_5": block}
                | {"round_over_step": (4 * draft + block) / target}
            )
    return found


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Compute with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def load(processes: int, slot: float) -> Iterator[Log]:
    """Run processes that are busy or idle at random, slot by slot; their log is complete once they have ended.

    With slots of length 0 they are always busy, and nothing is logged.
    """
    log: Log = []
    queue: multiprocessing.Queue[tuple[int, float, bool]] = multiprocessing.Queue()
    start = time.time()
    workers = [
        multiprocessing.Process(target=_busy, args=(place, slot, start, queue), daemon=True)
        for place in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        yield log
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        while not queue.empty():
            log.append(queue.get())


def _busy(place: int, slot: float, start: float, log: multiprocessing.Queue[tuple[int, float, bool]]) -> None:
    rng = random.Random(place)
    while not slot:
        sum(range(10_000))
    while True:
        busy, began = rng.random() < 0.5, time.time()
        log.put((place, round(began - start, 2), busy))
        while time.time() - began < slot:
            if busy:
                sum(range(10_000))
            else:
                time.sleep(0.05)


def _began(entry: tuple[int, float, bool]) -> tuple[float, int]:
    return entry[1], entry[0]


if __name__ == "__main__":
    main()
