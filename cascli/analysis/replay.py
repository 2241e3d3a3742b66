"""How long recorded answers would have taken if other drafts had been made along them. No torch.

An answer that follows the target's distribution would have come out alike whatever was drafted; what differs is how
many rounds it takes. The chance with which a draft passes at each of its tokens, and what rounds cost on this machine,
say how long.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

from cascli.analysis import theory
from cascli.analysis.answer_costs import Ratio, paired
from cascli.trace import Data

TRIALS = 8
"""Of an answer's tests, where a stop goes by how they end and they are not certain."""
Cost = Callable[[int], float]
"""Of a round by the tokens that it drafts, in steps of the target."""
Drafts = Callable[[int], Sequence[float]]
"""Of a round that begins at a token of an answer: for each drafted token the probability that it passes."""


class Machine(Data):
    """What rounds cost here, measured; all but the first in steps of the target over one token."""

    step_seconds: float
    """A step of the target."""
    c: float
    """A step of the draft model; 0 without one."""
    v: list[float]
    """A call of the target over 1, 2, .. tokens."""
    outside: float
    """Time outside the models of a round that drafts."""
    outside_alone: float
    """Likewise of a step of the target alone."""
    draft_reading: float
    """What the draft model takes to read a prompt, over what the target takes."""

    @property
    def longest(self) -> int:
        """The most drafted tokens whose check was timed."""
        return len(self.v) - 1

    @property
    def alone(self) -> float:
        """A token of the target alone."""
        return 1 + self.outside_alone

    def round(self, drafted: int, *, steps: float, extra: float = 0.0) -> float:
        """A round that drafts so many tokens in `steps` steps of the draft model; `extra` is time of its own."""
        return self.c * steps + self.v[drafted] + self.outside + extra


class Recorded(NamedTuple):
    """An answer as it was recorded."""

    prompt: Hashable
    """To which prompt it is; turns of a conversation share it."""
    tokens: int
    reading: float
    """What the target took to read what stands before it, in steps."""


class Deciding(Protocol):
    """What ends drafts: see `cascli.stops.base.Stopping`."""

    @property
    def reads(self) -> str | None:
        """What it goes by at each position."""

    def most(self, n: int) -> int:
        """How many tokens of at most n the next round may draft."""

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Whether the draft model makes another step."""

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Whether a token is drawn where this was read."""

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        """What a round has come to."""


class Replayed(NamedTuple):
    """What the recorded answers come to."""

    speed: Ratio
    """Time of the target alone over that of the strategy, whole answers, over prompts."""
    tokens_per_round: float


def replayed(
    answers: Sequence[Recorded],
    machine: Machine,
    costs: Sequence[float],
    rounds: Sequence[float],
    *,
    reads_draft: bool,
) -> Replayed:
    """The speed of a strategy over the target alone, reading prompts included.

    Args:
        answers: as recorded.
        machine: what steps cost.
        costs: of each answer's rounds, in steps.
        rounds: how many each takes.
        reads_draft: whether the draft model reads the prompt too.
    """
    spent: dict[Hashable, tuple[float, float]] = {}
    for answer, cost in zip(answers, costs, strict=True):
        alone, ours = spent.get(answer.prompt, (0.0, 0.0))
        reading = answer.reading * (1 + machine.draft_reading * reads_draft)
        spent[answer.prompt] = (alone + answer.reading + answer.tokens * machine.alone, ours + reading + cost)
    speed = paired([[each] for each in spent.values()])
    return Replayed(speed, sum(answer.tokens for answer in answers) / sum(rounds))


def along(chances: Sequence[float], k: int) -> Drafts:
    """Rounds of k tokens, drafted with these chances at an answer's tokens; fewer at its end."""
    n = len(chances)
    return lambda t: chances[t : t + min(k, n - 1 - t)]


