"""Costs of answers, in tables and a sentence: rules that only write longer answers are told from those that save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cascli.analysis.answer_costs import BY_THE_LIMIT, AnswerCosts, Ratio
from cascli.analysis.digits import compared
from cascli.analysis.distances import efficiency, nats_per_answer, out_of_head_rate, waste
from cascli.analysis.statistics import FEWEST
from cascli.render.columns import Column, on_a_page, table_of
from cascli.render.console import unicode_ok
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, bounds_text, count, nats, number, percent, percentile_text, seconds, tv
from cascli.trace import Distances

if TYPE_CHECKING:
    from cascli.analysis.comparison import Row
    from cascli.sweeps.table import SweepRow

    Priced = Row | SweepRow


def _of_costs(fill: Callable[[AnswerCosts], str]) -> Callable[[Priced], str]:
    return lambda row: DASH if row.costs is None else fill(row.costs)


def _ratio(ratio: Ratio | None, *, bounds: bool = True) -> str:
    if ratio is None:
        return DASH
    text = f"{compared(ratio.of_means, ratio.interval, 1)}x"
    return f"{text} {bounds_text(ratio.interval, ratio.interval_kind, null=1)}".rstrip() if bounds else text


CLEAR = ("fewer calls", "more calls")
JUDGED = (*CLEAR, "not clear", "the same")
"""Outcomes of strategies with enough prompts and whole answers."""


def outcome(costs: AnswerCosts | None) -> str:
    """Whether answers take fewer calls than those of lossless speculation, as far as that is known."""
    if costs is None or costs.lossless is None:
        return DASH
    ratio = costs.calls_to_lossless
    if ratio is None:
        return "lengths cut" if costs.withheld else DASH
    if ratio.interval_kind == "no scatter" and ratio.of_means == 1:
        return "the same"
    if ratio.prompts < FEWEST:
        return "few prompts"
    if not (ratio.differs or ratio.interval_kind == "no scatter"):
        return "not clear"
    return "fewer calls" if ratio.of_means < 1 else "more calls"


def _over_prompts(name: str, show: Callable[[float], str]) -> Callable[[Priced], str]:
    return _of_costs(lambda costs: percentile_text(getattr(costs.per_prompt, name, None), show))


PROMPTS: list[Column[Priced]] = [
    Column("calls per prompt\np50 / p90 / p99", _over_prompts("target_calls", count)),
    Column("tokens per prompt\np50 / p90 / p99", _over_prompts("tokens", count), expendable=2),
    Column("tokens per round\np50 / p90 / p99", _over_prompts("tokens_per_round", "{:.2f}".format), expendable=1),
    Column("seconds per prompt\np50 / p90 / p99", _over_prompts("seconds", seconds), expendable=3),
]
"""How prompts vary, each with all its turns."""
ANSWERS: list[Column[Priced]] = [
    Column("tokens\nper\nround", _of_costs(lambda costs: number(costs.accepted_to_lossless, 2, "x"))),
    Column("length", _of_costs(lambda costs: _ratio(costs.length))),
    Column("calls\nper\nanswer", _of_costs(lambda costs: number(costs.target_calls_per_answer, 1)), expendable=1),
    Column("calls against\nspeculative", _of_costs(lambda costs: _ratio(costs.calls_to_lossless))),
    Column("cut", _of_costs(lambda costs: percent(costs.share_cut)), expendable=2),
    Column("verdict", lambda row: DASH if row.strategy in ("target", "draft") else outcome(row.costs)),
]
"""Tokens per round and calls are relative to plain speculation, the length to the target's answers."""


def _distances(*, greedy: bool) -> list[Column[Priced]]:
    """How far the output distribution is from the target's; nats are regret at temperature 0."""

    def of(fill: Callable[[Distances, int], str]) -> Callable[[Priced], str]:
        def cell(row: Priced) -> str:
            answers = row.conversations
            return DASH if row.distances is None or not answers else fill(row.distances, answers)

        return cell

    return [
        Column("mean\nTV", lambda row: tv(row.mean_tv_to_target)),
        Column("nats\nper\nanswer", of(lambda d, answers: nats(nats_per_answer(d, answers, greedy=greedy)))),
        Column("largest\npi/p", of(lambda d, _: f"{d.overshoot:.3g}"), expendable=2),
        Column("waste", of(lambda d, _: _waste(d))),
        Column("effi-\nciency", of(lambda d, _: number(efficiency(d)))),
        Column("out of\nhead", of(lambda d, _: number(out_of_head_rate(d), 1))),
        Column("loops", _of_costs(lambda costs: percent(costs.looped_share)), expendable=1),
    ]


def _waste(d: Distances) -> str:
    share = waste(d)
    return DASH if share is None else f"{max(share, 0.0):.3f}"


def cost_tables(rows: Sequence[Priced], console: Console, *, greedy: bool) -> list[Table]:
    """The costs of answers, and how much of the target's distribution is traded for them; empty for older documents."""
    if all(row.costs is None for row in rows):
        return []
    return [_fitting(rows, columns, console) for columns in (ANSWERS, _distances(greedy=greedy))]


