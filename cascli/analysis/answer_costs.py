"""Costs of a strategy's answers compared with a reference's answers to the same prompts. No torch.

Numbers per token hide that lenient rules write longer answers; what counts is the number of target calls per answer.
For answers that were cut off, neither the full length nor the full cost is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from cascli.analysis.percentiles import Percentiles, percentiles
from cascli.analysis.statistics import UNSEEN, IntervalKind, ratio_interval, ratio_of_totals
from cascli.settings import TARGET
from cascli.trace import Data, Run, block_length

MAX_SHARE_CUT = 0.1
"""Share of cut answers, of either strategy, above which lengths are withheld."""
BY_THE_LIMIT = "cut off by the limit"
"""How answers ended that would have continued with a higher limit."""


class Answered(NamedTuple):
    """What it took to answer one prompt once, with all its turns."""

    prompt: Hashable
    seed: Hashable
    """Answers to a prompt are compared with those of the same seed."""
    tokens: int
    target_calls: int
    rounds: int
    """Number of rounds; 0 for a strategy that does not draft ahead."""
    accepted: int
    """Drafted tokens that were kept."""
    looped: int
    """Tokens in a repetition."""
    cut: bool
    """Whether the answer, or one of its turns, ended at the length limit."""
    turns: int = 1
    seconds: float | None = None
    """Time of the answer; None in a batch, where it is a share of the batch's time."""
    interrupted: bool = False
    """Whether the answer, or one of its turns, was interrupted by the user or an error."""

    @property
    def whole(self) -> bool:
        """Whether the answer ended on its own."""
        return not (self.cut or self.interrupted)

    @classmethod
    def of(cls, runs: Sequence[Run], prompt: Hashable) -> Answered:
        """Build from the turns of a prompt."""
        metrics = [run.metrics for run in runs]
        return cls(
            prompt=prompt,
            seed=runs[0].sampling.seed,
            tokens=sum(len(run.token_ids) for run in runs),
            target_calls=sum(m.target_calls for m in metrics),
            rounds=sum(m.num_rounds for m in metrics) if block_length(runs[0].params) else 0,
            accepted=sum(m.num_accepted_draft_tokens for m in metrics),
            looped=sum(m.looped_tokens or 0 for m in metrics),
            cut=any(run.finish_reason == "length" for run in runs),
            turns=len(runs),
            seconds=sum(m.seconds.total for m in metrics) if runs[0].batch_size == 1 else None,
            interrupted=any(run.finish_reason == "interrupted" for run in runs),
        )


class Ratio(Data):
    """Ratio of a quantity to that of a reference, paired by prompt and seed."""

    of_means: float
    """Mean over all prompts, divided by the reference's mean."""
    mean: float
    """Mean of the prompts' own ratios."""
    interval: tuple[float, float] | None
    """Interval of the ratio of the means, over prompts."""
    interval_kind: IntervalKind | None
    """A 95% interval, a range (of fewer than six prompts, or if the quantity is 0 for nearly all), or no scatter."""
    prompts: int
    """Number of prompts that are compared."""

    @property
    def differs(self) -> bool:
        """Whether a 95% interval excludes a ratio of 1."""
        low, high = self.interval or (1.0, 1.0)
        return self.interval_kind == "95%" and not low <= 1 <= high


def paired(groups: Sequence[Sequence[tuple[float, float]]], unseen: float = UNSEEN) -> Ratio:
    """Return the ratio over pairs, grouped by prompt with a pair per seed or repeat; needs at least one prompt.

    `unseen` is as in `ratio_interval`.
    """
    interval = ratio_interval(groups, unseen)
    return Ratio(
        of_means=ratio_of_totals(groups),
        mean=fmean(ratio_of_totals([group]) for group in groups),
        interval=None if interval is None else (interval.low, interval.high),
        interval_kind=None if interval is None else interval.kind,
        prompts=len(groups),
    )


class PerPrompt(Data):
    """Percentiles over prompts; each prompt's value is the mean over its seeds and includes all its turns."""

    target_calls: Percentiles | None
    tokens: Percentiles | None
    tokens_per_round: Percentiles | None
    """1 + accepted / rounds; None for a strategy that does not draft ahead."""
    seconds: Percentiles | None
    """Seconds of a prompt's answers; None if they were decoded in batches."""


class AnswerCosts(Data):
    """Costs of a strategy's answers, alone and compared with those of `target` and of lossless speculation."""

    target_calls_per_answer: float
    """Mean number of target calls for a prompt, all turns of a conversation together."""
    looped_share: float
    """Share of the tokens that are in a repetition; see `cascli.analysis.loops`."""
    share_cut: float
    """Share of the prompts whose answer, or one of whose turns, ended at the length limit."""
    length: Ratio | None = None
    """Tokens per answer over the target's; None without `target`, or if more than a tenth of the answers were cut."""
    length_ended: Ratio | None = None
    """Tokens per answer over the target's, for prompts whose answers both ended on their own."""
    calls: Ratio | None = None
    """Target calls over those of `target`; None without `target`, or if more than a tenth of the answers were cut."""
    lossless: str | None = None
    """The lossless speculation that this strategy is compared with."""
    calls_to_lossless: Ratio | None = None
    """Target calls over those of `lossless`; None without it, or if more than a tenth of the answers were cut."""
    accepted_to_lossless: float | None = None
    """Tokens per round (1 + accepted / rounds) over those of `lossless`, for prompts and seeds that both answered."""
    withheld: str | None = None
    """Why lengths and the numbers that depend on them are withheld."""
    per_prompt: PerPrompt | None = None
    """Percentiles of costs over prompts; None in older documents."""


