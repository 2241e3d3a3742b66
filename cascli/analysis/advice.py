"""Which strategy to use on this machine for given prompts and a tolerance: the choice and its document. No torch.

Three words distinguish numbers throughout: *measured* numbers were timed or counted in a run of the strategy itself;
*predicted* ones follow from measured step times along recorded answers; *estimated* ones are what a rule would do at
recorded positions, which it might not have reached itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from cascli.analysis.answer_costs import MAX_SHARE_CUT, Ratio
from cascli.analysis.digits import apart, bounds_apart, compared
from cascli.analysis.equivalents import Use
from cascli.analysis.explanation import NOISE, Explanation
from cascli.analysis.profile import Profile
from cascli.analysis.replay import Machine
from cascli.analysis.statistics import FEWEST, LEVEL, IntervalKind, difference_interval
from cascli.errors import UsageError
from cascli.settings import TARGET
from cascli.trace import Data, Document, PairInfo, SamplingInfo

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Values of mean TV to the target at which the gain from leniency is reported."""
SAFE = 0.9
"""Share of a tolerance that estimates may use, since measured values differ a little."""
RIVALS = 0.05
"""Largest relative gap to the best prediction at which another kind of drafting is also measured."""
UNCLEAR = 0.05
"""Relative difference of speeds that does not count as clear without a 95% interval; for one prompt it is `NOISE`,
and it is the machine's own scatter if that is larger."""
MAX_LENIENT = 3
"""Maximum number of lossy strategies that are measured if answers are scored."""


