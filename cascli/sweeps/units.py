"""The work of a sweep, split into units. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cascli.settings import TARGET
from cascli.sweeps.plan import Cell, SweepPlan
from cascli.sweeps.tasks import Example, Task


class Unit(NamedTuple):
    """One cell and one prompt, which become one record."""

    cell: Cell
    problem: Example
    place: tuple[int, int] = (0, 0)
    """Position in the plan: of its repeat, temperature and seed, and of its strategy."""

    @property
    def key(self) -> tuple[str, str]:
        """Key of the record that the unit becomes."""
        return self.cell.key, self.problem.id


def units(plan: SweepPlan, task: Task) -> Iterator[Unit]:
    """Yield all work, the strategies side by side on each prompt, so that noise of the machine affects all of them."""
    cells = plan.cells()
    blocks = list(dict.fromkeys((cell.repeat, cell.temperature, cell.seed) for cell in cells))
    for block, (repeat, temperature, seed) in enumerate(blocks):
        in_block = [cell for cell in cells if (cell.repeat, cell.temperature, cell.seed) == (repeat, temperature, seed)]
        for problem in task.problems:
            for place, cell in enumerate(in_block):
                yield Unit(cell, problem, (block, place))


def by_prompt(work: Iterable[Unit]) -> list[list[Unit]]:
    """Group successive units with the same prompt, temperature, seed and repeat: one job for a worker."""
    return [list(group) for _, group in groupby(work, key=_circumstances)]


def by_cell(work: Iterable[Unit]) -> list[list[Unit]]:
    """Group units by cell, `target` first, then in the plan's order, so that concurrent work is of one strategy.

    Its throughput is then its own, the target's answers exist when others are compared with them, and an interrupted
    sweep has finished what its plan lists first.
    """
    work = sorted(work, key=lambda unit: (unit.place[0], unit.cell.strategy != TARGET, unit.place[1]))
    return [list(group) for _, group in groupby(work, key=lambda unit: unit.cell.key)]


def batches(work: Iterable[Unit], size: int) -> list[list[Unit]]:
    """Split the units of each cell into groups of at most `size`, which one worker decodes concurrently."""
    return [cell[start : start + size] for cell in by_cell(work) for start in range(0, len(cell), size)]


def _circumstances(unit: Unit) -> tuple[object, ...]:
    cell = unit.cell
    return unit.problem.id, cell.temperature, cell.seed, cell.repeat
