"""What to decode with here, for these prompts and a stated tolerance: how it is chosen, and the document. No torch.

Three words tell numbers apart, everywhere: *measured* was clocked or counted in this run, of the strategy itself;
*predicted* follows from measured step times along answers that were recorded; *estimated* is what a rule would do at
recorded positions, which it might not have come to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from cascli.analysis.answer_costs import MOST_CUT, Ratio
from cascli.analysis.equivalents import Use
from cascli.analysis.explanation import NOISE, Explanation
from cascli.analysis.profile import Profile
from cascli.analysis.replay import Machine
from cascli.analysis.statistics import FEWEST, LEVEL, IntervalKind, difference_interval
from cascli.errors import UsageError
from cascli.trace import Data, Document, PairInfo, SamplingInfo

TARGET = "target"
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Mean TV to the target at which is told what lenience would buy."""
SAFE = 0.9
"""Share of a tolerance that estimates may use up: what is measured of it differs a little."""
RIVALS = 0.05
"""How far behind the best prediction another kind of drafting may be to be measured beside it."""
UNCLEAR = 0.05
"""A difference of speeds that is not called one where there is no 95% interval."""
MOST_LENIENT = 3
"""Strategies with loss that are measured, where answers are scored."""


class Tolerance(Data):
    """What may be given up."""

    max_tv: float = 0.0
    """Mean TV(pi, p) over the tokens of answers, at most; 0 is lossless."""
    max_quality_loss: float | None = None
    """How much lower than the target's mean score is still good enough; None where answers are not scored."""

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
        """From what was asked for; lossless where nothing was.

        Args:
            lossless: nothing may be given up.
            max_tv: mean TV to the target.
            max_quality_loss: mean score.
            scored: whether answers are.
            spell: turns a key into how the user wrote it.

        Raises:
            UsageError: a value out of range, contradictory ones, or a loss of what nobody scores.
        """
        for key, value in (("max_tv", max_tv), ("max_quality_loss", max_quality_loss)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{spell(key)}: expected a number from 0 to 1 (got {value:g})")
            if lossless and value:
                raise UsageError(f"{spell('lossless')} and {spell(key)} {value:g} contradict each other; give one.")
        if max_quality_loss and not scored:
            raise UsageError(
                f"{spell('max_quality_loss')}: no answers are scored; give a task ({spell('task')}) or a metric"
                f" ({spell('metric')}), or use {spell('max_tv')}."
            )
        if max_quality_loss is None:
            return cls(max_tv=max_tv or 0.0)
        widest = 1.0 if max_quality_loss else 0.0
        return cls(max_tv=widest if max_tv is None else max_tv, max_quality_loss=max_quality_loss)

    @property
    def lossless(self) -> bool:
        """Whether nothing may be given up."""
        return self.max_tv == 0 or self.max_quality_loss == 0

    def __str__(self) -> str:
        if self.lossless:
            return "lossless"
        parts = [f"mean TV at most {self.max_tv:g}"] if self.max_tv < 1 else []
        if self.max_quality_loss is not None:
            parts.append(f"score at most {self.max_quality_loss:g} below target's")
        return ", ".join(parts)


class Candidate(Data):
    """A strategy that did not run, and what is predicted of it."""

    strategy: str
    drafter: str
    """What drafts: the draft model, or what needs none."""
    k: int | Literal["auto"]
    stop: str | None = None
    rule: str | None = None
    """None of one that is lossless."""
    acceptance: float | None = None
    """Mean chance that a drafted token passes at a recorded token; None where drafts are made at some tokens only."""
    mean_tv: float = 0.0
    """Estimated; 0 of one that is lossless."""
    tokens_per_round: float
    speed: Ratio
    """Predicted, over the target, whole answers; its interval is of the prompts alone, not of the machine."""

    @property
    def lossless(self) -> bool:
        """Whether its output distribution is the target's, whatever the models."""
        return self.rule is None

    @property
    def plain(self) -> bool:
        """Whether it is speculative decoding with the draft model and a fixed k."""
        return self.lossless and self.drafter == "model" and self.stop is None and "verify" not in self.strategy

    @property
    def gain(self) -> float:
        """Predicted speed over the target."""
        return self.speed.of_means


class Level(Data):
    """What lenience would buy: the best rule whose estimated mean TV is no more than this."""

    max_tv: float
    candidate: Candidate
    """The best rule that keeps it."""


class Quality(Data):
    """Scores of answers beside the target's to the same prompts."""

    score: float
    """Mean."""
    loss: float
    """How much lower it is than the target's."""
    most: float | None
    """Upper end of a 95% interval of the loss; None where there are too few prompts to speak of one."""
    prompts_needed: int | None = None
    """About how many prompts would show that the tolerance is kept, if losses go on as they were; None if it was shown,
    or the loss itself is beyond it."""


class Confirmed(Data):
    """A strategy that ran, interleaved with the others."""

    strategy: str
    predicted: float | None
    """Speed over the target; None of the target."""
    speed: Ratio
    """Measured: the target's time for as many tokens over its own, paired by prompt, whole answers.

    Of one with loss the time an answer, where that decides (`by_answer`).
    """
    by_answer: bool = False
    """Whether answers are clearly of another length, or token and answer disagree about whether it is faster."""
    answers: Ratio | None = None
    """Measured: the target's time for an answer over its own, those that were cut off until then; older documents have
    None where these were many."""
    length: Ratio | None = None
    """Tokens of its answers over those of the target's; likewise."""
    share_cut: float | None = None
    """Share of its answers that the limit ended; None in older documents."""
    tokens_per_second: float | None
    tokens_per_round: float | None
    draft_acceptance_rate: float | None
    """Of tested drafts."""
    mean_tv: float | None
    lossless: bool
    """Whether it is so by construction."""
    same_answers: int
    """How many answers are the target's, token by token."""
    num_answers: int
    quality: Quality | None = None
    refused: str | None = None
    """Why it is not within the tolerance; None where it is."""

    @property
    def within(self) -> bool:
        """Whether it keeps the tolerance, as measured."""
        return self.refused is None

    @property
    def surprise(self) -> bool:
        """Whether the prediction lies outside of what was measured, by more than noise."""
        if self.predicted is None or self.by_answer:  # predictions are by the token
            return False
        low, high = self.speed.interval or (self.speed.of_means, self.speed.of_means)
        return not low * (1 - NOISE) <= self.predicted <= high * (1 + NOISE)


class Lever(Data):
    """What would change the gain, and to what."""

    change: str
    """What would be otherwise, in words."""
    k: int | None
    """The best then; None where rounds are of any length."""
    gain: float
    """Predicted speed over the target."""


class Finding(Data):
    """What it comes to."""

    strategy: str
    speed: Ratio | None
    """Measured speed over the target; None if it is the target."""
    over_plain: Ratio | None = None
    """Measured speed over plain speculation of the best k; None if it is that, or none ran."""
    sentences: list[str]
    """What was found, in words."""


class Looked(Data):
    """The answers on which predictions rest."""

    prompts: list[str]
    """Their ids."""
    tokens: int
    share_cut: float
    """Share of answers that the limit ended."""
    acceptance: float | None
    """Mean chance that a token of the draft model passes; None without one."""
    acceptance_by_third: list[float] = Field(default_factory=list)
    """In the first, second and last third of answers."""
    passing_rows: float | None = None
    """The chance that a draft passes after one that did, over the mean: above 1 where what passes comes in rows."""
    mean_tail: float = 0.0
    """Mean mass of tokens that were lumped together: how far estimates of rules about tokens can be off."""


class Advice(Document):
    """What to use, what it gains, and on what that rests."""

    kind: ClassVar[str] = "advice"

    schema_name: Literal["cascli.advice/1", "cascli.advice/1.1"] = Field("cascli.advice/1.1", alias="schema")
    date: str | None = None
    """When it began, in UTC as ISO 8601 has it."""
    command: str | None = None
    """The command line, quoted for a shell; None from Python."""
    pair: PairInfo
    sampling: SamplingInfo
    environment: dict[str, str]
    tolerance: Tolerance
    """What may be given up."""
    finding: Finding
    """What is advised, and what it gains."""
    use: Use
    """How it is used, here and elsewhere."""
    confirmed: list[Confirmed] = Field(min_length=1)
    """What ran, the target first."""
    confirmed_on: list[str]
    """Ids of the prompts of these runs."""
    apart: bool
    """Whether none of them is among those that predictions rest on."""
    candidates: list[Candidate]
    """Lossless strategies, the best prediction first: of each drafter and stop the best k, and of the model every k."""
    levels: list[Level]
    """What lenience would buy, the strictest first."""
    levers: list[Lever]
    """What one change would bring, each by itself."""
    explanation: Explanation | None = None
    """Why the fastest one that drafts is not faster, as measured."""
    looked: Looked
    """What was recorded, on which predictions rest."""
    machine: Machine
    """What steps take here, as predictions count them."""
    profile: Profile
    """The step times that were measured."""
    spread: float | None = None
    """Interquartile range over median of the target's steps: how noisy the machine was."""
    notes: list[str] = Field(default_factory=list)
    """What limits the advice."""

    def __repr__(self) -> str:
        """One line: `.finding` says what was found, `.use` how it is used."""
        speed = "" if self.finding.speed is None else f", {told(self.finding.speed)}"
        return f"<Advice: {self.finding.strategy}{speed}; {self.tolerance}>"

    __str__ = __repr__


def best(candidates: Sequence[Candidate], max_tv: float = 0.0) -> Candidate | None:
    """The fastest by prediction that is lossless, or is estimated to keep a tolerance; of equals the simpler one.

    A rule that is estimated to give up nothing is not lossless for that: other texts may show it.
    """
    allowed = [each for each in candidates if each.lossless or (max_tv and each.mean_tv <= SAFE * max_tv)]
    return max(allowed, key=lambda each: (each.gain, each.lossless, each.plain, -_length(each)), default=None)


def _length(candidate: Candidate) -> int:
    return candidate.k if isinstance(candidate.k, int) else 1000


def levels(candidates: Sequence[Candidate], at: Sequence[float] = LEVELS) -> list[Level]:
    """What the best rule would bring at several tolerances; only those that bring more than the stricter ones."""
    last, found = best(candidates), list[Level]()
    for max_tv in sorted(at):
        candidate = best(candidates, max_tv)
        if candidate is not None and (last is None or candidate.gain > last.gain):
            found.append(Level(max_tv=max_tv, candidate=candidate))
            last = candidate
    return found


def shortlist(candidates: Sequence[Candidate], tolerance: Tolerance) -> list[Candidate]:
    """What is worth measuring, the simplest first: plain speculation, the best without loss, the best within tolerance.

    With scored answers several of those with loss, since what a distance does to a score is not known beforehand.
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
        found = {each.candidate.strategy: each.candidate for each in levels(candidates, at)}
        chosen += [*found.values()][-MOST_LENIENT if tolerance.max_quality_loss is not None else -1 :]
    return list({each.strategy: each for each in chosen}.values())


def quality(ours: Sequence[float], targets: Sequence[float], tolerated: float) -> Quality:
    """Scores beside the target's to the same prompts, one of each a prompt.

    Where no prompt lost anything, or all the same, the interval is that of a loss that n prompts might have hidden: of
    n prompts none shows what happens to one in n / 3.
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
    """Why a strategy with loss is not within a tolerance, by what was measured; None if it is."""
    if tolerance.lossless:
        return "it is not lossless"
    if tolerance.max_tv < 1 and (mean_tv is None or mean_tv > tolerance.max_tv):
        measured = "not known" if mean_tv is None else f"{mean_tv:.3f}"
        return f"its mean TV to the target is {measured}; at most {tolerance.max_tv:g} is allowed"
    if tolerance.max_quality_loss is None:
        return None
    if scored is None or scored.most is None:
        return (
            f"there are too few prompts to show that it loses at most {tolerance.max_quality_loss:g}{_needed(scored)}"
        )
    if scored.most <= tolerance.max_quality_loss:
        return None
    lost = f"measured loss {scored.loss:.3f}, at most {scored.most:.3f}"
    return f"it is not shown to lose at most {tolerance.max_quality_loss:g} ({lost}){_needed(scored)}"


def _needed(scored: Quality | None) -> str:
    """How many prompts might show it, where that is known."""
    needed = None if scored is None else scored.prompts_needed
    return "" if needed is None else f"; about {needed:,} measured prompts might be enough"


class Compared(NamedTuple):
    """How much faster one strategy is than another."""

    ratio: Ratio
    by_answer: bool = False
    """Whether of the time an answer, not a token."""

    def said(self, subject: str) -> str:
        """`It is 1.21x (95% 1.12-1.31) as fast as`."""
        basis = f"Per answer, {subject[:1].lower()}{subject[1:]}" if self.by_answer else subject
        return f"{basis} is {told(self.ratio)} as fast as"


Faster = Callable[[str, str], Compared]
"""How much faster the first strategy is than the second, as measured: see `cascli.jobs.advise.Measured.faster`."""


def clearly(ratio: Ratio) -> bool:
    """Whether something is faster beyond doubt: its whole interval is above 1.

    A range of a few prompts is no interval: it must be above 1, and the ratio well above.
    """
    above = ratio.interval is None or ratio.interval[0] > 1
    return above and (ratio.interval_kind == "95%" or ratio.of_means > 1 + UNCLEAR)


def decide(confirmed: Sequence[Confirmed], faster: Faster) -> Confirmed:
    """What to use: the simplest one within the tolerance than which no other is clearly faster.

    Args:
        confirmed: the simplest first; the target is first of all.
        faster: compares two of them.
    """
    chosen = confirmed[0]
    for each in confirmed[1:]:
        faster_than_target = each.speed.of_means > chosen.speed.of_means  # may be by the answer where the other is not
        if each.within and faster_than_target and clearly(faster(each.strategy, chosen.strategy).ratio):
            chosen = each
    return chosen


class Levers(NamedTuple):
    """How the best block length and its gain follow from machine and acceptance: what levers turn."""

    gain: Callable[[Machine, float], tuple[int, float]]
    """The best k and its gain, with this machine, and this share of all rejections left."""
    oracle: float | None
    """The gain of drafting exactly what is kept."""


def levers(how: Levers, machine: Machine) -> list[Lever]:
    """What would change the gain of plain speculation, one thing at a time; first as it is."""
    changes = [
        ("as it is", machine, 1.0),
        ("half as many rejections (a draft model closer to the target)", machine, 0.5),
        (f"a draft step at half the cost (c {machine.c / 2:.2f})", _with(machine, c=machine.c / 2), 1.0),
        ("drafts at no cost (c 0)", _with(machine, c=0.0, draft_reading=0.0), 1.0),
        ("a check as cheap as a step (v 1)", _with(machine, v=[min(each, 1.0) for each in machine.v]), 1.0),
        ("no time outside the models", _with(machine, outside=0.0, outside_alone=0.0), 1.0),
    ]
    found = []
    for change, changed, left in changes:
        k, gain = how.gain(changed, left)
        found.append(Lever(change=change, k=k, gain=gain))
    if how.oracle is not None:
        found.append(Lever(change="drafting exactly what is kept (no stop achieves it)", k=None, gain=how.oracle))
    return found


def _with(machine: Machine, **changes: object) -> Machine:
    return machine.model_copy(update=changes)


def find(chosen: Confirmed, confirmed: Sequence[Confirmed], plain: str | None, faster: Faster) -> Finding:
    """What was decided, and in sentences why."""
    others = [each for each in confirmed if each.strategy != TARGET]
    said = []
    if chosen.strategy == TARGET:
        said.append(_nothing(others))
    elif plain is not None and chosen.strategy != plain:
        over = faster(chosen.strategy, plain)
        said.append(f"{over.said('It')} plain speculation ({plain}), which is simpler.")
    fastest = max(others, key=lambda each: each.speed.of_means, default=chosen)
    if fastest is not chosen and fastest.speed.of_means > chosen.speed.of_means and chosen.strategy != TARGET:
        said.append(_passed_over(fastest, chosen, faster))
    elif chosen.strategy == plain:
        ran, more = "Nothing that ran", "Nothing else within the tolerance is predicted to be"
        said.append(f"{ran if len(others) > 1 else more} {'is ' * (len(others) > 1)}faster than plain speculation.")
    said += [
        f"{each.strategy} was predicted at {each.predicted:.2f}x but measured at {told(each.speed)}: trust the latter."
        for each in others
        if each.surprise
    ]
    compared = plain is not None and chosen.strategy not in (TARGET, plain)
    said += filter(None, map(_of_length, others))
    return Finding(
        strategy=chosen.strategy,
        speed=None if chosen.strategy == TARGET else chosen.speed,
        over_plain=faster(chosen.strategy, plain).ratio if compared and plain is not None else None,
        sentences=said,
    )


def of_answers(rows: Sequence[Confirmed], tolerance: Tolerance) -> list[str]:
    """What limits advice by the answers that rest on it: cut ones, and scores that cannot show a loss."""
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
    return (row.share_cut or 0.0) > MOST_CUT


def _nothing(others: Sequence[Confirmed]) -> str:
    """Why the target stands."""
    allowed = [each for each in others if each.within]
    nearest = max(allowed, key=lambda each: each.speed.of_means, default=None)
    if nearest is None:
        return "Nothing is faster than target within the tolerance."
    if nearest.speed.of_means <= 1:
        return f"Nothing is faster than target: the best, {nearest.strategy}, is {told(nearest.speed)} as fast."
    return f"Nothing is clearly faster than target: the best, {nearest.strategy}, is {told(nearest.speed)} as fast."


def _passed_over(fastest: Confirmed, chosen: Confirmed, faster: Faster) -> str:
    """Why the fastest is not what is advised."""
    if fastest.refused is not None:
        return f"{fastest.strategy} is {told(fastest.speed)} as fast as target, but {fastest.refused}."
    over, length = faster(fastest.strategy, chosen.strategy), fastest.length
    if over.by_answer and not fastest.by_answer and length is not None:
        by_token = f"{fastest.strategy} is {told(fastest.speed)} as fast as target per token"
        longer = f"but its answers are {length.of_means:.2f}x as long"
        return f"{by_token}, {longer}: per answer it is {told(over.ratio)} as fast as {chosen.strategy}."
    return f"{over.said(fastest.strategy)} {chosen.strategy}, the recommended one: not clearly faster."


def _of_length(row: Confirmed) -> str | None:
    """What the lengths of a strategy's answers do to its speed."""
    if row.length is None or row.answers is None or row.lossless:
        return None
    if row.by_answer:
        length = f"its answers are {row.length.of_means:.2f}x as long as target's"
        return f"{row.strategy}: {length}, so its speed is per answer."
    if clearly(row.speed) and not clearly(row.answers):
        return f"{row.strategy}: its answers vary in length, and per answer it is {told(row.answers)} as fast."
    return None


def told(ratio: Ratio) -> str:
    """`1.21x (95% 1.12-1.31)`."""
    if ratio.interval is None:
        return f"{ratio.of_means:.2f}x (one prompt)"
    low, high = ratio.interval
    return f"{ratio.of_means:.2f}x ({kind_of(ratio.interval_kind)}{low:.2f}-{high:.2f})"


def kind_of(kind: IntervalKind | None) -> str:
    """What stands before the bounds of an interval."""
    return {"95%": "95% ", "range": "range over prompts ", "no scatter": "", None: ""}[kind]