class Tolerance(Data):
    """The loss that is acceptable."""

    max_tv: float = 0.0
    """Largest acceptable mean TV(pi, p) over the tokens of answers; 0 is lossless."""
    max_quality_loss: float | None = None
    """Largest acceptable drop of the mean score below the target's; None if answers are not scored."""

    @classmethod
    def of(
        cls,
        *,
        lossless: bool = False,
        max_tv: float | None = None,
        max_quality_loss: float | None = None,
        scored: bool = False,
        spell: Callable[[str], str] = str,
    ) -> Tolerance:
        """Build a tolerance from the user's options; lossless if there are none.

        Args:
            lossless: whether no loss is acceptable.
            max_tv: largest acceptable mean TV to the target.
            max_quality_loss: largest acceptable drop of the mean score.
            scored: whether answers are scored.
            spell: converts a key to the form in which the user wrote it.

        Raises:
            UsageError: a value is out of range, options contradict each other, or a loss of quality is allowed although
                answers are not scored.
        """
        for key, value in (("max_tv", max_tv), ("max_quality_loss", max_quality_loss)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{spell(key)}: expected a number from 0 to 1 (got {value:g})")
            if lossless and value:
                raise UsageError(f"{spell('lossless')} and {spell(key)} {value:g} contradict each other; give one.")
        scored_by = "score" if spell is str else f"a task ({spell('task')}) or a metric ({spell('metric')})"
        if max_quality_loss and not scored:
            raise UsageError(
                f"{spell('max_quality_loss')}: no answers are scored; give {scored_by}, or use {spell('max_tv')}."
            )
        if max_quality_loss is None:
            return cls(max_tv=max_tv or 0.0)
        widest = 1.0 if max_quality_loss else 0.0
        return cls(max_tv=widest if max_tv is None else max_tv, max_quality_loss=max_quality_loss)

    @property
    def lossless(self) -> bool:
        """Whether no loss is acceptable."""
        return self.max_tv == 0 or self.max_quality_loss == 0

    def __str__(self) -> str:
        if self.lossless:
            return "lossless"
        parts = [f"mean TV at most {self.max_tv:g}"] if self.max_tv < 1 else []
        if self.max_quality_loss is not None:
            parts.append(f"score at most {self.max_quality_loss:g} below target's")
        return ", ".join(parts)


class Candidate(Data):
    """A strategy with predictions that were made without running it."""

    strategy: str
    drafter: str
    """Where drafts come from: the draft model, or a drafter that needs none."""
    k: int | Literal["auto"]
    stop: str | None = None
    rule: str | None = None
    """The deferral rule; None if the strategy is lossless."""
    acceptance: float | None = None
    """Mean probability that a drafted token passes, over recorded tokens; None if only some of them have drafts."""
    mean_tv: float = 0.0
    """Estimated mean TV to the target; 0 if the strategy is lossless."""
    tokens_per_round: float
    speed: Ratio
    """Predicted speed over the target for whole answers; its interval is over prompts and ignores machine noise."""

    @property
    def lossless(self) -> bool:
        """Whether its output distribution is the target's, whatever the models."""
        return self.rule is None

    @property
    def plain(self) -> bool:
        """Whether it is speculative decoding with the draft model, a fixed k and token-by-token verification."""
        return self.lossless and self.drafter == "model" and self.stop is None and "verify" not in self.strategy

    @property
    def gain(self) -> float:
        """Predicted speed over the target."""
        return self.speed.of_means


class Level(Data):
    """The best rule at one limit of the mean TV to the target."""

    max_tv: float
    candidate: Candidate
    """The best rule whose estimated mean TV is at most 90% of `max_tv`."""


class Quality(Data):
    """Scores of answers compared with those of the target's answers to the same prompts."""

    score: float
    """Mean score."""
    loss: float
    """How much lower the mean score is than the target's."""
    most: float | None
    """Upper end of a 95% interval of the loss; None if there are too few prompts for one."""
    prompts_needed: int | None = None
    """Approximate number of prompts needed to show that the tolerance is kept, if losses continue as measured; None if
    this has been shown, or the loss itself exceeds the tolerance."""


class Confirmed(Data):
    """A strategy that was run, interleaved with the others."""

    strategy: str
    predicted: float | None
    """Predicted speed over the target; None for the target."""
    speed: Ratio
    """Measured speed for whole answers, paired by prompt: the target's time for as many tokens over the strategy's.

    For a lossy strategy with `by_answer`, times per answer are compared instead.
    """
    by_answer: bool = False
    """Whether `speed` is per answer, because answers clearly differ in length from the target's, or because times per
    token and per answer disagree about which is faster."""
    answers: Ratio | None = None
    """Measured: the target's time per answer over the strategy's; cut-off answers count up to the cut. None in older
    documents with many of them."""
    length: Ratio | None = None
    """Tokens per answer over those of the target; cut-off answers count up to the cut. None in older documents with
    many of them."""
    share_cut: float | None = None
    """Share of its answers that ended at the length limit; None in older documents."""
    tokens_per_second: float | None
    tokens_per_round: float | None
    draft_acceptance_rate: float | None
    """Accepted over tested drafted tokens."""
    mean_tv: float | None
    lossless: bool
    """Whether the strategy is lossless by construction."""
    same_answers: int
    """Number of answers that equal the target's, token by token."""
    num_answers: int
    quality: Quality | None = None
    refused: str | None = None
    """Why the strategy is not within the tolerance; None if it is."""

    @property
    def within(self) -> bool:
        """Whether the strategy is within the tolerance, as measured."""
        return self.refused is None

    @property
    def surprise(self) -> bool:
        """Whether the prediction is outside the measured interval by more than noise."""
        if self.predicted is None or self.by_answer:  # predictions are per token
            return False
        low, high = self.speed.interval or (self.speed.of_means, self.speed.of_means)
        return not low * (1 - NOISE) <= self.predicted <= high * (1 + NOISE)


class Lever(Data):
    """A change and the gain it would lead to."""

    change: str
    """The change, in words."""
    k: int | None
    """The best k after the change; None if rounds may have any length."""
    gain: float
    """Predicted speed over the target after the change."""


class Finding(Data):
    """The recommendation."""

    strategy: str
    speed: Ratio | None
    """Measured speed over the target; None if the target is recommended."""
    over_plain: Ratio | None = None
    """Measured speed over plain speculation at the best k; None if that or the target is recommended, or if there is no
    plain speculation."""
    sentences: list[str]
    """What was found, in words."""


class Looked(Data):
    """The recorded answers on which predictions are based."""

    prompts: list[str]
    """Ids of the recorded prompts."""
    tokens: int
    share_cut: float
    """Share of answers that ended at the length limit."""
    acceptance: float | None
    """Mean probability that a token of the draft model passes; None without a draft model."""
    acceptance_by_third: list[float] = Field(default_factory=list)
    """Mean acceptance in the first, second and last third of answers."""
    passing_rows: float | None = None
    """Probability that a draft passes after one that passed, over the mean: above 1 if they come in streaks."""
    mean_tail: float = 0.0
    """Mean mass of tokens that were lumped together: how far off estimates of token rules can be."""


class Advice(Document):
    """What to use, what it gains, and the evidence for it."""

    kind: ClassVar[str] = "advice"

    schema_name: Literal["cascli.advice/1", "cascli.advice/1.1", "cascli.advice/1.2", "cascli.advice/1.3"] = Field(
        "cascli.advice/1.3", alias="schema"
    )
    date: str | None = None
    """Start time in UTC (ISO 8601)."""
    command: str | None = None
    """The command line, quoted for a shell; None if called from Python."""
    pair: PairInfo
    sampling: SamplingInfo
    environment: dict[str, str]
    tolerance: Tolerance
    """The loss that is acceptable."""
    finding: Finding
    """The recommended strategy, and what it gains."""
    use: Use
    """How to use the recommended strategy, in cascli and elsewhere."""
    confirmed: list[Confirmed] = Field(min_length=1)
    """Strategies that were run, the target first."""
    confirmed_on: list[str]
    """Ids of the prompts on which strategies were run."""
    apart: bool
    """Whether measurements and predictions are based on disjoint sets of prompts."""
    candidates: list[Candidate]
    """Lossless strategies, the best prediction first: the best k for each drafter and stop, and every k for the draft
    model."""
    levels: list[Level]
    """What leniency would gain, the strictest level first."""
    levers: list[Lever]
    """What changes would gain, one at a time."""
    explanation: Explanation | None = None
    """Why the fastest measured strategy that drafts is not faster."""
    looked: Looked
    """The recorded answers on which predictions are based."""
    machine: Machine
    """Step costs on this machine, as used for predictions."""
    profile: Profile
    """The measured step times."""
    spread: float | None = None
    """Interquartile range over median of the target's steps: how noisy the machine was."""
    notes: list[str] = Field(default_factory=list)
    """Limitations of the advice."""

    def __repr__(self) -> str:
        """Return one line; `.finding` has the recommendation, `.use` how to use it."""
        speed = "" if self.finding.speed is None else f", {format_ratio(self.finding.speed)}"
        return f"<Advice: {self.finding.strategy}{speed}; {self.tolerance}>"

    __str__ = __repr__


def best(candidates: Sequence[Candidate], max_tv: float = 0.0) -> Candidate | None:
    """Return the candidate predicted fastest that is lossless or estimated within a tolerance; ties go to the simpler.

    A rule with an estimated TV of 0 does not count as lossless, since it may show a loss on other texts.
    """
    allowed = [each for each in candidates if each.lossless or (max_tv and each.mean_tv <= SAFE * max_tv)]
    return max(allowed, key=lambda each: (each.gain, each.lossless, each.plain, -_length(each)), default=None)


def _length(candidate: Candidate) -> int:
    return candidate.k if isinstance(candidate.k, int) else 1000


def levels(candidates: Sequence[Candidate], at: Sequence[float] = LEVELS) -> list[Level]:
    """Return the best rule at several tolerances, omitting those that gain no more than the stricter ones."""
    last, kept = best(candidates), list[Level]()
    for max_tv in sorted(at):
        candidate = best(candidates, max_tv)
        if candidate is not None and (last is None or candidate.gain > last.gain):
            kept.append(Level(max_tv=max_tv, candidate=candidate))
            last = candidate
    return kept


def shortlist(candidates: Sequence[Candidate], tolerance: Tolerance) -> list[Candidate]:
    """Return what is worth measuring, simplest first: plain speculation, the best lossless, the best within tolerance.

    If answers are scored, this includes several lossy candidates, since the effect of a distance on the score is not
    known in advance.
    """
    lossless = [each for each in candidates if each.lossless]
    plain, first = best([each for each in lossless if each.plain]), best(lossless)
    chosen = [each for each in (plain, first) if each is not None]
    if first is not None and first == plain:
        rival = best([each for each in lossless if not each.plain])
        chosen += [rival] if rival is not None and rival.gain >= (1 - RIVALS) * first.gain else []
    if not tolerance.lossless:
        at = [tolerance.max_tv]
        if tolerance.max_quality_loss is not None:
            at = [each for each in LEVELS if each < tolerance.max_tv] + at
        lenient = {each.candidate.strategy: each.candidate for each in levels(candidates, at)}
        chosen += [*lenient.values()][-MAX_LENIENT if tolerance.max_quality_loss is not None else -1 :]
    return list({each.strategy: each for each in chosen}.values())


def quality(ours: Sequence[float], targets: Sequence[float], tolerated: float) -> Quality:
    """Compare scores with the target's for the same prompts, one of each per prompt.

    If no prompt lost anything, or all lost the same, the upper end adds the loss that n prompts may have missed: what
    happens to one prompt in n / 3 may not show in n prompts.
    """
    losses = [theirs - own for own, theirs in zip(ours, targets, strict=True)]
    loss, n = fmean(losses), len(losses)
    most: float | None = None
    if n >= FEWEST:
        interval = difference_interval([-each for each in losses])
        hidden = 1 - (1 - LEVEL) ** (1 / n)
        most = loss + hidden if interval is None or interval.kind == "no scatter" else -interval.low
    needed = None
    if (most is None or most > tolerated) and loss < tolerated:
        scatter = stdev(losses) if n > 1 else 0.0
        needed = max(int(3 / (tolerated - loss)) + 1, int((2 * scatter / (tolerated - loss)) ** 2) + 1, FEWEST)
    return Quality(score=fmean(ours), loss=loss, most=most, prompts_needed=needed)


def refusal(tolerance: Tolerance, mean_tv: float | None, scored: Quality | None) -> str | None:
    """Return why a lossy strategy is not within a tolerance, as measured; None if it is."""
    if tolerance.lossless:
        return "it is not lossless"
    if tolerance.max_tv < 1 and (mean_tv is None or mean_tv > tolerance.max_tv):
        measured = "not known" if mean_tv is None else apart(mean_tv, tolerance.max_tv, 3)
        return f"its mean TV to the target is {measured}; at most {tolerance.max_tv:g} is allowed"
    if tolerance.max_quality_loss is None:
        return None
    if scored is None or scored.most is None:
        return (
            f"there are too few prompts to show that it loses at most {tolerance.max_quality_loss:g}{_needed(scored)}"
        )
    if scored.most <= tolerance.max_quality_loss:
        return None
    lost = f"measured loss {scored.loss:.3f}, at most {apart(scored.most, tolerance.max_quality_loss, 3)}"
    return f"it is not shown to lose at most {tolerance.max_quality_loss:g} ({lost}){_needed(scored)}"


def _needed(scored: Quality | None) -> str:
    """Return a clause with the number of prompts that might be enough, or an empty string if it is unknown."""
    needed = None if scored is None else scored.prompts_needed
    return "" if needed is None else f"; about {needed:,} measured prompts might be enough"


class Compared(NamedTuple):
    """How much faster one strategy is than another."""

    ratio: Ratio
    by_answer: bool = False
    """Whether the ratio is of times per answer rather than per token."""

    def phrase(self, subject: str) -> str:
        """Return a phrase such as `It is 1.21x (95% 1.12-1.31) as fast as`."""
        basis = f"Per answer, {subject[:1].lower()}{subject[1:]}" if self.by_answer else subject
        return f"{basis} is {format_ratio(self.ratio)} as fast as"


Faster = Callable[[str, str], Compared]
"""How much faster the first strategy is than the second, as measured: see `cascli.jobs.advise.Measured.faster`."""


def clearly(ratio: Ratio, unclear: float = UNCLEAR) -> bool:
    """Return whether a ratio is clearly above 1: its whole interval is.

    A range of a few prompts is not an interval: the range must be above 1, and the ratio above 1 by more than
    `unclear`.
    """
    above = ratio.interval is None or ratio.interval[0] > 1
    return above and (ratio.interval_kind == "95%" or ratio.of_means > 1 + unclear)


def clearly_faster(ratio: Ratio, noise: float | None = None) -> bool:
    """Return whether a ratio of times is clearly above 1, on a machine whose steps scatter by `noise`.

    Without a 95% interval, it must be above 1 by more than that scatter, and more than 5%, or 10% for one prompt: all
    that it says may be due to what else the machine did.
    """
    return clearly(ratio, max(NOISE if ratio.interval is None else UNCLEAR, noise or 0.0))


def decide(confirmed: Sequence[Confirmed], faster: Faster, noise: float | None = None) -> Confirmed:
    """Choose the simplest strategy that no other one is clearly faster than, among those that clearly beat the target.

    What cannot be told apart from the fastest is thus preferred to it if it is simpler: a rule, which has loss, must
    also beat a lossless strategy that is not plain speculation.

    Args:
        confirmed: strategies that were run, simplest first, starting with the target.
        faster: compares two of them.
        noise: scatter of the machine's steps, for speeds without a 95% interval.
    """

    def beats(row: Confirmed, other: Confirmed) -> bool:
        above = row.speed.of_means > other.speed.of_means  # one may be per answer, the other per token
        return above and clearly_faster(faster(row.strategy, other.strategy).ratio, noise)

    target, *others = confirmed
    better = [row for row in others if row.within and beats(row, target)]
    return next((row for row in better if not any(beats(each, row) for each in better if each is not row)), target)


class Levers(NamedTuple):
    """How the best block length and its gain depend on the machine and the acceptance."""

    gain: Callable[[Machine, float], tuple[int, float]]
    """Returns the best k and its gain for a machine and the share of all rejections that remains."""
    oracle: float | None
    """Gain of drafting exactly what is kept."""


def levers(gains: Levers, machine: Machine) -> list[Lever]:
    """Return how single changes would affect the gain of plain speculation; the first entry changes nothing."""
    changes = [
        ("as it is", machine, 1.0),
        ("half as many rejections (a draft model closer to the target)", machine, 0.5),
        (f"a draft step at half the cost (c {machine.c / 2:.2f})", _with(machine, c=machine.c / 2), 1.0),
        ("drafts at no cost (c 0)", _with(machine, c=0.0, draft_reading=0.0), 1.0),
        ("a check as cheap as a step (v 1)", _with(machine, v=[min(each, 1.0) for each in machine.v]), 1.0),
        ("no time outside the models", _with(machine, outside=0.0, outside_alone=0.0), 1.0),
    ]
    entries = []
    for change, changed, left in changes:
        k, gain = gains.gain(changed, left)
        entries.append(Lever(change=change, k=k, gain=gain))
    if gains.oracle is not None:
        entries.append(Lever(change="drafting exactly what is kept (no stop achieves it)", k=None, gain=gains.oracle))
    return entries


def _with(machine: Machine, **changes: object) -> Machine:
    return machine.model_copy(update=changes)


def find(
    chosen: Confirmed,
    confirmed: Sequence[Confirmed],
    plain: str | None,
    faster: Faster,
    noise: float | None = None,
) -> Finding:
    """Return the decision, with sentences on the reasons; arguments as in `decide`."""
    others = [each for each in confirmed if each.strategy != TARGET]
    sentences = []
    if chosen.strategy == TARGET:
        sentences.append(_why_target(others, noise))
    elif plain is not None and chosen.strategy != plain:
        over = faster(chosen.strategy, plain)
        but = "" if clearly_faster(over.ratio, noise) else _but(plain, others, faster, noise)
        sentences.append(f"{over.phrase('It')} plain speculation ({plain}), which is simpler{but}.")
    fastest = max(others, key=lambda each: each.speed.of_means, default=chosen)
    if fastest is not chosen and fastest.speed.of_means > chosen.speed.of_means and chosen.strategy != TARGET:
        sentences.append(_passed_over(fastest, chosen, faster, noise))
    elif chosen.strategy == plain:
        ran, more = "Nothing that ran", "Nothing else within the tolerance is predicted to be"
        sentences.append(
            f"{ran if len(others) > 1 else more} {'is ' * (len(others) > 1)}faster than plain speculation."
        )
    sentences += [
        f"{each.strategy} was predicted at {each.predicted:.2f}x but measured at {format_ratio(each.speed)}:"
        " trust the latter."
        for each in others
        if each.surprise
    ]
    compared = plain is not None and chosen.strategy not in (TARGET, plain)
    sentences += filter(None, map(_length_note, others))
    return Finding(
        strategy=chosen.strategy,
        speed=None if chosen.strategy == TARGET else chosen.speed,
        over_plain=faster(chosen.strategy, plain).ratio if compared and plain is not None else None,
        sentences=sentences,
    )


def answer_notes(rows: Sequence[Confirmed], tolerance: Tolerance) -> list[str]:
    """Return limitations that come from the measured answers: cut ones, and scores that cannot show a loss."""
    notes = []
    worst = max(rows, key=lambda each: (_cut_often(each) and not each.lossless, each.share_cut or 0.0))
    if _cut_often(worst):
        cut = f"{worst.share_cut:.0%} of the answers of {worst.strategy} were cut off"
        notes.append(cut if worst.lossless else f"{cut}: their full length and cost are not known")
    scored, most = rows[0].quality, tolerance.max_quality_loss
    if scored is not None and most and scored.score <= most:
        notes.append(f"target's own mean score is {scored.score:.3f} here: a loss of {most:g} would be all of it")
    return notes


def _cut_often(row: Confirmed) -> bool:
    return (row.share_cut or 0.0) > MAX_SHARE_CUT


def _why_target(others: Sequence[Confirmed], noise: float | None) -> str:
    """Return why the target is recommended."""
    allowed = [each for each in others if each.within]
    nearest = max(allowed, key=lambda each: each.speed.of_means, default=None)
    if nearest is None:
        return "Nothing is faster than target within the tolerance."
    speed = format_ratio(nearest.speed)
    if nearest.speed.of_means <= 1:
        return f"Nothing is faster than target: the best, {nearest.strategy}, is {speed} as fast."
    tie = "" if nearest.speed.interval_kind == "95%" else f", {_unclear(nearest.speed, noise)}"
    return f"Nothing is clearly faster than target: the best, {nearest.strategy}, is {speed} as fast{tie}."


def _but(plain: str, others: Sequence[Confirmed], faster: Faster, noise: float | None) -> str:
    """Return why plain speculation is not recommended although it cannot be told apart from what is."""
    ahead = [row for row in others if row.within and row.strategy != plain]
    beating = (row.strategy for row in ahead if clearly_faster(faster(row.strategy, plain).ratio, noise))
    return next((f" but clearly slower than {each}" for each in beating), " but not clearly faster than target")


def _unclear(ratio: Ratio, noise: float | None) -> str:
    """Return what a ratio is that is not clearly above 1."""
    if ratio.interval_kind == "95%":
        return "not clearly faster"
    noisy = noise is not None and noise > (NOISE if ratio.interval is None else UNCLEAR)
    return "too little to tell them apart" + (f" where steps scatter by {noise:.0%}" if noisy else "")


def _passed_over(fastest: Confirmed, chosen: Confirmed, faster: Faster, noise: float | None) -> str:
    """Return why the fastest strategy is not recommended."""
    if fastest.refused is not None:
        return f"{fastest.strategy} is {format_ratio(fastest.speed)} as fast as target, but {fastest.refused}."
    over, length = faster(fastest.strategy, chosen.strategy), fastest.length
    if over.by_answer and not fastest.by_answer and length is not None:
        by_token = f"{fastest.strategy} is {format_ratio(fastest.speed)} as fast as target per token"
        longer = f"but its answers are {length.of_means:.2f}x as long"
        return f"{by_token}, {longer}: per answer it is {format_ratio(over.ratio)} as fast as {chosen.strategy}."
    if not clearly_faster(fastest.speed, noise):
        passed = over.phrase(fastest.strategy)
        return f"{passed} {chosen.strategy}, the recommended one, but not clearly faster than target."
    if clearly_faster(over.ratio, noise):  # possible only if ratios per token and per answer disagree
        return f"{over.phrase(fastest.strategy)} {chosen.strategy}, the recommended one."
    why = "lossless" if chosen.lossless and not fastest.lossless else "simpler"
    tie = _unclear(over.ratio, noise)
    return f"{over.phrase(fastest.strategy)} {chosen.strategy}, the recommended one, which is {why}: {tie}."


def _length_note(row: Confirmed) -> str | None:
    """Return how the lengths of a strategy's answers affect its speed; None if they do not matter."""
    if row.length is None or row.answers is None or row.lossless:
        return None
    if row.by_answer:
        length = f"its answers are {row.length.of_means:.2f}x as long as target's"
        return f"{row.strategy}: {length}, so its speed is per answer."
    if clearly(row.speed) and not clearly(row.answers):
        return f"{row.strategy}: its answers vary in length, and per answer it is {format_ratio(row.answers)} as fast."
    return None


def format_ratio(ratio: Ratio) -> str:
    """Format a ratio, such as `1.21x (95% 1.12-1.31)`."""
    if ratio.interval is None:
        return f"{ratio.of_means:.2f}x (one prompt)"
    bounds = bounds_apart(ratio.interval, 1, "-")
    return f"{compared(ratio.of_means, ratio.interval, 1)}x ({interval_label(ratio.interval_kind)}{bounds})"


def interval_label(kind: IntervalKind | None) -> str:
    """Return the label in front of an interval's bounds."""
    return {"95%": "95% ", "range": "range over prompts ", "no scatter": "", None: ""}[kind]
