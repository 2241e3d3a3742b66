"""How long drafts should have been: the best fixed k, the speeds of stops, and the oracle's bound. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascli.analysis import theory
from cascli.analysis.explanation import account, checked, profile_of
from cascli.analysis.profile import Profile
from cascli.trace import Data, Run, block_length, with_params


class FixedLength(Data):
    """The best fixed block length for one way to speculate."""

    k: int
    speed: float
    """Speed over the target's: measured if `k` ran, otherwise predicted from the acceptance of the length that ran."""
    ran: int
    """The fastest block length that ran."""
    ran_speed: float
    """Measured speed of `ran` over the target's."""
    none_gains: bool = False
    """Whether only `k` ran, was slower than the target, and no other length is expected to beat the target."""


class DraftLength(Data):
    """One way to speculate at several draft lengths; speeds are over the target's, for whole answers."""

    strategy: str
    """The strategy without the parameters that set the draft length."""
    fixed: FixedLength | None
    """The best fixed length; None if every run had a stop."""
    stops: dict[str, float]
    """Speed of every strategy with a stop."""
    oracle: float | None
    """Speed of rounds that draft exactly what is kept: the best over all of these runs' traces."""


def without_length(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a strategy's parameters without k, the stop, and the stop's own parameters, which come between them."""
    kept, length = dict[str, Any](), False
    for name, value in params.items():
        length = (length or name == "stop") and name != "k"
        if not length and name != "k":
            kept[name] = value
    return kept


def oracle_speed(runs: Sequence[Run], profile: Profile, speed: float) -> float | None:
    """Return an upper bound for the speed of these runs, had every round known which of its drafts are kept.

    Based on timed steps: the gain is the cost of their rounds over the least cost of the same tokens, and all other
    time, except reading the prompt, shrinks by the same factor. What would have passed after a block that was kept
    whole is unknown, so this is a bound for blocks of at most k. None if drafts' steps were not timed, and with
    `verify=block`, where what is kept depends on the block's length.

    Args:
        runs: runs of one strategy.
        profile: step times.
        speed: speed of these runs over the target's.
    """
    timed = profile_of(runs[0], profile)
    if runs[0].by_block or timed is None:
        return None
    rounds = [round_ for run in runs for round_ in run.rounds]
    c = timed.c if sum(run.metrics.draft_calls for run in runs) else 0.0
    last = _reads_last(runs)
    # In a round in which the answer ends, only the tokens that were written are wanted.
    kept = [len(round_.emitted) - 1 for round_ in rounds]
    longest = max(block for run in runs for block in checked(run))
    least = {n: theory.oracle_cost(n, lambda j: c * (j + last) + timed.v(j + 1), longest) for n in set(kept)}
    gain = _steps(runs, timed) / sum(least[n] for n in kept)
    total = sum(run.metrics.seconds.total for run in runs)
    prompt = sum(run.metrics.seconds.prefill for run in runs)
    return speed * total / (prompt + (total - prompt) / gain)


def counted_speed(runs: Sequence[Run], profile: Profile) -> float | None:
    """Return tokens per target step, from the passes that these runs made and their step times, without other time.

    It is 1 for the target alone. Unlike measured time, it is the same for the same rounds on a busy machine, except for
    the step times.

    Args:
        runs: runs of one strategy.
        profile: step times.
    """
    timed = profile_of(runs[0], profile)
    if timed is None:
        return None
    return sum(len(round_.emitted) for run in runs for round_ in run.rounds) / _steps(runs, timed)


def _steps(runs: Sequence[Run], timed: Profile) -> float:
    """Return the cost of the runs' rounds, in target steps."""
    steps = sum(run.metrics.draft_calls for run in runs)
    return (timed.c * steps if steps else 0.0) + sum(timed.v(block + 1) for run in runs for block in checked(run))


def _whole_blocks(runs: Sequence[Run]) -> bool:
    """Return whether more than one in twenty blocks was kept whole.

    Such a block is followed by a token that was never drafted. Shorter blocks might have continued through it, so
    rounds that know what is kept of each single block are not a bound for them.
    """
    blocks = [round_.drafted for run in runs for round_ in run.rounds if round_.drafted]
    return 20 * sum(all(token.accepted for token in block) for block in blocks) > len(blocks)


def _reads_last(runs: Sequence[Run]) -> bool:
    """Return whether a draft step reads q after a block that passed; the oracle has to make this step too.

    In runs without such a block, the step was made only if every round has one.
    """
    costs = runs[0].costs
    if costs is not None:
        return costs.reads_last or costs.reads_if_kept
    more = sum(run.metrics.draft_calls - sum(checked(run)) for run in runs)
    read = any(token.event == "bonus" and token.q is not None for run in runs for token in run.emitted)
    return read or 2 * more > sum(len(run.rounds) for run in runs)


def draft_lengths(runs: Sequence[Run], profile: Profile, speeds: Mapping[str, float]) -> list[DraftLength]:
    """Return one account for every way to speculate, those with a stop first.

    Args:
        runs: runs of all strategies and repeats, including `target`.
        profile: step times.
        speeds: speed of each strategy over `target`, as tables show it.
    """
    ways: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if block_length(run.params):  # even if a stop prevented every draft
            way = with_params(run.strategy, without_length(run.params))
            ways.setdefault(way, {}).setdefault(run.spec, []).append(run)
    lengths = [_draft_length(way, groups, runs, profile, speeds) for way, groups in ways.items()]
    return sorted(lengths, key=lambda each: not each.stops)


def _draft_length(
    way: str, groups: Mapping[str, Sequence[Run]], runs: Sequence[Run], profile: Profile, speeds: Mapping[str, float]
) -> DraftLength:
    fixed = {spec: group for spec, group in groups.items() if "stop" not in group[0].params}
    oracles = [oracle_speed(group, profile, speeds[spec]) for spec, group in groups.items()]
    oracle = max((each for each in oracles if each is not None), default=None)
    return DraftLength(
        strategy=way,
        fixed=_best_fixed(fixed, runs, profile, speeds, oracle) if fixed else None,
        stops={spec: speeds[spec] for spec in groups if spec not in fixed},
        oracle=oracle,
    )


def _best_fixed(
    fixed: Mapping[str, Sequence[Run]],
    runs: Sequence[Run],
    profile: Profile,
    speeds: Mapping[str, float],
    oracle: float | None,
) -> FixedLength:
    """Return the length that ran fastest or, if only one ran, the best length that its account predicts."""
    fastest = max(fixed, key=lambda spec: speeds[spec])
    ran, k = speeds[fastest], int(fixed[fastest][0].params["k"])
    if len(fixed) > 1 or not any(run.metrics.num_draft_tokens for run in fixed[fastest]):
        return FixedLength(k=k, speed=ran, ran=k, ran_speed=ran)
    why = account(fixed[fastest], runs, profile, whole=ran)
    speed = why.expected_at_best
    if why.best_k is None or speed is None:
        # Nothing is predicted for blocks that are verified as a whole.
        none_gains = why.acceptance is not None and ran < 1
        return FixedLength(k=k, speed=ran, ran=k, ran_speed=ran, none_gains=none_gains)
    if oracle is not None and why.best_k < k and not _whole_blocks(fixed[fastest]):
        # It assumes the same acceptance in every round and that there is a draft; the trace may allow less.
        speed = min(speed, oracle)
    if max(speed, ran) < 1:
        return FixedLength(k=k, speed=ran, ran=k, ran_speed=ran, none_gains=True)
    return FixedLength(k=why.best_k, speed=speed, ran=k, ran_speed=ran)