Answers = Mapping[str, Sequence[Answered]]
"""The answers of each strategy."""


def answer_costs(spec: str, answers: Answers) -> AnswerCosts | None:
    """Return the costs of a strategy's answers compared with those of others; None if it has no answers."""
    ours = answers[spec]
    if not ours:
        return None
    tokens = sum(each.tokens for each in ours)
    target = answers.get(TARGET, ())
    reference = _lossless(spec, answers)
    lossless = answers[reference] if reference else ()
    withheld = _withheld({spec: ours, TARGET: target, **({reference: lossless} if reference else {})})
    whole = [each for each in ours if each.whole]
    return AnswerCosts(
        target_calls_per_answer=fmean(each.target_calls for each in ours),
        looped_share=sum(each.looped for each in ours) / tokens if tokens else 0.0,
        share_cut=sum(each.cut for each in ours) / len(ours),
        length=None if withheld else _ratio(ours, target, _tokens),
        length_ended=_ratio(whole, [each for each in target if each.whole], _tokens),
        calls=None if withheld else _ratio(ours, target, _calls),
        lossless=reference,
        calls_to_lossless=None if withheld else _ratio(ours, lossless, _calls),
        accepted_to_lossless=_accepted(ours, lossless),
        withheld=withheld,
        per_prompt=per_prompt(ours),
    )


def per_prompt(answers: Sequence[Answered]) -> PerPrompt:
    """Return percentiles of the main costs over prompts."""
    groups: dict[Hashable, list[Answered]] = defaultdict(list)
    for each in answers:
        groups[each.prompt].append(each)
    prompts = list(groups.values())
    return PerPrompt(
        target_calls=percentiles([fmean(each.target_calls for each in group) for group in prompts]),
        tokens=percentiles([fmean(each.tokens for each in group) for group in prompts]),
        tokens_per_round=percentiles([_tokens_per_round(group) for group in prompts]),
        seconds=percentiles([_mean_seconds(group) for group in prompts]),
    )


def _mean_seconds(answers: Sequence[Answered]) -> float | None:
    known = [each.seconds for each in answers if each.seconds is not None]
    return fmean(known) if len(known) == len(answers) else None


def _tokens_per_round(answers: Sequence[Answered]) -> float | None:
    """Return the tokens per round; None for a strategy that does not draft ahead."""
    rounds = sum(each.rounds for each in answers)
    return 1 + sum(each.accepted for each in answers) / rounds if rounds else None


def _tokens(each: Answered) -> int:
    return each.tokens


def _calls(each: Answered) -> int:
    return each.target_calls


def _lossless(spec: str, answers: Answers) -> str | None:
    """Return the plain speculation to compare a strategy with: one with the same parameters, otherwise the nearest.

    The same means drafts of the same length from the same drafter, ended by the same stop and checked the same way;
    the nearest is the first of those that share most of these.
    """
    plain = [each for each in answers if each.partition(":")[0] == "speculative" and answers[each]]
    if spec in plain:
        return None
    own = _params(spec)
    return max(plain, key=lambda each: (_params(each) <= own, len(_params(each) & own)), default=None)


def _params(spec: str) -> set[str]:
    return set(spec.partition(":")[2].split(","))


def _withheld(compared: Answers) -> str | None:
    """Return why lengths are withheld, naming the first strategy with too many cut answers; None if they are not."""
    for spec, answers in compared.items():
        cut = sum(not each.whole for each in answers)
        if cut > MAX_SHARE_CUT * len(answers):
            what = "answers" if all(each.turns == 1 for each in answers) else "conversations"
            how = f"{'was' if cut == 1 else 'were'} {BY_THE_LIMIT}"
            if any(each.interrupted for each in answers):
                how = "ended early"
            return f"{cut} of {len(answers)} {what} of {spec} {how}"
    return None


def _ratio(ours: Sequence[Answered], theirs: Sequence[Answered], quantity: Callable[[Answered], int]) -> Ratio | None:
    known = {(each.prompt, each.seed): quantity(each) for each in theirs}
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for each in ours:
        other = known.get((each.prompt, each.seed))
        if other:
            groups[each.prompt].append((quantity(each), other))
    return paired(list(groups.values())) if groups else None


def _accepted(ours: Sequence[Answered], theirs: Sequence[Answered]) -> float | None:
    """Return the tokens per round over those of other answers, to the prompts and seeds that both answered."""
    both = {(each.prompt, each.seed) for each in ours} & {(each.prompt, each.seed) for each in theirs}
    own, reference = (
        _tokens_per_round([each for each in some if (each.prompt, each.seed) in both]) for some in (ours, theirs)
    )
    return None if own is None or reference is None else own / reference
