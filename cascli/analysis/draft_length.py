"""How far drafts should have gone: the best fixed k, what stops have come to, and the oracle's bound. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascli.analysis import theory
from cascli.analysis.explanation import account, profile_of
from cascli.analysis.profile import Profile
from cascli.trace import Data, Run, block_length, with_params


class FixedLength(Data):
    """The fixed block length that is best for a way to speculate."""

    k: int
    speed: float
    """Over the target's: measured if `k` ran, else predicted from the acceptance of the one that did."""
    ran: int
    """The fastest that ran."""
    ran_speed: float
    """As measured, over the target."""
    none_gains: bool = False
    """Whether `k` alone ran, was slower than the target, and no other is predicted to be faster than the target."""


class DraftLength(Data):
    """One way to speculate at several lengths, speeds being over the target's for whole answers."""

    strategy: str
    """Without what says how long to draft."""
    fixed: FixedLength | None
    """None where every run had a stop."""
    stops: dict[str, float]
    """The speed of every strategy with a stop."""
    oracle: float | None
    """That of rounds which draft exactly what is kept: the best of all these runs' traces."""


def without_length(params: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's parameters but for k, the stop, and the stop's own, which stand between the two."""
    kept, length = dict[str, Any](), False
    for name, value in params.items():
        length = (length or name == "stop") and name != "k"
        if not length and name != "k":
            kept[name] = value
    return kept


def oracle_speed(runs: Sequence[Run], profile: Profile, speed: float) -> float | None:
    """The speed that these runs would have had at most, if every round had known what of its drafts is kept.

    By timed steps: their rounds' cost over the least that the same tokens take, all other time (the prompt's left out)
    shrinking with it. What would have passed behind a block that was kept whole is not known, so it is a bound for
    blocks of at most k. None with `verify=block`, where what is kept depends on the block's length.

    Args:
        runs: of one strategy.
        profile: step times.
        speed: of these runs, over the target's.
    """
    timed = profile_of(runs[0], profile)
    if runs[0].by_block or timed is None:
        return None
    rounds = [step for run in runs for step in run.rounds]
    c = timed.c if sum(run.metrics.draft_calls for run in runs) else 0.0
    last = _reads_last(runs)
    # Of a round that the answer ends in, no more is wanted than was written of it.
    wanted = [len(step.emitted) - 1 for step in rounds]
    longest = max(block for run in runs for block in _checked(run))
    least = {n: theory.oracle_cost(n, lambda j: c * (j + last) + timed.v(j + 1), longest) for n in set(wanted)}
    gain = _steps(runs, timed) / sum(least[n] for n in wanted)
    total = sum(run.metrics.seconds.total for run in runs)
    prompt = sum(run.metrics.seconds.prefill for run in runs)
    return speed * total / (prompt + (total - prompt) / gain)


def counted_speed(runs: Sequence[Run], profile: Profile) -> float | None:
    """Tokens in a target step's time by the passes that these runs made and what one takes, all other time left out.

    The target's own is 1. Unlike a clock it says the same of the same rounds on a busy machine, but for the step times.

    Args:
        runs: of one strategy.
        profile: step times.
    """
    timed = profile_of(runs[0], profile)
    if timed is None:
        return None
    return sum(len(step.emitted) for run in runs for step in run.rounds) / _steps(runs, timed)


def _steps(runs: Sequence[Run], timed: Profile) -> float:
    """What the runs' rounds took, in steps of the target."""
    steps = sum(run.metrics.draft_calls for run in runs)
    return (timed.c * steps if steps else 0.0) + sum(timed.v(block + 1) for run in runs for block in _checked(run))


def _whole_blocks(runs: Sequence[Run]) -> bool:
    """Whether more than one in twenty blocks was kept whole.

    Behind such a block there stands a token that was never drafted: shorter blocks might have gone on through it, and
    rounds that know what is kept of each block by itself are no bound for them.
    """
    blocks = [step.drafted for run in runs for step in run.rounds if step.drafted]
    return 20 * sum(all(token.accepted for token in block) for block in blocks) > len(blocks)


def _reads_last(runs: Sequence[Run]) -> bool:
    """Whether q is read behind a block that has passed, by a draft step: whoever knows what is kept makes it too.

    In some runs no block has, and no such step was made unless one was in every round.
    """
    costs = runs[0].costs
    if costs is not None:
        return costs.reads_last or costs.reads_if_kept
    more = sum(run.metrics.draft_calls - sum(_checked(run)) for run in runs)
    read = any(token.event == "bonus" and token.q is not None for run in runs for token in run.emitted)
    return read or 2 * more > sum(len(run.rounds) for run in runs)


def _checked(run: Run) -> list[int]:
    """The lengths of the blocks that the target read; a trace has no more of the last one than stands."""
    blocks = [len(step.drafted) for step in run.rounds]
    if blocks and run.finish_reason != "length" and "stop" not in run.params:
        blocks[-1] = max(blocks[-1], block_length(run.params))
    return blocks


def draft_lengths(runs: Sequence[Run], profile: Profile, speeds: Mapping[str, float]) -> list[DraftLength]:
    """One account for every way to speculate, those with a stop first.

    Args:
        runs: of all strategies and repeats, `target` among them.
        profile: step times.
        speeds: of each strategy over `target`, as a table shows them.
    """
    ways: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if block_length(run.params):  # even if a stop had nothing drafted
            way = with_params(run.strategy, without_length(run.params))
            ways.setdefault(way, {}).setdefault(run.spec, []).append(run)
    found = [_of_one_way(way, groups, runs, profile, speeds) for way, groups in ways.items()]
    return sorted(found, key=lambda each: not each.stops)


def _of_one_way(
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
    """What ran fastest; where one length alone ran, what its account predicts to be the best."""
    fastest = max(fixed, key=lambda spec: speeds[spec])
    ran, k = speeds[fastest], int(fixed[fastest][0].params["k"])
    if len(fixed) > 1 or not any(run.metrics.num_draft_tokens for run in fixed[fastest]):
        return FixedLength(k=k, speed=ran, ran=k, ran_speed=ran)
    why = account(fixed[fastest], runs, profile, whole=ran)
    if why.best_k is None or why.best_speed_up is None:
        # Of blocks that are checked as a whole nothing is predicted.
        none_gains = why.acceptance is not None and ran < 1
        return FixedLength(k=k, speed=ran, ran=k, ran_speed=ran, none_gains=none_gains)
    # What the prediction misses at the length that ran it is taken to miss at the other one.
    speed = ran * why.best_speed_up / why.predicted_speed_up
    if oracle is not None and why.best_k < k and not _whole_blocks(fixed[fastest]):
        # It takes acceptance to be the same in every round and a draft to be there: what the trace allows is less.
        speed = min(speed, oracle)
    return FixedLength(k=why.best_k, speed=speed, ran=k, ran_speed=ran)
