"""reasoning-gym problems: the questions, where the answer is found, and how it is scored."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.errors import ConfigError, UsageError
from cascli.sweeps import gym as problems
from cascli.sweeps.gym import ANSWER_FORMATS, gym
from cascli.sweeps.plan import SweepPlan, TaskConfig, load_plan
from cascli.sweeps.records import Records
from cascli.sweeps.tasks import Task, task_of

pytest.importorskip("reasoning_gym")


def config(**more: object) -> TaskConfig:
    return TaskConfig.model_validate({"kind": "reasoning-gym", "dataset": "chain_sum"} | more)


def task(limit: int | None = 5, plan: dict | None = None, **more: object) -> Task:
    made = {"strategies": ["draft"], "task": config(**more).model_dump(), "limit": limit}
    return task_of(SweepPlan.model_validate(made | (plan or {})), Path())


# ---- questions


def test_prompts_use_the_instruction_that_matches_the_answer_format() -> None:
    for answer, way in ANSWER_FORMATS.items():
        for problem in task(answer=answer).problems:
            assert problem.prompt.startswith("State the final answer to the following arithmetic problem:")
            assert problem.prompt.endswith(f"\n\n{way.ask}") and problem.reference
    own = task(prompt="{question} {instruction}", answer="whole").problems[0].prompt
    assert own.endswith(f"= {ANSWER_FORMATS['whole'].ask}")


def test_the_first_problems_are_the_same_for_any_limit_and_in_any_process() -> None:
    shown, more = (task(n, dataset="gsm_symbolic", shots=2).problems[0] for n in (1, 4))
    assert shown == more  # with its examples, or a sweep resumed with more problems would use other prompts
    few, many = task(3, dataset="gsm_symbolic"), task(30, dataset="gsm_symbolic")
    assert few.problems == many.problems[:3] and few.problems[2].id == "gsm_symbolic-0-2"
    assert few.problem_hashes().items() <= many.problem_hashes().items()
    code = (
        "from tests.test_sweep_gym import task; print(sorted(task(3, dataset='gsm_symbolic').problem_hashes().items()))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(sorted(few.problem_hashes().items()))


def test_other_seeds_and_options_make_other_problems() -> None:
    first = {each.prompt for each in task(20).problems}
    assert first.isdisjoint(each.prompt for each in task(20, seed=10_000).problems)
    longer = task(20, options={"min_terms": 12, "max_terms": 12}).problems
    assert all(each.prompt.count(" + ") + each.prompt.count(" - ") == 11 for each in longer)


def test_no_question_is_asked_twice() -> None:
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    problems = task(60, options=small).problems
    assert len({each.prompt for each in problems}) == 60
    assert len({each.id for each in problems}) == 60 and problems[-1].id != "chain_sum-0-59"
    with pytest.raises(UsageError, match=r"limit: chain_sum has \d+ different problems with seed 0 \(wanted 900\)"):
        task(900, options=small)


def test_examples_come_from_the_dataset_and_are_never_asked() -> None:
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    bare = {each.prompt for each in task(100, options=small).problems}
    shown = task(100, options=small, shots=20).problems
    before, _, asked = shown[0].prompt.partition("Now the next question.\n\n")
    assert asked in bare and all(each.prompt.startswith(before) for each in shown)
    questions = [part.partition("\nAnswer: ")[0] for part in before.split("Question: ")[1:]]
    assert len(questions) == 20 and not any(each in prompt for each in questions for prompt in bare)
    answers = [part.partition("\nAnswer: ")[2].strip() for part in before.split("Question: ")[1:]]
    for question, answer in zip(questions, answers, strict=True):
        sum_ = question.rpartition(": ")[2].removesuffix(" =")
        assert answer == f"<answer>{eval(sum_)}</answer>"


def test_examples_include_worked_solutions_where_the_dataset_has_them() -> None:
    shown = task(1, dataset="gsm_symbolic", shots=2, answer="boxed").problems[0].prompt
    first = shown.split("Question: ")[1].partition("\nAnswer: ")[2].strip().splitlines()
    assert len(first) > 1 and first[-1].startswith("\\boxed{") and "####" not in shown


def test_gym_keys_change_the_fingerprint_of_gym_tasks_only() -> None:
    def fingerprint(**more: object) -> str:
        return SweepPlan.model_validate({"strategies": ["draft"], "task": config(**more)}).fingerprint()

    changes = [
        {},
        {"dataset": "products"},
        {"seed": 1},
        {"options": {"max_terms": 3}},
        {"shots": 1},
        {"answer": "boxed"},
    ]
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint(kind="builtin", seed=1, shots=2) == fingerprint(kind="builtin")


# ---- where the answer is


@pytest.mark.parametrize(
    ("way", "text", "found"),
    [
        ("tag", "<answer>1</answer> no: <answer> 2\n</answer>", "2"),
        ("tag", "The answer is 2.", None),
        ("tag", "cut off at <answer>2", None),
        ("boxed", r"so \boxed{1}, or \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("boxed", r"\boxed{\text{Monday}}", "Monday"),
        ("boxed", r"\boxed{12", None),
        ("boxed", "12", None),
        ("last-number", "3 apples and 4 pears cost $1,234.50.", "1234.50"),
        ("last-number", "It is -7.", "-7"),
        ("last-number", "none", None),
        ("last-line", "I think\n\n**Monday**.\n", "Monday"),
        ("last-line", " \n", None),
        ("whole", " a b\n", "a b"),
        ("whole", "", None),
    ],
)
def test_each_answer_format_finds_its_answer(way: str, text: str, found: str | None) -> None:
    assert ANSWER_FORMATS[way].find(text) == found


@pytest.mark.parametrize("name", ["chain_sum", "gsm_symbolic", "calendar_arithmetic", "spell_backward", "leg_counting"])
@pytest.mark.parametrize("way", list(ANSWER_FORMATS))
def test_an_answer_written_as_the_examples_write_it_is_solved(name: str, way: str) -> None:
    if way == "last-number" and name in ("calendar_arithmetic", "spell_backward"):
        pytest.skip("these are words")
    exam = task(8, dataset=name, answer=way)
    for problem in exam.problems:
        text = ANSWER_FORMATS[way].example.format(problem.reference)
        given = text if way == "whole" else f"First 1, then 2.\n{text}"
        assert exam.score(problem, given, [], None) == 1
        assert exam.score(problem, "", [], None) == 0


# ---- scores


def test_partial_scores_count_only_for_the_score_metric() -> None:
    solved, score = (task(3, dataset="spell_backward", metric=name) for name in ("solved", "score"))
    problem = solved.problems[0]
    assert (solved.metric, score.metric, task().metric) == ("solved", "score", "solved")
    half = f"<answer>{problem.reference[:3]}</answer>"
    assert solved.score(problem, half, [], None) == 0
    assert score.score(problem, half, [], None) == pytest.approx(3 / len(problem.reference))
    longer = f"<answer>{problem.reference}s</answer>"
    assert solved.score(problem, longer, [], None) == 0  # its nine ninths add up to 1.0000000000000002
    assert score.score(problem, longer, [], None) == 1


def test_each_answer_is_scored_by_its_own_problem_also_after_pickling() -> None:
    exam = pickle.loads(pickle.dumps(task(6, answer="whole")))
    right = [
        [exam.score(problem, other.reference or "", [], None) for other in exam.problems] for problem in exam.problems
    ]
    assert right == [[float(i == j) for j in range(6)] for i in range(6)]


def test_separate_problems_calibrate_budgets() -> None:
    exam = task(4, plan={"match": {"target_calls_per_token": 0.5}})
    assert len(exam.problems) == 4 and len(exam.calibration) == 12
    assert not {each.id for each in exam.problems} & {each.id for each in exam.calibration}
    assert len(task(None).problems) == 100


# ---- what is rejected


@pytest.mark.parametrize("name", ["countdown", "puzzle24", "simple_integration", "n_queens", "spiral_matrix"])
def test_scorers_that_may_run_model_output_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} may run model output"):
        gym(config(dataset=name), 1)


def test_problems_that_change_each_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """reasoning-gym 0.1.25 draws some problems of `list_functions` without their seed."""
    right = gym(config(), 3)

    class Drawn:
        made = 0

        def __getitem__(self, place: int) -> dict:
            self.made += place == 2
            entry = dict(right.entries[f"chain_sum-0-{place}"])
            return entry | ({"question": f"{entry['question']} {self.made}"} if place == 2 else {})

    monkeypatch.setattr(problems, "_dataset_of", lambda *_: Drawn())
    assert len(gym(config(), 2).entries) == 2
    with pytest.raises(UsageError, match="problem 2 of chain_sum changes each time it is made"):
        gym(config(), 3)
    with pytest.raises(UsageError, match="problem 2 of chain_sum"):  # as an example of another problem
        gym(config(shots=1), 2).prompts()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "chain_sums"}, "task.dataset: unknown dataset 'chain_sums'; did you mean 'chain_sum'?"),
        ({"options": {"max_term": 3}}, "task.options: unknown option 'max_term'; did you mean 'max_terms'?"),
        ({"options": {"seed": 3}}, "task.options: unknown option 'seed'"),
        ({"options": {"min_terms": 9, "max_terms": 2}}, "task.options: "),
        ({"options": {"min_terms": "nine"}}, "task.options: "),
        ({"prompt": "{query}"}, "task.prompt: '{query}': 'query'; known: {prompt}, {question} and {instruction}"),
        ({"dataset": "graph_color", "shots": 1}, "task.shots: the problems of graph_color have many right answers"),
        ({"metric": "f1"}, "task.metric: reasoning-gym uses its own scorers"),
    ],
)
def test_invalid_settings_are_named(change: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        task(**change)
    assert words in str(caught.value)


def test_its_metrics_are_exclusive_and_it_needs_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"task\.metric: solved needs the task reasoning-gym"):
        task(kind="builtin", metric="solved")
    file = tmp_path / "plan.yaml"
    file.write_text("strategies: [draft]\ntask: {kind: reasoning-gym}\n")
    with pytest.raises(ConfigError, match=r"task\.dataset: this key is required for a task of kind reasoning-gym"):
        load_plan(file)


def test_a_sweep_over_reasoning_gym(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    given = {"pair": "tiny-random", "strategies": ["draft"], "max_new_tokens": 8, "limit": 2, "batch_size": 2}
    file.write_text(json.dumps(given | {"task": {"kind": "reasoning-gym", "dataset": "letter_counting"}}))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["sweep", str(file), "-o", str(out), "-q"])
    assert done.exit_code == 0, done.output
    found = list(Records(out).read())
    assert {record.quality for record in found} == {0.0} and len(found) == 4
    header = Records(out).header()
    assert header.metric == "solved" and "How many times does the letter" in header.prompts["letter_counting-0-0"]
    assert "letter_counting (reasoning-gym)" in (out / "report.html").read_text()
    again = CliRunner().invoke(app, ["sweep", "--limit", "3", str(file), "-o", str(out), "-q", "--resume"])
    assert again.exit_code == 0, again.output
    assert len(list(Records(out).read())) == 6
