"""Closed forms of speculation's speed. No torch.

a is the probability that a drafted token passes its test, c the time of a draft step over a target step, v the
time of a target call over a whole block over a target step (Leviathan et al. 2023, theorem 3.8, with v = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

LONGEST_BLOCK = 32


def expected_tokens(a: float, k: int) -> float:
    """Tokens per round, the residual or bonus token included: (1 - a^(k+1)) / (1 - a)."""
    return float(k + 1) if a >= 1 else (1 - a ** (k + 1)) / (1 - a)


def expected_cost(
    n: int, drafts: Callable[[int], Sequence[float]], cost: Callable[[int], float], behind: float = 0.0
) -> float:
    """What an answer of n tokens is expected to cost in rounds, where it is known with which chance drafts pass.

    A round at token t keeps j drafts if the first j pass and the next one does not, and goes on at t + j + 1.

    Args:
        n: tokens.
        drafts: of a round that begins at a token, for each drafted token the probability that it passes if those before
            it have; of at most n - 1 - t tokens.
        cost: of a round by the tokens that it drafts.
        behind: what a round costs besides if all of its drafts pass.
    """
    ahead = [0.0] * (n + 1)
    """From token t to the end."""
    for t in reversed(range(n)):
        chances = drafts(t)
        reached, total = 1.0, cost(len(chances))
        for j, a in enumerate(chances):
            total += reached * (1 - a) * ahead[t + j + 1]
            reached *= a
        ahead[t] = total + reached * (behind + ahead[t + len(chances) + 1])
    return ahead[0]


def least_cost(
    n: int, drafts: Callable[[int], Sequence[float]], cost: Callable[[int], float], longest: int | None = None
) -> float:
    """As `expected_cost`, had every round known how many of its drafts pass, and drafted as many as pays.

    That is more than pass where a call over a longer block is cheaper. `longest` is the most that a round may draft, by
    default the most that any does.
    """
    ahead = [0.0] * (n + 1)
    least_of = _or_longer(cost, max(len(drafts(t)) for t in range(n)) if longest is None else longest)
    for t in reversed(range(n)):
        reached, total, least = 1.0, 0.0, least_of(0) + ahead[t + 1]
        for j, a in enumerate(drafts(t), 1):
            total += reached * (1 - a) * least
            reached *= a
            least = min(least, least_of(j) + ahead[t + j + 1])
        ahead[t] = total + reached * least
    return ahead[0]


def expected_rounds(acceptance: Sequence[float], k: int) -> float:
    """Rounds of up to k drafts that an answer takes, the acceptance at each of its tokens being known.

    One mean acceptance for all tokens would come to more: drafts that pass come in rows.
    """
    n = len(acceptance)
    return expected_cost(n, lambda t: acceptance[t : t + min(k, n - 1 - t)], lambda _: 1.0)


def overshoot(a: float, k: int) -> float:
    """Tokens that the last round of an answer brings beyond its end, on average: (E[T^2] / E[T] - 1) / 2.

    T is the number of tokens of a round. An answer ends inside a round like a bus passenger arrives between buses:
    long rounds are met more often (renewal theory). Short answers lose a noticeable part of the gain to it.
    """
    second = sum(t * t * a ** (t - 1) * (1 - a) for t in range(1, k + 1)) + (k + 1) ** 2 * a**k
    return (second / expected_tokens(a, k) - 1) / 2


def tokens_per_round(a: float, k: int, answer: float = math.inf) -> float:
    """Tokens that are used of a round, over an answer of so many tokens."""
    mean = expected_tokens(a, k)
    return mean if math.isinf(answer) else mean * answer / (answer + overshoot(a, k))


def speed_up(a: float, k: int, c: float, v: float = 1.0) -> float:
    """Speed relative to the target alone: tokens per round over the round's cost in target steps."""
    return expected_tokens(a, k) / (c * k + v)


def best_k(a: float, c: float, v: Callable[[int], float] = lambda _: 1.0, longest: int = LONGEST_BLOCK) -> int:
    """The block length up to `longest` of the greatest speed-up; the smaller one of equals."""
    return max(range(1, longest + 1), key=lambda k: (speed_up(a, k, c, v(k)), -k))


def gain_of_drafting_on(reach: float, first: float, later: float, rate: float, costs: Sequence[float]) -> float:
    """The largest expected gain, in tokens, of drafting 1, 2 .. or all of m tokens more in a round; below 0 if none.

    With fixed chances it is positive as long as a block is shorter than that of the greatest speed-up, if `rate` is
    that speed-up: a block gains by tokens that bring more for their cost than rounds do on average.

    Args:
        reach: the probability that all tokens drafted so far pass.
        first: that the next one passes, if they do.
        later: the same of every one after it.
        rate: tokens that a step of the target is worth: those that text advances by in its time.
        costs: `[m]`, what 1 .. m tokens more add to the round, in steps of the target.
    """
    gains, brought, chance = [], 0.0, reach * first
    for cost in costs:
        brought, chance = brought + chance, chance * later
        gains.append(brought - rate * cost)
    return max(gains, default=-math.inf)


def _or_longer(cost: Callable[[int], float], longest: int) -> Callable[[int], float]:
    """The cost of the cheapest block of so many drafts or more: what is drafted beyond them is thrown away."""
    cheapest = list(accumulate((cost(j) for j in range(longest, -1, -1)), min))[::-1]
    return lambda j: cheapest[j] if j <= longest else cost(j)


def oracle_cost(kept: int, cost: Callable[[int], float], longest: int = 0) -> float:
    """The least that kept + 1 tokens can cost, in rounds, where it is known that so many drafts pass and no more.

    A round that drafts j of them brings j + 1 tokens; what is left of them is drafted in further rounds, if a shorter
    block is so much cheaper, and more are drafted than pass, up to `longest`, if a longer one is cheaper. `cost` is
    that of a round by the tokens that it drafts.
    """
    cost = _or_longer(cost, max(longest, kept))
    least = [0.0] * (kept + 2)
    """By how many tokens are still to be written."""
    for tokens in range(1, kept + 2):
        least[tokens] = min(cost(j) + least[tokens - 1 - j] for j in range(tokens))
    return least[-1]


def acceptance_for(tokens: float, of: Callable[[float], float]) -> float | None:
    """The acceptance from which rounds bring so many tokens, by a function that rises with it; None if not even 1."""
    if of(1.0) < tokens:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if of(middle) >= tokens else (middle, high)
    return high
