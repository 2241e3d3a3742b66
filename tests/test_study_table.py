"""The tables of docs/results.md: costs match the records, and steps have the prices that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.study_table import HEADINGS, Price, costs_at, price_of, study_table, with_late_steps
from cascli import Pair
from cascli.sweeps.records import Record, Records
from cascli.sweeps.run import sweep
from cascli.sweeps.table import SweepRow

V = [1.0, 1.1, 1.25, 1.5, 1.9]
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


def test_costs_match_the_records(study: tuple[Path, Sequence[SweepRow], list[Record]]) -> None:
    _, rows, records = study
    flat, here = costs_at(Price(0.2), rows, records), costs_at(Price(0.3, V), rows, records)
    for row, k in zip(rows, [0, 0, 3, 2, 4, None, None], strict=True):
        mine = [record for record in records if record.cell.strategy == row.strategy]
        calls, steps = (fmean(getattr(each, key) for each in mine) for key in ("target_calls", "draft_calls"))
        assert flat[row.strategy].mean == pytest.approx(calls + 0.2 * steps)
        if k is None:  # a longer block than was timed, or one of any length
            assert row.strategy not in here
        else:
            assert here[row.strategy].mean == pytest.approx(calls * V[k] + 0.3 * steps)


def test_costs_are_compared_with_the_cheapest_lossless_strategy(
    study: tuple[Path, Sequence[SweepRow], list[Record]],
) -> None:
    _, rows, records = study
    lossy = "speculative-cascade:rule=opt,alpha=0.3,k=2"
    for price in (Price(0.0), Price(5.0)):  # only checks cost something; drafts are expensive
        found = costs_at(price, rows, records)
        exact = {name: cost.mean for name, cost in found.items() if cost.over_lossless is None}
        assert set(found) - set(exact) == {lossy, "draft"}
        ratio = found[lossy].over_lossless
        assert ratio is not None and ratio.of_means == pytest.approx(found[lossy].mean / min(exact.values()))
        assert ratio.prompts == 5
    assert exact["target"] < exact["speculative:k=3"]  # at the last price, all are compared with the target alone


def test_a_study_has_a_line_for_each_strategy_and_a_cell_for_each_heading(
    study: tuple[Path, Sequence[SweepRow], list[Record]],
) -> None:
    folder, _, _ = study
    lines = [line for line in study_table([folder]).splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(STRATEGIES)  # with the headings and the line under them
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert cells[0] == list(HEADINGS) and {len(row) for row in (cells[0], *cells[2:])} == {len(HEADINGS)}
    assert price_of(folder.parent / "advice-float32.json") is None
    assert cells[2][HEADINGS.index("here")] == "–"  # step costs were not measured


def test_corrected_steps_of_older_records_are_an_upper_bound(
    tmp_path: Path, request: pytest.FixtureRequest, text_pair: Pair
) -> None:
    """For the same answers, they are at most one too many per turn, if it ended within a block."""
    rules = ["opt,alpha=0.3", "mixture,target_weight=0.6", "min-p,alpha=0.5"]
    specs = [f"speculative-cascade:rule={rule},k={k}" for rule in rules for k in (1, 3)]
    specs += ["speculative:k=3", "speculative-cascade:rule=opt,stop=max-q,k=3", "draft", "target"]
    specs += ["speculative-cascade:rule=token-v3,draft=prompt-lookup,k=4"]
    plan = {"pair": "tiny-random", "strategies": specs, "limit": 2, "max_new_tokens": 20, "temperatures": [0.0, 1.0]}
    sweep(plan, output=tmp_path / "now", pair=text_pair)
    request.getfixturevalue("asked_at_once")
    sweep(plan, output=tmp_path / "then", pair=text_pair)
    now, then = ({(r.cell, r.problem): r for r in Records(tmp_path / name).read()} for name in ("now", "then"))
    fewer = 0
    for key, record in then.items():
        made, most = now[key].draft_calls, with_late_steps(record).draft_calls
        assert record.token_ids == now[key].token_ids
        assert made <= most <= record.draft_calls
        assert most - made <= (record.turns or 0) or "stop" in key[0].strategy
        fewer += record.draft_calls - most
    assert fewer > 25
