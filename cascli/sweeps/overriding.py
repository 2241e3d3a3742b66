"""Override keys of the sweep file by flags, the environment or Python keywords, and complete them by the pair's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascli.errors import UsageError, located
from cascli.prompts import read_prompts
from cascli.settings import Settings
from cascli.strategies import load, parse
from cascli.sweeps.plan import Entry, SweepPlan, TaskConfig
from cascli.sweeps.tasks import TASK_BY_METRIC
from cascli.weights.prompt_sets import SETS

KEYS = {"strategy": "strategies", "temperature": "temperatures", "seed": "seeds"} | {
    key: key for key in ("max_new_tokens", "top_k", "top_p", "dtype", "device", "limit", "system", "raw", "stop")
}
"""Common options that override a key of the sweep file, and that key."""
OF_PAIR = ("temperature", "seed", "max_new_tokens", "top_k", "top_p", "system", "raw", "stop")
"""Those that the pair's file may set where the sweep file does not."""


def overridden(
    plan: SweepPlan,
    given: Settings,
    defaults: Settings,
    batch_size: int | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> SweepPlan:
    """Return the plan with the given values in place of those in its file, and the pair's for what its file leaves out.

    Args:
        plan: the plan as it was read.
        given: the settings that override it.
        defaults: those of the pair's file.
        batch_size: overrides the plan's; None keeps it.
        elsewhere: where settings were given that are not on the command line; errors about them start with it.

    Raises:
        UsageError: an unknown strategy, a batch size below 1, prompts that cannot be read, or read again (a pipe), or a
            new temperature where it is unclear which strategies run at it.
    """
    if batch_size is not None:
        if batch_size < 1:
            raise UsageError(f"batch_size: expected 1 or more (got {batch_size})")
        plan = plan.model_copy(update={"batch_size": batch_size})
    values, where = given.given(), elsewhere or {}
    changed = _of_pair(plan, defaults) | {KEYS[key]: value for key, value in values.items() if key in KEYS}
    for key in ("temperatures", "seeds"):
        if key in changed:
            changed[key] = [changed[key]]
    known = "temperature" not in values or changed["temperatures"][0] in plan.temperatures
    if not known and "strategies" not in changed:
        named = plan.named_temperatures()
        if named:  # nothing says which of them run at a new temperature
            at, new = (" and ".join(f"{each:g}" for each in some) for some in (named, changed["temperatures"]))
            with located(where.get("temperature", "")):
                raise UsageError(f"strategies of this sweep are for temperature {at}; choose those for {new} with -s")
    if given.prompts is not None:
        with located(where.get("prompts", "")):
            changed["task"] = _with_prompts(given.prompts, plan.task)
    plan = plan.model_copy(update=changed)
    for length in (given.num_speculative_tokens, defaults.num_speculative_tokens):
        plan = plan if length is None else _with_length(plan, length)
    if "strategies" in changed:
        with located(where.get("strategy", "")):
            plan.specs()
    return plan


def _of_pair(plan: SweepPlan, defaults: Settings) -> dict[str, Any]:
    """What the pair's file sets and the sweep file does not.

    The pair's token limit is for a single answer to look at; it only ever raises that of a sweep, whose answers are to
    end on their own. Where entries of `strategies` name temperatures, those are the sweep's.
    """
    values = {KEYS[key]: value for key, value in defaults.given().items() if key in OF_PAIR}
    changed = {key: value for key, value in values.items() if key not in plan.model_fields_set}
    if plan.named_temperatures():
        changed.pop("temperatures", None)
    if "max_new_tokens" in changed:
        changed["max_new_tokens"] = max(changed["max_new_tokens"], plan.max_new_tokens)
    return changed


def _with_prompts(prompts: str, task: TaskConfig) -> TaskConfig:
    """Return a task with other prompts; it keeps its metric unless that belongs to one kind of task."""
    if prompts == "-":
        raise UsageError(
            "a sweep reads its prompts again when it resumes, which a pipe cannot do; give a file of prompts, not -."
        )
    metric = None if task.metric in TASK_BY_METRIC else task.metric
    if prompts == "builtin" or prompts in SETS:
        return TaskConfig.model_validate({"kind": prompts, "metric": metric})
    path = Path(prompts).expanduser()
    read_prompts(path)  # raise its errors here: later ones would blame the sweep file
    return TaskConfig(kind="jsonl", path=str(path.absolute()), metric=metric)


def _with_length(plan: SweepPlan, k: int) -> SweepPlan:
    """Return the plan with k drafted tokens per round wherever its file does not set k."""
    changed: dict[str, Any] = {"strategies": [_entry_with_length(entry, k) for entry in plan.strategies]}
    if plan.match is not None and "k" not in plan.match.model_fields_set:
        changed["match"] = plan.match.model_copy(update={"k": k})
    return plan.model_copy(update=changed)


def _entry_with_length(entry: Entry, k: int) -> Entry:
    if not isinstance(entry, Mapping):
        return parse(entry, k).spec
    return {
        name: {**params, "k": k} if "k" not in params and "k" in load(name).keys({}) else params
        for name, params in entry.items()
    }
