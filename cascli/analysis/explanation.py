"""Why the fastest strategy is not faster: an account of one strategy's speed. No torch.

Acceptance and overhead come from the runs. c and v(k) come from a separate measurement of the pair's steps
(`cascli.jobs.profile`), so the prediction is not fitted to what it predicts; without one, the runs' own times are used.
Block lengths that neither ran nor were timed are never recommended.

A trace has each round's time outside the models, but nearly all rounds of a fixed k draft k tokens, so it does not show
how that time depends on k. It is assumed that a round spends as much as a step of the target alone does, which also
draws a token, copies it to the host and records it, and that the rest is proportional to the drafted tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from cascli.analysis import theory
from cascli.analysis.metrics import tested_count
from cascli.analysis.profile import Profile
from cascli.settings import TARGET
from cascli.trace import Data, Run, block_length, by_strategy

DRAFT = "the draft model is too slow"
VERIFICATION = "checking a block costs more than one step"
ACCEPTANCE = "too few drafts are accepted"
OVERHEAD = "time outside the models"
NOISE = 0.1
"""Relative difference of measured and predicted that counts as noise even on the quietest machine."""
_FEW_DRAFTS = 0.5
"""Drafted tokens per round below which the time outside the models says nothing about that of a draft."""
TOO_NOISY = 0.3
"""Spread of timings above which no cause is named: almost anything would agree with the prediction."""


class Explanation(Data):
    """Account of one strategy's speed, and what limits it."""

    strategy: str
    acceptance: float | None
    """Share of tested drafted tokens that passed; tokens after a rejection were not tested.

    None with `verify=block`: the number of drafts kept then does not follow from a rate of single tests, and nothing is
    predicted for any k but the one that ran.
    """
    tokens_per_round: float
    k: int
    """Drafted tokens per round; with a stop, the maximum."""
    stop: str | None = None
    """What ended drafts before k tokens. Which tokens were tested then depends on it, so nothing is predicted for fixed
    lengths."""
    drafted_per_round: float | None = None
    """Mean number of drafted tokens per round, with a stop or where the drafter had fewer than k tokens to offer; None
    if all rounds were full, except at the end of an answer."""
    c: float
    """Time of a draft step over that of a target step; 0 if drafts take no model step."""
    v: float
    """Time of a target call over a round's block (if full, k drafted tokens plus one) over that of a target step."""
    v_extrapolated: bool = False
    """Whether `v` is extrapolated beyond the longest block that was timed."""
    predicted_speed_up: float
    """Speed-up predicted from acceptance, c, v, the draft steps per round, and the lengths of the answers, without time
    outside the models.

    With `verify=block` or a stop, the measured tokens per round are used in place of acceptance.
    """
    measured_speed_up: float
    with_prompt: bool = False
    """Whether both speed-ups are for whole answers, as in a comparison's table; otherwise they exclude reading the
    prompt."""
    measured_over_predicted: float | None = None
    break_even_acceptance: float | None
    """Acceptance above which blocks of k pay off for answers of this length, with time outside the models as for
    `best_k`; None if they never do, and with `verify=block` or a stop."""
    best_k: int | None
    """Best of the timed block lengths and the one that ran, at this acceptance and these costs; None if none gains, and
    with `verify=block` or a stop. Documents without `outside_per_round` ignore time outside the models here."""
    best_k_or_more: bool = False
    """Whether no longer one than `best_k` was timed, so a longer one may be better still."""
    best_speed_up: float | None = None
    """Predicted speed-up at `best_k`, with time outside the models; reports multiply it by `measured_speed_up` over
    `predicted_with_overhead` to show what to expect. In documents without `outside_per_round`, both are without that
    time, and the factor is `measured_over_predicted`."""
    overhead: float | None = None
    """Share of the strategy's time after the prompt that was spent outside the two models."""
    measured_alone: bool = False
    """Whether c and v were measured separately from the runs."""
    predicted_with_overhead: float | None = None
    """Speed-up predicted with the measured time outside both models, to compare with `measured_speed_up`; None in older
    documents."""
    outside_per_round: float | None = None
    """Time outside the models that a round of any length is assumed to take, in target steps: as much as a step of the
    target alone, or all of it if that is less. None with `verify=block` or a stop, and in older documents."""
    outside_per_draft: float | None = None
    """Time outside the models that each drafted token is assumed to add, in target steps: the rest of it."""
    noise: float | None = None
    """Relative difference of measured and predicted that counts as noise: the observed spread, at least 0.1."""
    bottleneck: str | None
    """What limits the speed most; None if unknown: steps were not timed apart from the runs, measured and predicted
    differ by more than `noise`, or `noise` is above 0.3."""
    without_it: float | None
    """Predicted speed-up without the bottleneck; reports multiply it by `measured_speed_up` over
    `predicted_with_overhead`, to show what to expect."""

    @property
    def predicted(self) -> float:
        """The speed-up to compare with the measured one: with time outside the models, except in older documents."""
        return self.predicted_speed_up if self.predicted_with_overhead is None else self.predicted_with_overhead

    @property
    def expected_at_best(self) -> float | None:
        """The speed-up to expect at `best_k`: its prediction is assumed to be off by the same factor as that of `k`."""
        if self.best_speed_up is None:
            return None
        alike = self.predicted_speed_up if self.outside_per_round is None else self.predicted
        return self.best_speed_up * self.measured_speed_up / alike