def _fitting(rows: Sequence[Priced], columns: Sequence[Column[Priced]], console: Console) -> Table:
    names = [short_name(row.strategy, fancy=unicode_ok(console)) for row in rows]
    return on_a_page(columns, lambda few: table_of(names, rows, few, console), console)


def prompts_table(rows: Sequence[Priced], console: Console) -> Table | None:
    """How costs vary over prompts; None for older documents."""
    if all(row.costs is None or row.costs.per_prompt is None for row in rows):
        return None
    return _fitting(rows, PROMPTS, console)


def table_notes(rows: Sequence[Priced], *, greedy: bool | None) -> str:
    """What the columns are relative to; `greedy` is True for temperature 0 alone, None for that and others."""
    regret, kl = "regret log max p1 - log p1(x)", "KL(pi || p)"
    what = {True: regret, False: kl, None: f"{kl}, at temperature 0 {regret}"}[greedy]
    baselines = list(dict.fromkeys(row.costs.lossless for row in rows if row.costs is not None and row.costs.lossless))
    first = next((row.strategy for row in rows if row.strategy.partition(":")[0] == "speculative"), "the first of them")
    own = f", whichever has the strategy's own parameters or most of them, of equals {first}"
    which = own if len(baselines) > 1 else ""
    against = f"tokens per round and calls against {' or '.join(baselines)}{which}; " if baselines else ""
    return (
        f"{against}length against target{_brackets(rows)}; nats: {what}; out of head: kept drafts per 1,000 tokens that"
        " the exact test would have rejected and the target finds less than a fifth as likely as its best"
    )


def _brackets(rows: Sequence[Priced]) -> str:
    """What the brackets after ratios mean."""
    costs = [row.costs for row in rows if row.costs is not None]
    kinds = {ratio.interval_kind for each in costs for ratio in (each.calls_to_lossless, each.length) if ratio}
    meanings = {"95%": "( ) 95% interval over prompts", "range": "[ ] range over prompts"}
    return "".join(f", {text}" for kind, text in meanings.items() if kind in kinds)


def cost_verdict(rows: Sequence[Priced], *, fancy: bool = True) -> str | None:
    """Which rule saves calls per answer, and which only seems to; None without lossless speculation to compare with."""
    compared = [(row, row.costs) for row in rows if row.costs is not None and row.costs.lossless is not None]
    lossy = [(row, costs) for row, costs in compared if row.strategy.partition(":")[0] == "speculative-cascade"]
    if not lossy:
        return None
    withheld = next((costs.withheld for _, costs in lossy if costs.withheld), None)
    if any(costs.calls_to_lossless is not None for _, costs in lossy):
        withheld = None  # it is known for some, even if from too few prompts to be judged
    known = [(row, costs, costs.calls_to_lossless) for row, costs in lossy]
    judged = [(row, costs, ratio) for row, costs, ratio in known if ratio is not None and outcome(costs) in JUDGED]
    if not judged:
        if withheld is not None:
            hint = "; raise --max-new-tokens" if withheld.endswith(BY_THE_LIMIT) else ""
            return f"The cost per answer is not shown because {withheld}{hint}."
        return None
    clear = [(row, costs, ratio) for row, costs, ratio in judged if outcome(costs) in CLEAR]
    if not clear:
        which = "No rule" if len(judged) == len(lossy) else "No rule that can be judged"
        return f"{which} needs clearly fewer or more target calls per answer than plain speculation."
    clauses = []
    row, costs, ratio = min(clear, key=lambda each: each[2].of_means)
    if ratio.of_means < 1:
        with_length = "" if costs.length is None else f", with answers {_as_long(costs.length)}"
        others = [each for each in rows if each.costs is not None and each.strategy != "draft"]
        # Means over other answers, where some failed or are still missing, do not tell which strategy calls it least.
        least = len({each.conversations for each in others}) == 1 and all(
            each.costs is not None and costs.target_calls_per_answer <= each.costs.target_calls_per_answer
            for each in others
        )
        how = "calls the target least:" if least else "needs only"
        clauses.append(f"{_name(row, fancy)} {how} {_calls(ratio)}{with_length}")
    row, costs, ratio = max(clear, key=lambda each: each[2].of_means)
    if ratio.of_means > 1:
        accepted, length = costs.accepted_to_lossless or 0.0, costs.length
        if accepted > 1 and length is not None and length.of_means > 1:
            why = f"writes {accepted:.1f}x as many tokens per round, but its answers are {_as_long(length)}"
            why += f": {_calls(ratio)}"
        else:
            why = f"needs {_calls(ratio)}"
        clauses.append(f"{_name(row, fancy)} {why}")
    several = f" ({len(clear)} of {len(judged)} rules differ beyond their interval; one in twenty would by chance)"
    return "; ".join(clauses) + (several if len(judged) > 1 else "") + "."


def _name(row: Priced, fancy: bool) -> str:
    return short_name(row.strategy, fancy=fancy)


def _calls(ratio: Ratio) -> str:
    return f"{_ratio(ratio)} the target calls per answer of plain speculation"


def _as_long(length: Ratio) -> str:
    return f"{_ratio(length, bounds=False)} as long as the target's"
