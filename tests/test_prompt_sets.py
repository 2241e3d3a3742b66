"""Published prompts by name: where their file is stored, and which files are rejected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.cli.complete import prompts as completions
from cascli.errors import UsageError
from cascli.sweeps.plan import SweepPlan
from cascli.sweeps.records import Records
from cascli.sweeps.tasks import task_of
from cascli.weights import prompt_sets
from cascli.weights.prompt_sets import SETS, prompt_set, set_path

LINES = [
    {
        "question_id": 80 + n,
        "category": ("writing", "maths")[n % 2],
        "turns": [f"Ask {n}.", "And why?"],
        "reference": [],
    }
    for n in range(1, 5)
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache folder, and an MT-Bench of four conversations."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path))
    monkeypatch.setitem(prompt_sets.SETS, "mt-bench", replace(SETS["mt-bench"], prompts=4))
    return tmp_path


def put(name: str, text: str) -> None:
    set_path(name).parent.mkdir(exist_ok=True)
    set_path(name).write_text(text)


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_set_is_read_by_its_name_with_turns_and_categories(home: Path) -> None:
    put("mt-bench", lines(LINES))
    found = prompt_set("mt-bench")
    assert [each.id for each in found] == ["81", "82", "83", "84"]
    assert found[0].turns == ("Ask 1.", "And why?") and found[0].category == "maths"
    assert [each.id for each in prompt_set("mt-bench", 2)] == ["81", "82"]


@pytest.mark.parametrize("name", list(SETS))
def test_a_missing_set_error_explains_how_to_get_it_and_where_to_put_it(home: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        prompt_set(name)
    assert SETS[name].about in str(caught.value) and str(set_path(name)) in str(caught.value)
    assert set_path(name) == home / "prompts" / f"{name}.jsonl"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lines(LINES[:3]), "holds 3 prompts, but mt-bench has 4; give your own file by its path"),
        ("\n\n<!DOCTYPE html>\n<html>", "a web page, not the file it shows"),
        (
            lines([*LINES[:3], {"question_id": 9, "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM"]}]),
            "its texts are still missing",
        ),
        (lines([*LINES[:3], LINES[0]]), "two prompts have the id '81'"),
        ("", "no prompts found"),
    ],
)
def test_a_file_that_is_not_the_set_is_refused(home: Path, text: str, words: str) -> None:
    put("mt-bench", text)
    with pytest.raises(UsageError) as caught:
        prompt_set("mt-bench")
    assert words in str(caught.value) and str(set_path("mt-bench")) in str(caught.value)


def test_names_are_completed() -> None:
    assert completions("spe") == ["spec-bench", "speed-bench"]


def test_all_turns_of_a_set_are_answered_and_reported_by_category(home: Path) -> None:
    put("mt-bench", lines(LINES))
    common = [
        "--prompts",
        "mt-bench",
        "-c",
        "tiny-random",
        "--max-new-tokens",
        "4",
        "-s",
        "target",
        "-s",
        "speculative:k=2",
    ]
    out = home / "c.json"
    done = CliRunner().invoke(app, ["compare", *common, "--no-measure", "--by", "category", "-o", str(out), "-q"])
    assert done.exit_code == 0, done.output
    assert "maths, 2 prompts" in done.output and "writing, 2 prompts" in done.output
    document = json.loads(out.read_text())
    assert len(document["runs"]) == 4 * 2 * 2 and {run["turn"] for run in document["runs"]} == {0, 1}
    assert list(document["categories"]) == ["maths", "writing"]
    shown = CliRunner().invoke(app, ["show", str(out), "--by", "category", "-s", "speculative"])
    assert shown.exit_code == 0 and "maths, 2 prompts" in shown.output and "\n  target " not in shown.output
    one = CliRunner().invoke(app, ["compare", *common, "--limit", "1", "--by", "category"])
    assert one.exit_code == 2 and "two or more categories" in one.output


def test_a_sweep_over_a_set_by_category(home: Path) -> None:
    put("mt-bench", lines(LINES))
    plan = {"pair": "tiny-random", "strategies": ["speculative:k=2"], "max_new_tokens": 4, "by": "category"}
    plan |= {"task": {"kind": "mt-bench"}}
    assert [each.turns for each in task_of(SweepPlan.model_validate(plan), Path()).problems] == [
        tuple(row["turns"]) for row in LINES
    ]
    file, out = home / "plan.yaml", home / "out"
    file.write_text(json.dumps(plan))
    done = CliRunner().invoke(app, ["sweep", str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "maths, 2 prompts" in done.output
    assert {record.category for record in Records(out).read()} == {"maths", "writing"}
    table = (out / "categories.csv").read_text().splitlines()
    assert table[0].startswith("category,strategy,") and len(table) == 1 + 2 * 2
    assert [line.split(",")[0] for line in table[1:]] == ["maths", "maths", "writing", "writing"]
    shown = CliRunner().invoke(app, ["show", str(out), "--by", "category"])
    assert shown.exit_code == 0 and "writing, 2 prompts" in shown.output
    assert "MT-Bench" in (out / "report.html").read_text()
