"""The tables of docs/results.md: costs are those of the records, and steps are priced as they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.study_table import HEADINGS, PRICES, costs_of, machine_of, study_table
from cascli.analysis.replay import Machine
from cascli.sweeps.records import Record, Records
from cascli.sweeps.run import sweep
from cascli.sweeps.table import SweepRow

V = [1.0, 1.1, 1.25, 1.5, 1.9]
MACHINE = Machine(step_seconds=0.1, c=0.3, v=V, outside=0.0, outside_alone=0.0, draft_reading=0.3)
STRATEGIES = [
    *("target", "draft", "speculative:k=3", "speculative-cascade:rule=opt,alpha=0.3,k=2"),
    *("speculative:draft=prompt-lookup,k=4", "speculative:k=5", "speculative:stop=max-q,k=auto"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[SweepRow], list[Record]]:
    folder = tmp_path_factory.mktemp("results") / "study-tiny"
    plan = {"pair": "tiny-random", "strategies": STRATEGIES, "limit": 5, "max_new_tokens": 11}
    rows = sweep(plan, output=folder)
    return folder, rows, list(Records(folder).read())


def test_costs_are_those_of_the_records(study: tuple[Path, Sequence[SweepRow], list[Record]]) -> None:
    _, rows, records = study
    for row, k in zip(rows, [0, 0, 3, 2, 4, None, None], strict=True):
        mine = [record for record in records if record.cell.strategy == row.strategy]
        calls, steps = (fmean(getattr(each, key) for each in mine) for key in ("target_calls", "draft_calls"))
        wanted = [pytest.approx(calls + price * steps) for price in PRICES]
        here = None if k is None else pytest.approx(calls * V[k] + MACHINE.c * steps)  # longer than was timed, or any
        assert costs_of(row, MACHINE) == [*wanted, here]
        assert costs_of(row, None) == [*wanted, None]


def test_a_study_has_a_line_for_each_strategy_and_a_cell_for_each_heading(
    study: tuple[Path, Sequence[SweepRow], list[Record]],
) -> None:
    folder, _, _ = study
    lines = [line for line in study_table([folder]).splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(STRATEGIES)  # with the headings and the rule under them
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert cells[0] == list(HEADINGS) and {len(row) for row in (cells[0], *cells[2:])} == {len(HEADINGS)}
    assert machine_of(folder.parent / "advice-float32.json") is None
    assert cells[2][HEADINGS.index("here")] == "–"  # nobody has measured what steps cost
