"""From records to rows: quality with its uncertainty beside every cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import fsum
from statistics import fmean

from cascli import notebook
from cascli.analysis.statistics import Interval, Kind, difference_interval, mean_interval
from cascli.strategies import parse
from cascli.sweep.plan import BASELINE, SweepPlan
from cascli.sweep.records import Record
from cascli.trace import Data


class SweepRow(Data):
    """One strategy at one temperature, over all prompts, seeds and repeats."""

    strategy: str
    temperature: float
    family: str
    """Name of the strategy, and of its rule if it has one: what a curve is drawn through."""
    answers: int
    errors: int
    quality: float | None
    quality_interval: tuple[float, float] | None
    """Of the mean over prompts, which are what varies independently; see `cascli.analysis.statistics`."""
    quality_interval_kind: Kind | None = None
    """A 95% interval, or the range of fewer than six prompts."""
    quality_vs_target: float | None
    """Mean difference to the target's answers to the same prompts."""
    quality_vs_target_interval: tuple[float, float] | None
    quality_vs_target_interval_kind: Kind | None = None
    """Likewise, or that all prompts gave the same difference."""
    tokens: int
    tokens_per_second: float | None
    speed_vs_target: float | None
    target_calls_per_token: float | None
    draft_calls_per_token: float | None
    flops_per_token: float | None
    rejection_rate: float | None
    """Rejected over tested drafted tokens; None for records of before they were counted."""
    deferral_rate: float | None
    mean_tv: float | None
    log_likelihood: float | None
    """Mean log-probability of a token of the answers under the target, in nats."""

    def __repr__(self) -> str:
        """One line."""
        quality = "" if self.quality is None else f", quality {self.quality:.3f}"
        speed = "" if self.speed_vs_target is None else f", {self.speed_vs_target:.2f}x"
        return f"<SweepRow {self.strategy}, T = {self.temperature:g}: {self.answers} answers{quality}{speed}>"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it."""
        return notebook.html_of(self)


class SweepTable(list[SweepRow]):
    """The rows of a sweep: a list that a notebook shows as a table."""

    def __repr__(self) -> str:
        """One line."""
        return f"<SweepTable of {len(self)} rows>"

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it."""
        return notebook.html_of(self)


def rows(records: Iterable[Record], plan: SweepPlan | None = None) -> SweepTable:
    """One row a strategy and temperature, in the plan's order, whoever was done first; without one, as they come."""
    places = plan.cells() if plan else []
    groups: dict[tuple[str, float], list[Record]] = {(cell.strategy, cell.temperature): [] for cell in places}
    for record in records:
        groups.setdefault((record.cell.strategy, record.cell.temperature), []).append(record)
    groups = {key: group for key, group in groups.items() if group}
    return SweepTable(_row(key, group, groups.get((BASELINE, key[1]), [])) for key, group in groups.items())


def family(spec: str) -> str:
    """`speculative-cascade:rule=opt,alpha=0.1,k=4` belongs to `speculative-cascade opt`."""
    strategy = parse(spec)
    rule = strategy.params.get("rule")
    return f"{strategy.name} {rule}" if rule else strategy.name


def _row(key: tuple[str, float], group: Sequence[Record], target: Sequence[Record]) -> SweepRow:
    good = [record for record in group if record.error is None]
    scored = _by_problem(good)
    base = _by_problem([record for record in target if record.error is None])
    gains = {problem: scored[problem] - base[problem] for problem in scored if problem in base}
    tokens = sum(len(record.token_ids) for record in good)
    speed, their_speed = _speed(good), _speed([record for record in target if record.error is None])
    return SweepRow(
        strategy=key[0],
        temperature=key[1],
        family=family(key[0]),
        answers=len(good),
        errors=len(group) - len(good),
        quality=_mean(list(scored.values())),
        **_interval("quality_interval", mean_interval(list(scored.values()))),
        quality_vs_target=_mean(list(gains.values())),
        **_interval("quality_vs_target_interval", difference_interval(list(gains.values()))),
        tokens=tokens,
        tokens_per_second=speed,
        speed_vs_target=speed / their_speed if speed and their_speed else None,
        target_calls_per_token=sum(record.target_calls for record in good) / tokens if tokens else None,
        draft_calls_per_token=sum(record.draft_calls for record in good) / tokens if tokens else None,
        flops_per_token=_flops(good, tokens),
        rejection_rate=_rejection(good),
        deferral_rate=_deferral(key[0], good),
        mean_tv=_weighted(good, "mean_tv"),
        log_likelihood=_weighted([record for record in good if record.token_ids], "log_likelihood"),
    )


def _by_problem(records: Iterable[Record]) -> dict[str, float]:
    """The mean quality of each prompt over seeds and repeats: prompts are what is resampled."""
    scores: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.quality is not None:
            scores[record.problem].append(record.quality)
    return {problem: fmean(values) for problem, values in scores.items()}


def _speed(records: Sequence[Record]) -> float | None:
    seconds = fsum(record.seconds or 0.0 for record in records)  # the same sum in any order
    return sum(len(record.token_ids) for record in records) / seconds if seconds else None


def _flops(records: Sequence[Record], tokens: int) -> float | None:
    known = [record.flops for record in records if record.flops is not None]
    return fsum(known) / tokens if tokens and len(known) == len(records) else None


def _rejection(records: Sequence[Record]) -> float | None:
    drafting = [record for record in records if record.drafted]
    if not drafting or any(record.tested is None for record in drafting):
        return None
    tested = sum(record.tested or 0 for record in drafting)
    return (tested - sum(record.accepted for record in drafting)) / tested


def _deferral(spec: str, records: Sequence[Record]) -> float | None:
    """The mean over tokens, or over answers where a strategy decides once an answer."""
    if parse(spec).name != "cascade":
        return _weighted(records, "deferral_rate")
    rates = [record.deferral_rate for record in records if record.deferral_rate is not None]
    return fsum(rates) / len(rates) if rates else None


def _weighted(records: Sequence[Record], name: str) -> float | None:
    """The mean over tokens of what a record says of its own mean; None if it is not known of all of them."""
    values = [(getattr(record, name), len(record.token_ids)) for record in records]
    total = sum(weight for _, weight in values)
    if not total or any(value is None for value, _ in values):
        return None
    return fsum(value * weight for value, weight in values) / total


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _interval(name: str, interval: Interval | None) -> dict[str, object]:
    """The two fields of a row that hold an interval."""
    return {name: interval and (interval.low, interval.high), f"{name}_kind": interval and interval.kind}


def front(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The Pareto front: rows that no other row beats in quality at no more target calls a token; cheapest first."""
    known = [row for row in rows if row.quality is not None and row.target_calls_per_token is not None]
    ordered = sorted(known, key=lambda row: (row.target_calls_per_token, -(row.quality or 0.0)))
    best, kept = -1.0, []
    for row in ordered:
        if (row.quality or 0.0) > best:
            best = row.quality or 0.0
            kept.append(row)
    return kept
