"""How close rules came to a budget: what was predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from cascli.analysis.comparison import Comparison
from cascli.analysis.matching import MISS, Matched, met
from cascli.render.numbers import counted
from cascli.sweeps.table import SweepRow

Calls = Mapping[tuple[str, float], float | None]
"""Measured target calls per token, by strategy and temperature."""
LUMPED = 0.01
"""Mean mass of lumped tokens from which it is reported."""


def matching_line(comparison: Comparison) -> str | None:
    """Which rules were compared at which budget, how it was met, and on what that is based; None without a budget."""
    matching = comparison.matching
    if matching is None:
        return None
    basis = f"settings found on {counted(len(matching.prompts), 'other prompt')} ({matching.tokens} tokens"
    basis += f", {matching.mean_tail:.1%} of the mass lumped)" if matching.mean_tail >= LUMPED else ")"
    lines = budget_lines(matching.matched, calls_of(comparison))
    already = any(met(matching.lossless, each.budget) for each in matching.matched)
    lossless = f"lossless {matching.lossless:.3f} predicted{', which already meets it' if already else ''}"
    return "; ".join([*lines, lossless, basis])


def calls_of(comparison: Comparison) -> Calls:
    """The measured calls of a comparison's strategies."""
    temperature = comparison.runs[0].sampling.temperature
    return {(row.strategy, temperature): row.target_calls_per_token for row in comparison.summary}


def budget_lines(matched: Sequence[Matched], calls: Calls) -> Iterator[str]:
    """A line for each temperature and budget: the number of rules predicted to meet it, and their measured calls."""
    for temperature, budget in dict.fromkeys((each.temperature, each.budget) for each in matched):
        group = [each for each in matched if (each.temperature, each.budget) == (temperature, budget)]
        within = [each for each in group if each.met]
        measured = [value for each in within if (value := calls.get((each.spec, temperature))) is not None]
        line = (
            f"matched at {budget:g} target calls per token, temperature {temperature:g}: {len(within)} of {len(group)}"
        )
        if measured:
            near = sum(met(value, budget) for value in measured)
            line += f" rules, measured {min(measured):.3f} to {max(measured):.3f}, {near} within {MISS:.0%}"
        yield line if measured else f"{line} rules"


def calls_of_sweep(rows: Sequence[SweepRow]) -> Calls:
    """The measured calls of a sweep's strategies."""
    return {(row.strategy, row.temperature): row.target_calls_per_token for row in rows}


def matching_table(matched: Sequence[Matched], calls: Calls) -> Table:
    """One line per rule and budget; no measured calls for a rule that is out of reach."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("rule", "setting"):
        table.add_column(name, overflow="fold")
    for name in ("budget", "predicted", "measured"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold", style="dim")
    for each in matched:
        measured = calls.get((each.spec, each.temperature)) if each.met else None
        shown = "" if measured is None else f"{measured:.3f}"
        figures = (f"{each.budget:g}", f"{each.predicted:.3f}", shown)
        table.add_row(each.rule, each.setting, *figures, "" if each.met else each.why)
    return table
