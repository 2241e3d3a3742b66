"""Run the grid of a sweep, and keep every result as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cascli.sweep.judged import Judged, Matched
from cascli.sweep.plan import Match, SweepPlan
from cascli.sweep.records import Record, Records
from cascli.sweep.tasks import Exam
from cascli.sweep.units import Unit, units

Tell = Callable[[str, int, int], None]


class Executor(Protocol):
    """Where a sweep's work is done: a `Worker` in this process, or many of them elsewhere."""

    def about(self) -> dict[str, str]:
        """Machine, versions and models."""

    def judged(self, k: int, tell: Tell | None = None) -> list[Judged]:
        """Every rule at every alpha and temperature, judged along one speculative run a prompt."""

    def matched(self, wanted: Match, tell: Tell | None = None) -> list[Matched]:
        """For each temperature, rule and budget the alpha that comes nearest."""

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """One record a unit, each as soon as it is there."""


def sweep(
    executor: Executor,
    plan: SweepPlan,
    exam: Exam,
    records: Records,
    done: dict[tuple[str, str], Record],
    tell: Tell | None = None,
) -> None:
    """Do what is not done yet; an answer that fails is recorded with its error, and the rest goes on.

    Args:
        executor: has the pair.
        plan: the grid.
        exam: the prompts and the judge.
        records: where results are kept.
        done: what was there already; completed in place.
        tell: told what was done last and at what speed, how many results there are, and of how many.
    """
    work = list(units(plan, exam))
    todo = [unit for unit in work if unit.key not in done]
    start, tokens = time.perf_counter(), 0
    for record in executor.run(todo):
        records.add(record)
        done[record.key] = record
        tokens += len(record.token_ids)
        if tell is not None:
            speed = tokens / (time.perf_counter() - start)
            tell(f"{record.problem} {record.cell.strategy}, {speed:.1f} tokens/s", len(done), len(work))
