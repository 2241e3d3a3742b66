"""Prompts whose answers are scored, for commands other than sweeps: a sweep's task, or a metric over a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cascli.cli import common
from cascli.errors import UsageError, located, unknown

if TYPE_CHECKING:
    from cascli.cli.common import Plan
    from cascli.cli.options import Flags
    from cascli.config import PairConfig
    from cascli.jobs.advise import Score
    from cascli.prompts import Prompt
    from cascli.settings import Resolved
    from cascli.sweeps.plan import SweepPlan
    from cascli.sweeps.tasks import Task
    from cascli.trace import Run


class Scored(NamedTuple):
    """The prompts, and how their answers are scored."""

    prompts: list[Prompt]
    score: Score | None
    settings: Resolved


class Models(NamedTuple):
    """The pair and the precision named in a task's file."""

    pair: PairConfig
    dtype: str | None


def models_of(task: str, flags: Flags) -> Models | None:
    """The models of a task's file; None if flags or the environment name a pair.

    Raises:
        ConfigError: a sweep or a pair that does not exist, or an error in one.
    """
    from cascli.sweeps.plan import load_plan, pair_of, plan_file

    if common.requested_pair(flags) is not None:
        return None
    file = plan_file(task)
    sweep = load_plan(file)
    return Models(pair_of(sweep, file.parent, str(file)), sweep.chosen_dtype)


def scored(
    argument: str | None,
    plan: Plan,
    flags: Flags,
    command: str,
    task: str | None,
    metric: str | None,
    *,
    allow_code: bool = False,
    unsafe_code: bool = False,
) -> Scored:
    """The prompts of a command and, if a task or metric is given, what scores their answers.

    Raises:
        UsageError: several sources of prompts, a metric that does not exist or does not fit, no prompts, or a task that
            runs model-written code without permission.
    """
    settings = plan.settings
    if task is None and metric is None:
        return Scored(common.prompts(argument, plan, command, whole=True), None, settings)
    if argument is not None or (task is not None and (plan.given.prompts is not None or metric is not None)):
        raise UsageError("scores need either a task (--task) or a file of prompts (--prompts, --metric); give one.")
    from cascli.prompts import read_prompts
    from cascli.sweeps.run import allowed
    from cascli.sweeps.tasks import task_of

    sweep, folder, where = _plan_of(task, settings.prompts, metric)
    if sweep.max_prompt_tokens is not None:
        raise UsageError(f"--task: {task} cuts its prompts (max_prompt_tokens), which only sweeps do.")
    limit = settings.limit if sweep.task.kind == "reasoning-gym" else None  # it makes as many as requested
    limited = sweep.model_copy(update={"limit": limit, "match": None})
    if sweep.task.path is not None and task is None:
        with located(plan.elsewhere("prompts")):
            read_prompts(Path(sweep.task.path).expanduser())  # later errors would name a key of a sweep file
    loaded = task_of(limited, folder, offline=settings.offline, where=where)
    if loaded.metric == "pass@1":
        loaded, warning = allowed(loaded, allow=allow_code, unsafe=unsafe_code)
        if warning is not None:
            plan.screen.note(warning)
    if loaded.metric == "corpus-bleu":
        raise UsageError("the metric corpus-bleu scores all answers together and has no mean; use bleu or chrf.")
    if loaded.needs_target and settings.temperature:
        raise UsageError("the metric agreement needs greedy answers: give --temperature 0, or another metric.")
    if task is not None:
        settings = _settings_of(sweep, settings, flags)
    return Scored(_prompts(loaded), _score(loaded), settings)


def _plan_of(task: str | None, prompts: str | None, metric: str | None) -> tuple[SweepPlan, Path, str]:
    """The sweep whose task is used, the folder that its paths are relative to, and its file, if it has one."""
    from typing import get_args

    from cascli.sweeps.plan import SweepPlan, TaskConfig, load_plan, plan_file

    if task is not None:
        file = plan_file(task)
        return load_plan(file), file.parent, str(file)
    known = [each for kind in get_args(TaskConfig.model_fields["metric"].annotation) for each in get_args(kind)]
    if metric not in known:
        raise UsageError(f"--metric: {unknown('metric', str(metric), known)}")
    if prompts is None or prompts == "-":
        raise UsageError("--metric: give --prompts FILE.jsonl, with a 'reference' to score each answer against.")
    source = {"kind": "builtin"} if prompts == "builtin" else {"kind": "jsonl", "path": prompts}
    config = TaskConfig.model_validate({**source, "metric": metric})
    return SweepPlan(strategies=["target"], task=config), Path(), ""


def _settings_of(sweep: SweepPlan, settings: Resolved, flags: Flags) -> Resolved:
    """The settings, with those of the task's file where neither a flag nor the environment sets them."""
    given = common.requested_settings(flags).given()
    own: dict[str, Any] = {
        "max_new_tokens": sweep.max_new_tokens,
        "system": sweep.system,
        "raw": sweep.raw,
        "stop": sweep.stop,
        "top_k": sweep.top_k,
        "top_p": sweep.top_p,
    }
    return replace(settings, **{key: value for key, value in own.items() if key not in given})


def _prompts(task: Task) -> list[Prompt]:
    from cascli.prompts import Prompt

    return [Prompt(each.turns, each.id, each.category) for each in task.problems]


def _score(task: Task) -> Score:
    problems = {each.id: each for each in task.problems}

    def score(prompt: Prompt, run: Run, target: Run) -> float:
        return task.score(problems[prompt.id], run.text, run.token_ids, target.token_ids)

    return score
