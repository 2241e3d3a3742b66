"""A sweep's draft acceptance in the format that serving tools read; see `cascli.analysis.speculation_profile`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cascli.analysis.distances import LOSSLESS_TOLERANCE, total
from cascli.analysis.speculation_profile import (
    NOTHING_DRAFTS,
    Checkpoint,
    Drafting,
    Kept,
    SpeculationProfile,
    described,
    profile,
)
from cascli.errors import UsageError
from cascli.models.calls import ROLES
from cascli.strategies import shown
from cascli.sweeps.records import Header, Record
from cascli.trace import block_length


def of_sweep(records: Iterable[Record], header: Header, specs: Sequence[str]) -> SpeculationProfile:
    """Return the profile of the strategy that `described` picks among `specs`, at the plan's first temperature.

    Raises:
        UsageError: none of them drafts ahead, answers are missing, or they predate counts of accepted drafts.
    """
    plan, full_plan = header.plan, header.full_plan()
    temperature = plan.temperatures[0]
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.error is None and record.cell.temperature == temperature:
            groups.setdefault(record.cell.strategy, []).append(record)
    if full_plan is None:
        eligible = [spec for spec in specs if spec in groups]
    else:
        planned = full_plan.temperatures_by_strategy()
        eligible = [spec for spec in specs if temperature in planned.get(spec, plan.temperatures)]
    alike = described(_drafting(spec, groups.get(spec, ())) for spec in eligible)
    if not alike:
        raise UsageError(NOTHING_DRAFTS)
    chosen = groups.get(alike[0].spec, [])
    by_k = {block_length(each.params): _kept(groups.get(each.spec, ())) for each in alike}
    if not by_k[block_length(alike[0].params)]:
        raise UsageError(f"{alike[0].spec}: no answer records how many drafts were accepted in each round")
    distances = total(record.distances for record in chosen)
    sizes = {record.batch_size for record in chosen}
    named = {role: header.environment.get(role, "") for role in ROLES}
    models = {role: Checkpoint.of(*each.rsplit(" ", 1)) for role, each in named.items() if " " in each}
    return profile(
        alike[0],
        by_k[block_length(alike[0].params)],
        {k: kept for k, kept in by_k.items() if kept},
        draft=models.get("draft") if any(record.draft_calls for record in chosen) else None,
        target=models.get("target", Checkpoint(id=header.pair or "", dtype="")),
        date=header.date,
        lossless=None if distances is None else distances.max_tv <= LOSSLESS_TOLERANCE,
        dataset=plan.task.kind,
        temperature=temperature,
        top_k=plan.top_k,
        top_p=plan.top_p,
        max_new_tokens=plan.max_new_tokens,
        concurrency=sizes.pop() if len(sizes) == 1 else None,
        hardware=header.shared_environment.get("device"),
    )


def _drafting(spec: str, records: Iterable[Record]) -> Drafting:
    name, params, *_ = shown(spec)
    return Drafting(name, params, drafted=any(record.drafted for record in records))


def _kept(records: Sequence[Record]) -> list[Kept]:
    """Acceptance histograms of the answers that have one."""
    return [
        Kept(record.problem, record.category, record.acceptance_histogram)
        for record in records
        if record.acceptance_histogram is not None
    ]
