"""The work of a sweep, cut into units. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cascli.sweeps.plan import BASELINE, Cell, SweepPlan
from cascli.sweeps.tasks import Example, Task


class Unit(NamedTuple):
    """One cell and one prompt: what becomes one record."""

    cell: Cell
    problem: Example
    place: tuple[int, int] = (0, 0)
    """Where the plan lists its repeat, temperature and seed, and its strategy."""

    @property
    def key(self) -> tuple[str, str]:
        """As that of the record that it becomes."""
        return self.cell.key, self.problem.id


def units(plan: SweepPlan, task: Task) -> Iterator[Unit]:
    """All work, strategies side by side on each prompt, so that a noisy machine is noisy for all of them."""
    cells = plan.cells()
    blocks = list(dict.fromkeys((cell.repeat, cell.temperature, cell.seed) for cell in cells))
    for block, (repeat, temperature, seed) in enumerate(blocks):
        here = [cell for cell in cells if (cell.repeat, cell.temperature, cell.seed) == (repeat, temperature, seed)]
        for problem in task.problems:
            for place, cell in enumerate(here):
                yield Unit(cell, problem, (block, place))


def by_prompt(work: Iterable[Unit]) -> list[list[Unit]]:
    """Units in a row that ask the same prompt under the same circumstances: what one worker does in one go."""
    return [list(group) for _, group in groupby(work, key=_circumstances)]


def by_cell(work: Iterable[Unit]) -> list[list[Unit]]:
    """The units of each cell, `target` first, then as the plan lists them, so that work at once is of one strategy.

    Its throughput is then its own, the target's answers are there when others are held against them, and a sweep that
    is cut off has done what its plan lists first.
    """
    work = sorted(work, key=lambda unit: (unit.place[0], unit.cell.strategy != BASELINE, unit.place[1]))
    return [list(group) for _, group in groupby(work, key=lambda unit: unit.cell.key)]


def batches(work: Iterable[Unit], size: int) -> list[list[Unit]]:
    """Units of one cell, so many at a time: what one worker does at once."""
    return [cell[start : start + size] for cell in by_cell(work) for start in range(0, len(cell), size)]


def _circumstances(unit: Unit) -> tuple[object, ...]:
    cell = unit.cell
    return unit.problem.id, cell.temperature, cell.seed, cell.repeat
