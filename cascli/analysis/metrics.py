"""Metrics from a trace, with the names and conventions of serving engines. No torch.

`mean_acceptance_length` counts the bonus or residual token. Drafted tokens after the end of the text are counted only
in the costs; see `cascli.decoding.answer.Answer.add`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis.cost import Cost
from cascli.analysis.distances import LOSSLESS_TOLERANCE, distances
from cascli.analysis.loops import looped_tokens
from cascli.trace import Emitted, Metrics, Round, Seconds


def accepted_count(round_: Round) -> int:
    """Return the number of drafted tokens of a round that were kept."""
    return sum(token.accepted for token in round_.drafted)


def tested_count(round_: Round) -> int:
    """Return the number of drafted tokens tested one by one in a round: those kept, plus the first rejected one."""
    kept = accepted_count(round_)
    return kept + (kept < len(round_.drafted))


def acceptance_histogram(rounds: Sequence[Round], k: int) -> list[int]:
    """Return k + 1 counts; entry j is the number of rounds in which exactly j drafted tokens were kept."""
    counts = [0] * (k + 1)
    for round_ in rounds:
        counts[accepted_count(round_)] += 1
    return counts


def per_position_acceptance(rounds: Sequence[Round]) -> list[float]:
    """Return shares; entry i is the share of rounds that kept the token at position i, among those that drafted one."""
    longest = max((len(round_.drafted) for round_ in rounds), default=0)
    shares = []
    for i in range(longest):
        drafting = [round_ for round_ in rounds if len(round_.drafted) > i]
        shares.append(sum(round_.drafted[i].accepted for round_ in drafting) / len(drafting))
    return shares


def seconds_per_token(rounds: Sequence[Round]) -> float | None:
    """Return the time per output token after the first round, whose tokens arrive together with the first one."""
    later = rounds[1:]
    tokens = sum(len(round_.emitted) for round_ in later)
    return sum(round_.seconds.total for round_ in later) / tokens if tokens else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _distortion(emitted: Sequence[Emitted]) -> tuple[float | None, float | None, bool | None]:
    """Return mean and largest TV to the target, and whether both are zero up to rounding; None if any is unknown."""
    values = [token.tv for token in emitted if token.tv is not None]
    if not values or len(values) < len(emitted):
        return None, None, None
    largest = max(values)
    return _mean(values), largest, largest <= LOSSLESS_TOLERANCE


def summarise(
    rounds: Sequence[Round],
    *,
    cost: Cost,
    seconds: Seconds,
    ttft_seconds: float | None,
    peak_memory_bytes: int | None,
    k: int = 0,
    by_block: bool = False,
    deferral_rate: float | None = None,
    shared_mass: float | None = None,
) -> Metrics:
    """Return the metrics of one run with rounds of at most `k` drafted tokens.

    `by_block`: whole prefixes of drafts were tested, so the number of tested tokens is unknown.
    `deferral_rate` overrides the mean over positions, for strategies that decide once per answer.
    """
    emitted = [token for round_ in rounds for token in round_.emitted]
    count = len(emitted)
    drafted = sum(len(round_.drafted) for round_ in rounds)
    accepted = sum(accepted_count(round_) for round_ in rounds)
    tested = None if by_block else sum(tested_count(round_) for round_ in rounds)
    mean_tv, max_tv, lossless = _distortion(emitted)
    deferrals = [token.deferral for token in emitted if token.deferral is not None]
    return Metrics(
        num_rounds=len(rounds),
        num_draft_tokens=drafted,
        num_accepted_draft_tokens=accepted,
        num_tested_draft_tokens=tested,
        draft_acceptance_rate=accepted / drafted if drafted else None,
        rejection_rate=(tested - accepted) / tested if tested else None,
        mean_acceptance_length=1 + accepted / len(rounds) if drafted else None,
        acceptance_histogram=acceptance_histogram(rounds, k) if drafted else None,
        per_position_acceptance=per_position_acceptance(rounds) if drafted else None,
        target_calls=cost.target.calls,
        draft_calls=cost.draft.calls,
        target_calls_per_token=cost.target.calls / count if count else None,
        draft_calls_per_token=cost.draft.calls / count if count else None,
        deferral_rate=_mean(deferrals) if deferral_rate is None else deferral_rate,
        mean_tv_to_target=mean_tv,
        max_tv_to_target=max_tv,
        lossless=lossless,
        seconds=seconds,
        tokens_per_second=count / seconds.total if count and seconds.total > 0 else None,
        ttft_seconds=ttft_seconds,
        seconds_per_token=seconds_per_token(rounds),
        peak_memory_bytes=peak_memory_bytes,
        draft_tokens_read=cost.draft.tokens,
        target_tokens_read=cost.target.tokens,
        shared_mass=shared_mass,
        looped_tokens=looped_tokens([token.id for token in emitted]),
        distances=distances(rounds),
        total_flops=cost.flops,
        weight_bytes_read=cost.weight_bytes,
    )
