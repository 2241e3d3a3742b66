"""Prompts from Hugging Face datasets, from a folder: the hub cannot be reached here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.errors import ConfigError, RunError, UsageError
from cascli.sweeps.plan import SweepPlan, load_plan
from cascli.sweeps.records import Records
from cascli.sweeps.tasks import task_of

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is #### {2 * n}"} for n in range(1, 6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "sums"
    path.mkdir()
    path.joinpath("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def plan(**task: object) -> SweepPlan:
    given = {"kind": "dataset", "path": "sums", "prompt": "{question}", "reference": "{answer}", "metric": "number"}
    return SweepPlan.model_validate({"pair": "tiny-random", "strategies": ["draft"], "task": given | task})


def test_columns_become_prompts_and_references(folder: Path) -> None:
    exam = task_of(plan(prompt="Q: {question}").model_copy(update={"limit": 3}), folder)
    assert [problem.prompt for problem in exam.problems] == [f"Q: What is {n} and {n}?" for n in (1, 2, 3)]
    assert exam.problems[2].reference == "It is #### 6" and exam.problems[0].id == "test-0"
    assert exam.score(exam.problems[2], "I think it is 6.", [], None) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "{query}"}, "task.prompt: the dataset has no column 'query'; it has: question, answer"),
        ({"reference": "{gold}"}, "task.reference: the dataset has no column 'gold'"),
        ({"prompt": "{question"}, "task.prompt: '{question'"),
        ({"reference": None}, "the metric number needs a 'reference'"),
    ],
)
def test_a_column_that_is_not_there_is_named(folder: Path, change: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        task_of(plan(**change), folder)
    assert words in str(caught.value)


def test_a_split_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(RunError, match="dataset 'sums'"):
        task_of(plan(split="train"), folder)


def test_a_dataset_on_no_disk_and_offline_is_an_error(folder: Path) -> None:
    with pytest.raises(RunError, match="dataset 'nobody/nothing'"):
        task_of(plan(path="nobody/nothing"), folder, offline=True)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'cascli\[datasets\]'"):
        task_of(plan(), tmp_path)


def test_without_reasoning_gym_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError, match=r"pip install 'cascli\[reasoning-gym\]'"):
        task_of(plan(kind="reasoning-gym", dataset="chain_sum", seed=987, metric=None), tmp_path)


def test_a_dataset_needs_a_path(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("strategies: [draft]\ntask: {kind: dataset}\n")
    with pytest.raises(ConfigError, match=r"task\.path: this key is required for a task of kind dataset"):
        load_plan(file)


def test_a_sweep_over_a_dataset_with_likelihoods(folder: Path) -> None:
    file = folder / "plan.yaml"
    given = plan().model_dump(include={"pair", "strategies", "task"}) | {"likelihood": True, "limit": 2}
    file.write_text(json.dumps(given | {"max_new_tokens": 8}))
    done = CliRunner().invoke(app, ["sweep", str(file), "-o", str(folder / "out"), "-q"])
    assert done.exit_code == 0, done.output
    found = list(Records(folder / "out").read())
    assert len(found) == 4 and all(record.log_likelihood and record.log_likelihood < 0 for record in found)
    assert "log_likelihood" in (folder / "out" / "results.csv").read_text()
