"""Prompts from Hugging Face datasets, read from a folder because the tests cannot reach the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.errors import ConfigError, RunError, UsageError
from cascli.sweeps.dataset import downloads_forbidden
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


def asked(task: SweepPlan, folder: Path) -> list[str]:
    return [problem.prompt for problem in task_of(task, folder).problems]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_single_file_is_a_dataset(folder: Path, ending: str) -> None:
    """It has one split, whatever its name; the library detects the format by the suffix."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    write = {"csv": rows.to_csv, "parquet": rows.to_parquet}.get(ending, rows.to_json)
    write(str(folder / f"mine.{ending}"))
    for split in ("test", "validation"):
        assert asked(plan(path=f"mine.{ending}", split=split), folder) == [row["question"] for row in ROWS]
    assert asked(plan(path=f"mine.{ending}", split="test[1:3]"), folder) == [row["question"] for row in ROWS[1:3]]


def test_a_dataset_saved_to_disk_can_be_read(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"test": rows, "train": rows.select([0])}).save_to_disk(str(folder / "splits"))
    assert asked(plan(path="one"), folder) == asked(plan(path="splits"), folder) == [row["question"] for row in ROWS]
    assert len(asked(plan(path="splits", split="train"), folder)) == 1
    with pytest.raises(RunError, match="dataset 'splits': it has no split 'nothing'; it has: test, train"):
        task_of(plan(path="splits", split="nothing"), folder)


def test_plain_folders_have_no_subsets_but_copies_from_the_hub_do(folder: Path) -> None:
    assert len(asked(plan(subset="main"), folder)) == len(ROWS)
    card = "---\nconfigs:\n- config_name: few\n  data_files:\n  - {split: test, path: few.jsonl}\n"
    card += "- config_name: all\n  data_files:\n  - {split: test, path: test.jsonl}\n---\n"
    (folder / "sums" / "README.md").write_text(card)
    (folder / "sums" / "few.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert len(asked(plan(subset="few"), folder)) == 1
    with pytest.raises(RunError, match="dataset 'sums'"):
        task_of(plan(subset="main"), folder)


def test_shuffled_rows_are_identified_by_their_original_index(folder: Path) -> None:
    problems = task_of(plan(shuffle=3), folder).problems
    assert [problem.prompt for problem in problems] != [row["question"] for row in ROWS]
    for problem in problems:
        assert problem.prompt == ROWS[int(problem.id.removeprefix("test-"))]["question"]
    fewer = plan(shuffle=3).model_copy(update={"limit": 2})
    assert task_of(fewer, folder).problems == problems[:2]
    assert task_of(plan(shuffle=4), folder).problems != problems


def test_a_revision_is_passed_to_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    called = []
    rows = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: called.append((args, more)) or rows)
    task_of(plan(path="some/where", subset="main", revision="refs/convert/parquet"), folder)
    assert called == [(("some/where", "main"), {"revision": "refs/convert/parquet", "split": "test"})]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "{query}"}, "task.prompt: the dataset has no column 'query'; it has: question, answer"),
        ({"reference": "{gold}"}, "task.reference: the dataset has no column 'gold'"),
        ({"prompt": "{question"}, "task.prompt: '{question'"),
        ({"reference": None}, "the metric number needs a 'reference'"),
    ],
)
def test_a_missing_column_is_named(folder: Path, change: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        task_of(plan(**change), folder)
    assert words in str(caught.value)


def test_a_missing_split_is_an_error(folder: Path) -> None:
    with pytest.raises(RunError, match="dataset 'sums'"):
        task_of(plan(split="train"), folder)


def test_a_dataset_that_is_not_on_disk_is_an_error_offline(folder: Path) -> None:
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


def test_the_hubs_warnings_of_retries_are_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command without network showed five of them, with the hub's address, before its own error."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub.utils import logging

    seen = []

    def unreachable(*_: object, **__: object) -> None:
        seen.append(logging.get_verbosity())
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    before = logging.get_verbosity()
    with pytest.raises(RunError, match="dataset 'nobody/none': Couldn't reach it"):
        task_of(plan(path="nobody/none"), folder)
    assert seen == [logging.ERROR] and logging.get_verbosity() == before


@pytest.mark.parametrize(("before", "offline"), [(False, False), (False, True), (True, False), (True, True)])
def test_downloads_are_forbidden_only_while_datasets_are_read(
    before: bool, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own HF_HUB_OFFLINE is obeyed without --offline, and is as it was afterwards, also after an error."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", before)
    seen = []

    def read() -> None:
        with downloads_forbidden(offline):
            seen.append(config.HF_HUB_OFFLINE)
            raise OSError("unreachable")

    with pytest.raises(OSError, match="unreachable"):
        read()
    assert seen == [before or offline]
    assert config.HF_HUB_OFFLINE is before
