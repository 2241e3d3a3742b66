"""`cascli show -s NAME --prompt ID`: some strategies, or one prompt, of a saved document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from cascli.errors import UsageError, unknown

if TYPE_CHECKING:
    from cascli.analysis.comparison import Comparison
    from cascli.render.answer_costs import Priced
    from cascli.sweeps.table import SweepTable
    from cascli.trace import Run

StrategyFilter = Callable[[str], bool]


def strategy_filter(specs: Iterable[str], names: Sequence[str]) -> StrategyFilter:
    """A test of whether a strategy is among those named; it accepts all if none was named.

    Raises:
        UsageError: a name fits none of `specs`.
    """
    available = list(dict.fromkeys(specs))
    for name in names:
        if not any(_fits(name, spec) for spec in available):
            raise UsageError(unknown("strategy", name, available))
    return lambda spec: not names or any(_fits(name, spec) for name in names)


def _fits(name: str, spec: str) -> bool:
    """Whether `spec` has the same name and all parameters that `name` gives."""
    (wanted_name, params), (spec_name, spec_params) = _parts(name), _parts(spec)
    return wanted_name == spec_name and params <= spec_params


def _parts(spec: str) -> tuple[str, set[str]]:
    name, _, rest = spec.partition(":")
    return name.strip(), {part.strip() for part in rest.split(",") if part.strip()}


def of_comparison(whole: Comparison, names: Sequence[str], prompt: str | None) -> Comparison:
    """Some strategies of a comparison, on one prompt if it is given.

    Raises:
        UsageError: nothing has that name.
    """
    from cascli.analysis.comparison import summarise

    runs, rows, repeats = whole.runs, whole.summary, whole.repeats
    if prompt is not None:
        runs = _runs_of_prompt(runs, prompt)
        specs = list(dict.fromkeys(run.spec for run in runs))
        # From the first repeat only: the traces of the others were not kept.
        rows, repeats = summarise([[[run for run in runs if run.spec == spec] for spec in specs]]), []
        whole = whole.model_copy(update={"categories": {}})
    selected = strategy_filter([row.strategy for row in rows], names)
    parts = {
        "runs": [run for run in runs if selected(run.spec)],
        "summary": [row for row in rows if selected(row.strategy)],
        "categories": _of_groups(whole.categories, selected),
        "repeats": [[each for each in repeat if selected(each.strategy)] for repeat in repeats],
        "explanation": None,  # covered all strategies and prompts, as do the next
        "draft_lengths": [],
        "spread": None,
    }
    return whole.model_copy(update=parts)


def of_table(table: SweepTable, names: Sequence[str]) -> SweepTable:
    """Some strategies of a sweep's table.

    Raises:
        UsageError: nothing has that name.
    """
    selected = strategy_filter([row.strategy for row in table.rows], names)
    parts = {
        "rows": [row for row in table.rows if selected(row.strategy)],
        "categories": _of_groups(table.categories, selected),
    }
    return table.model_copy(update=parts)


def _of_groups(groups: Mapping[str, Sequence[Priced]], selected: StrategyFilter) -> dict[str, list[Priced]]:
    return {name: [row for row in rows if selected(row.strategy)] for name, rows in groups.items()}


def of_runs(runs: Sequence[Run], names: Sequence[str], prompt: str | None) -> list[Run]:
    """Runs of some strategies, on one prompt if it is given.

    Raises:
        UsageError: nothing has that name.
    """
    chosen = list(runs) if prompt is None else _runs_of_prompt(runs, prompt)
    selected = strategy_filter([run.spec for run in chosen], names)
    return [run for run in chosen if selected(run.spec)]


def _runs_of_prompt(runs: Sequence[Run], prompt: str) -> list[Run]:
    """All turns of one prompt, by its id or its position."""
    from cascli.render.comparison import by_prompt
    from cascli.trace import prompts_of

    turns = list(by_prompt(list(runs)))
    runs_by_prompt: dict[object, list[Run]] = {}
    for name, group in zip(prompts_of([group[0] for group in turns]), turns, strict=True):
        runs_by_prompt.setdefault(name, []).extend(group)
    # A prompt without an id is identified by its position among the prompts.
    places = enumerate(runs_by_prompt.items(), 1)
    groups = {str(place) if isinstance(name, int) else str(name): group for place, (name, group) in places}
    if prompt in groups:
        return groups[prompt]
    if prompt.isdecimal() and 0 < int(prompt) <= len(groups):
        return list(groups.values())[int(prompt) - 1]
    raise UsageError(unknown("prompt", prompt, groups))
