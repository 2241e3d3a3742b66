"""How far apart the two models are on tasks: the output, and that answered problems are not answered again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.task_gap import TASKS, gap, main
from cascli.sweeps.plan import SweepPlan
from cascli.sweeps.table import SweepRows, rows
from cascli.sweeps.tasks import task_of
from tests.sweeps import plan_of, records_of


def test_every_listed_task_has_problems() -> None:
    pytest.importorskip("reasoning_gym")
    for name, task in TASKS.items():
        if task["kind"] == "reasoning-gym":
            plan = SweepPlan.model_validate({"strategies": ["draft"], "task": task, "limit": 100})
            assert len(task_of(plan, Path()).problems) == 100, name


def test_the_gap_is_the_quality_of_the_target_minus_that_of_the_draft() -> None:
    plan = plan_of(strategies=["draft"], temperatures=[0.0])
    records = records_of(plan)
    found = gap("made-up", SweepRows(rows(records, plan)))
    assert found["gap"] == pytest.approx(found["target"] - found["draft"]) and found["gap"] > 0
    assert found["low"] <= found["gap"] <= found["high"] and found["kind"] == "95%"
    assert found["problems"] == 8 and found["cut draft"] == 0


def test_tasks_are_answered_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    common = ["-c", "tiny-random", "--dtype", "float32", "--max-new-tokens", "4", "-o", str(tmp_path), "--tasks"]
    main([*common, "chain-sum", "letters", "--limit", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "chain-sum", "letters"]
    kept = tmp_path / "chain-sum" / "records.jsonl"
    before = kept.read_text()
    assert len(before.splitlines()) == 4
    main([*common, "chain-sum", "--limit", "3"])
    assert kept.read_text().startswith(before) and len(kept.read_text().splitlines()) == 6
    document = json.loads((tmp_path / "gaps.json").read_text())
    assert [each["task"] for each in document["tasks"]] == ["chain-sum"]
    assert document["tasks"][0]["problems"] == 3 and document["tasks"][0]["cut target"] == 1