def fixed_cost(machine: Machine, *, reads_last: bool = False, extra: Cost | None = None, model: bool = True) -> Cost:
    """A round's cost where nothing but its length decides: one draft step a token, and one more if q is read after."""
    return lambda j: machine.round(
        j, steps=(j + reads_last) if model else 0.0, extra=0.0 if extra is None else extra(j)
    )


def with_stop(
    chances: Sequence[float],
    readings: Sequence[float],
    begin: Callable[[], Deciding],
    most: int,
    machine: Machine,
    toss: Callable[[], float],
) -> tuple[float, float]:
    """Cost and number of the rounds of an answer whose drafts a stop ends.

    Behind a rejected draft the draft model would have read its own text; the true one's numbers stand in.

    Args:
        chances: with which a draft passes, at each token.
        readings: what the stop goes by there.
        begin: makes what decides of one answer.
        most: tokens of a round, at most.
        machine: what steps cost.
        toss: uniforms, those of all answers one after the other: of the same ones for each the errors would add up.

    Returns:
        Means over trials, of which there is one where all chances are 0 or 1.
    """
    certain = all(each in (0.0, 1.0) for each in chances)
    trials = [_trial(chances, readings, begin(), most, machine, toss) for _ in range(1 if certain else TRIALS)]
    return tuple(sum(each) / len(trials) for each in zip(*trials, strict=True))


def _trial(
    chances: Sequence[float],
    readings: Sequence[float],
    stop: Deciding,
    most: int,
    machine: Machine,
    toss: Callable[[], float],
) -> tuple[float, int]:
    place = rounds = 0
    cost = 0.0
    while place < len(chances):
        drafted, steps, seen = _drafted(readings, place, stop, stop.most(min(most, len(chances) - 1 - place)))
        kept = 0
        while kept < drafted and toss() < chances[place + kept]:
            kept += 1
        stop.learn(seen[: kept + 1], kept, rejected=kept < drafted)
        cost += machine.round(drafted, steps=steps)
        place, rounds = place + kept + 1, rounds + 1
    return cost, rounds


def _drafted(readings: Sequence[float], place: int, stop: Deciding, most: int) -> tuple[int, int, list[float]]:
    """Tokens that a round drafts, steps that it takes for them, and what its stop has read: as `by_steps` has it."""
    seen: list[float] = []
    if stop.reads is None:
        return most, most, seen
    for drafted in range(most):
        if not stop.before_step(seen):
            return drafted, drafted, seen
        here, before = readings[place + drafted], list(seen)
        seen.append(here)
        if stop.reads != "chance" and not stop.before_draw(before, here):
            return drafted, drafted + 1, seen
    return most, most, seen


def lookup_drafts(copies: Sequence[Sequence[int]], text: Sequence[int], k: int) -> Drafts:
    """Rounds that copy: what would be copied at each token of an answer, and whether it is what was written there."""
    n = len(text)

    def drafts(t: int) -> list[float]:
        return [float(ours == theirs) for ours, theirs in zip(copies[t][: min(k, n - 1 - t)], text[t:], strict=False)]

    return drafts


def best_length(speed: Callable[[int], float], longest: int, start: int = 1) -> int:
    """The block length of the greatest speed near `start`, going up or down while it grows; the smaller of equals."""
    known: dict[int, float] = {}

    def at(k: int) -> float:
        if k not in known:
            known[k] = speed(k)
        return known[k]

    k = min(max(start, 1), longest)
    while k > 1 and at(k - 1) >= at(k):
        k -= 1
    while k < longest and at(k + 1) > at(k):
        k += 1
    return k


def oracle(
    answers: Sequence[Recorded], machine: Machine, chances: Sequence[Sequence[float]], *, model: bool = True
) -> float:
    """The speed of rounds that know how many tokens pass, and draft what pays: no way to choose lengths is faster."""
    cost = fixed_cost(machine, model=model)
    longest = machine.longest
    least = [theory.least_cost(len(each), along(each, longest), cost, longest) for each in chances]
    return replayed(answers, machine, least, [1.0] * len(least), reads_draft=model).speed.of_means