class Costs(NamedTuple):
    """A draft step, and a target call over a block of k + 1, in target steps."""

    c: float
    v: Callable[[int], float]
    longest: int
    """Largest k for which v was timed; beyond it v is extrapolated."""


def explained(runs: Sequence[Run]) -> bool:
    """Return whether these runs contain what an explanation needs: `target`, and a strategy that drafted."""
    return any(run.strategy == TARGET for run in runs) and any(run.metrics.num_draft_tokens for run in runs)


def explain(
    runs: Sequence[Run],
    profile: Profile | None = None,
    *,
    speeds: dict[str, float] | None = None,
    noise: float | None = None,
) -> Explanation | None:
    """Explain the fastest strategy that drafted; None without `target` or without a strategy that drafted.

    Args:
        runs: runs of all repeats.
        profile: step times; by default those of the runs themselves.
        speeds: speed of each strategy over `target` for whole answers, as tables show it; from the runs by default.
        noise: relative spread observed during the runs.
    """
    if not explained(runs):
        return None
    ahead = {run.spec for run in runs if run.metrics.num_draft_tokens}
    groups = by_strategy(run for run in runs if run.spec in ahead)  # with answers for which nothing was drafted
    if speeds is None:
        return account(max(groups.values(), key=_speed), runs, profile, noise=noise)
    fastest = max(groups, key=lambda spec: speeds[spec])
    return account(groups[fastest], runs, profile, whole=speeds[fastest], noise=noise)


def account(
    drafting: Sequence[Run],
    runs: Sequence[Run],
    profile: Profile | None = None,
    *,
    whole: float | None = None,
    noise: float | None = None,
) -> Explanation:
    """Return the account of one strategy's runs, compared with those of `target` in `runs`.

    Args:
        drafting: the strategy's runs.
        runs: contains the target's runs.
        profile: step times; by default those of the runs themselves.
        whole: measured speed-up of whole answers; if given, predictions include reading the prompt, as it does.
        noise: relative spread that was observed.
    """
    target = [run for run in runs if run.strategy == TARGET]
    profile = profile_of(drafting[0], profile)
    k = block_length(drafting[0].params) or 1
    costs = _costs_from_runs(drafting, target, k) if profile is None else _costs_from_profile(profile)
    if not _total(drafting, "draft_calls"):
        costs = costs._replace(c=0.0)
    measured = _speed(drafting) / _speed(target) if whole is None else whole
    gains = _Gains(drafting, target, costs, k, with_prompt=whole is not None)
    known = gains.depends
    lengths = {*range(1, gains.longest + 1), k} if known else {k}
    best = max(lengths, key=lambda n: (gains.with_overhead(n), -n))
    pays = known and gains.with_overhead(best) > 1
    noise = max(NOISE, noise or 0.0, 0.0 if profile is None else profile.spread)
    expected = gains.with_overhead(k)
    agrees = noise <= TOO_NOISY and max(measured / expected, expected / measured) - 1 <= noise
    # A prediction from the runs' own times agrees with them whatever the cause is.
    bottleneck, without_it = gains.bottleneck(k) if agrees and profile is not None else (None, None)
    return Explanation(
        strategy=drafting[0].spec,
        acceptance=gains.acceptance,
        tokens_per_round=sum(len(run.token_ids) for run in drafting) / _total(drafting, "num_rounds"),
        k=k,
        stop=drafting[0].params.get("stop"),
        drafted_per_round=gains.drafted,
        c=costs.c,
        v=gains.v(k),
        v_extrapolated=k > costs.longest,
        predicted_speed_up=gains.predicted(k),
        measured_speed_up=measured,
        with_prompt=whole is not None,
        measured_over_predicted=measured / gains.predicted(k),
        break_even_acceptance=theory.acceptance_for(1.0, lambda a: gains.with_overhead(k, a)) if known else None,
        best_k=best if pays else None,
        best_k_or_more=pays and best >= gains.longest,
        best_speed_up=gains.with_overhead(best) if pays else None,
        overhead=gains.overhead,
        measured_alone=profile is not None,
        predicted_with_overhead=expected,
        outside_per_round=gains.per_round if known else None,
        outside_per_draft=gains.per_draft if known else None,
        noise=noise,
        bottleneck=bottleneck,
        without_it=without_it,
    )


def profile_of(run: Run, profile: Profile | None) -> Profile | None:
    """Return the step times that apply to a run's drafts; None if they were not measured."""
    return profile if profile is None or run.exit is None else profile.leaving(run.exit)


class _Gains:
    """Predicted speed-ups of one strategy."""

    def __init__(
        self, drafting: Sequence[Run], target: Sequence[Run], costs: Costs, k: int, *, with_prompt: bool
    ) -> None:
        rounds = [round_ for run in drafting for round_ in run.rounds]
        self.costs = costs
        tested = sum(tested_count(round_) for round_ in rounds)
        self.acceptance = None if drafting[0].by_block else _total(drafting, "num_accepted_draft_tokens") / tested
        stop = "stop" in drafting[0].params
        self.depends = self.acceptance is not None and not stop
        """Whether the effect of the block length on the speed follows from the acceptance."""
        self._per_round = sum(len(run.token_ids) for run in drafting) / len(rounds)
        drafts, calls = _total(drafting, "num_draft_tokens"), _total(drafting, "draft_calls")
        self._extra = (calls - drafts) / len(rounds) if calls else 0.0
        """Draft steps per round beyond those that drafted, for rules that read q after the block."""
        bonus = [round_.emitted[-1] for round_ in rounds if round_.emitted[-1].event == "bonus"]
        # Either every round has one, or only rounds whose block passed: assume whichever is nearer to the count.
        fewer = self._extra < (1 + len(bonus) / len(rounds)) / 2
        self._if_kept = fewer and any(token.q is not None for token in bonus)
        """Whether the extra step is taken only after a block that passed."""
        self._answers = Counter((len(run.token_ids), run.finish_reason == "length") for run in drafting)
        """Number of answers by their length and whether it is the limit, before which drafts are cut to what fits."""
        self.overhead, self._alone = _overhead(drafting), 1 / (1 - _overhead(target))
        """Share of the time outside the models; `_alone` is what a token of the target alone takes, in target steps."""
        self._whole = _with_prompt(drafting, target) if with_prompt else lambda gain: gain
        full = not stop and all(_full(run, k) for run in drafting)
        self._blocks = None if full and self.depends else Counter(block for run in drafting for block in checked(run))
        """Number of rounds by their number of drafted tokens; None if it follows from k and the acceptance."""
        self.drafted = None if full else drafts / len(rounds)
        self.longest = costs.longest if full else min(costs.longest, k)
        """Largest k for which a prediction is possible: what a drafter would have offered beyond its k is unknown."""
        outside = self.cost(k) * self.overhead / (1 - self.overhead)
        """Time outside the models per round, in target steps: from its share of the runs' own time, which is right even
        if the machine was slower then than when its steps were timed."""
        mean = self._mean(float, k, self._known(None))
        self.per_round = min(self._alone - 1, outside) if mean >= _FEW_DRAFTS else outside
        """The part that is assumed to be the same for every k: all of it where most rounds draft nothing."""
        self.per_draft = (outside - self.per_round) / (mean or 1.0)
        """The part that each drafted token is assumed to add."""

    def _rounds(self, k: int, a: float | None) -> dict[int, float]:
        """Return the number of rounds by their number of drafted tokens, at most k, at acceptance `a`.

        Answers end inside a round, and near the limit rounds are shorter. Where blocks were short for other reasons,
        their lengths are kept, and `a` is not used.
        """
        rounds: dict[int, float] = defaultdict(float)
        if self._blocks is not None or a is None:
            for drafted, count in (self._blocks or {k: 1}).items():
                rounds[min(drafted, k)] += count
            return rounds
        starts = theory.starts(a, k, max(n for n, _ in self._answers))
        until = list(accumulate(starts, initial=0.0))
        for (n, at_limit), count in self._answers.items():
            short = min(k, n) if at_limit else 0
            rounds[k] += count * until[n - short]
            for left in range(1, short + 1):
                rounds[left - 1] += count * starts[n - left]
        return rounds

    def _mean(self, value: Callable[[int], float], k: int, a: float | None) -> float:
        """Return the mean of a function of the number of drafted tokens over rounds of at most k, at acceptance `a`."""
        rounds = self._rounds(k, a)
        return sum(value(drafted) * count for drafted, count in rounds.items()) / sum(rounds.values())

    def v(self, k: int) -> float:
        """Return the time of a target call over a round's block, in target steps; at an answer's end it may be less."""
        return self.costs.v(k) if self.drafted is None else self._checking(k)

    def _checking(self, k: int, a: float | None = None) -> float:
        """Return the mean time of a round's target call at acceptance `a`, in target steps."""
        return self._mean(self.costs.v, k, self._known(a))

    def _drafting(self, k: int, a: float | None = None) -> float:
        """Return the mean time of a round's draft steps at acceptance `a`, in target steps."""
        known = self._known(a)
        if self._if_kept and known is not None:
            return self._mean(lambda n: self.costs.c * (n + known**n), k, known)
        return self._mean(lambda n: self.costs.c * (n + self._extra), k, known)

    def _known(self, a: float | None) -> float | None:
        """Return `a`, by default the measured acceptance, or None if nothing follows from that."""
        return self.acceptance if a is None and self.depends else a

    def cost(self, k: int, a: float | None = None) -> float:
        """Return the mean cost of a round in target steps, at the measured acceptance unless `a` is given."""
        return self._drafting(k, a) + self._checking(k, a)

    def tokens(self, k: int, a: float | None) -> float:
        """Return the tokens of a round at acceptance `a`, or the measured number if `a` is None."""
        if a is None:
            return self._per_round
        if self._blocks is None:
            tokens = sum(n * count for (n, _), count in self._answers.items())
            return tokens / sum(self._rounds(k, a).values())
        return self._mean(lambda n: theory.expected_tokens(a, n), k, a)

    def _gain(self, k: int, cost: float, acceptance: float | None = None, alone: float | None = None) -> float:
        """Return the speed-up over the target alone, whose token takes `alone` steps (by default with its overhead)."""
        tokens = self.tokens(k, self._known(acceptance))
        return self._whole(tokens * (self._alone if alone is None else alone) / cost)

    def predicted(self, k: int, a: float | None = None) -> float:
        """Return the speed-up if neither side spent time outside the models, by default at the measured acceptance."""
        return self._gain(k, self.cost(k, a), a, alone=1.0)

    def with_overhead(self, k: int, a: float | None = None) -> float:
        """Return the speed-up with the time outside the models, by default at the measured acceptance."""
        return self._gain(k, self._cost_with_overhead(k, a), a)

    def _cost_with_overhead(self, k: int, a: float | None = None) -> float:
        """Return the mean cost of a round; for the k and the acceptance of the runs, it includes the time they took."""
        return self.cost(k, a) + self.per_round + self.per_draft * self._mean(float, k, self._known(a))

    def bottleneck(self, k: int) -> tuple[str, float]:
        """Return what would help most if it were free, and the speed-up without it, all else being equal."""
        everything, verification = self._cost_with_overhead(k), self._checking(k)
        accepted = self._cost_with_overhead(k, 1.0)
        ideal = {
            DRAFT: self._gain(k, everything - self._drafting(k)),
            VERIFICATION: self._gain(k, everything - max(verification - 1, 0.0)),
            ACCEPTANCE: self._gain(k, accepted, 1.0),
            OVERHEAD: self.predicted(k),
        }
        name = max(ideal, key=lambda each: ideal[each])
        return name, ideal[name]


def _overhead(runs: Sequence[Run]) -> float:
    """Return the share of the time after the prompt that was spent outside the models."""
    return sum(run.metrics.seconds.other for run in runs) / _after_prefill(runs)


def _full(run: Run, k: int) -> bool:
    """Return whether every round drafted k tokens, except where the end of the answer left no room for them."""
    at = 0
    for round_ in run.rounds:
        if len(round_.drafted) < k and at + k < len(run.token_ids):
            return False
        at += len(round_.emitted)
    return True


def checked(run: Run) -> list[int]:
    """Return the lengths of the blocks that the target read; of one in which the text ends, a trace has only a part."""
    blocks = [len(round_.drafted) for round_ in run.rounds]
    ends_inside = run.finish_reason != "length" and bool(blocks) and run.rounds[-1].emitted[-1].event == "accepted"
    if ends_inside and "stop" not in run.params:
        blocks[-1] = max(blocks[-1], block_length(run.params))
    return blocks


def _with_prompt(drafting: Sequence[Run], target: Sequence[Run]) -> Callable[[float], float]:
    """Return a function that converts a speed-up after the prompt to that of whole answers, with measured prefill."""
    tokens = sum(len(run.token_ids) for run in drafting)
    prompts = sum(run.metrics.seconds.prefill for run in drafting)
    step = 1 / _speed(target)
    alone = sum(run.metrics.seconds.total for run in target) / sum(len(run.token_ids) for run in target)
    return lambda gain: alone * tokens / (prompts + tokens * step / gain)


def _costs_from_profile(profile: Profile) -> Costs:
    return Costs(profile.c, lambda k: profile.v(k + 1), profile.longest - 1)


def _costs_from_runs(drafting: Sequence[Run], target: Sequence[Run], k: int) -> Costs:
    """Return c and v from the runs themselves; v is assumed to grow linearly up to the block that ran.

    A block cannot cost less than a step; if the times suggest it, that is noise, so v is at least 1.
    """
    step = sum(run.metrics.seconds.verify for run in target) / _total(target, "target_calls")
    calls = _total(drafting, "draft_calls")
    c = sum(run.metrics.seconds.draft for run in drafting) / calls / step if calls else 0.0
    v = max(sum(run.metrics.seconds.verify for run in drafting) / _total(drafting, "num_rounds") / step, 1.0)
    drafted = _total(drafting, "num_draft_tokens") / _total(drafting, "num_rounds")
    return Costs(c, lambda n: 1 + (v - 1) * n / drafted, k)


def _total(runs: Sequence[Run], name: str) -> int:
    return sum(int(getattr(run.metrics, name)) for run in runs)


def _speed(runs: Sequence[Run]) -> float:
    return sum(len(run.token_ids) for run in runs) / _after_prefill(runs)


def _after_prefill(runs: Sequence[Run]) -> float:
    return sum(run.metrics.seconds.total - run.metrics.seconds.prefill for run in runs)
