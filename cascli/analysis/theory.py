"""Closed forms of speculation's speed. No torch.

a is the probability that a drafted token passes its test; c is the time of a draft step and v that of a target call
over a whole block, both in target steps (Leviathan et al. 2023, theorem 3.8, with v = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

LONGEST_BLOCK = 32


def expected_tokens(a: float, k: int) -> float:
    """Return the tokens per round, including the residual or bonus token: (1 - a^(k+1)) / (1 - a)."""
    return float(k + 1) if a >= 1 else (1 - a ** (k + 1)) / (1 - a)


def expected_cost(
    n: int, drafts: Callable[[int], Sequence[float]], cost: Callable[[int], float], behind: float = 0.0
) -> float:
    """Return the expected cost in rounds of an answer of n tokens, given the probabilities that drafts pass.

    A round at token t keeps j drafts if the first j pass and the next one does not; the next round is at t + j + 1.

    Args:
        n: number of tokens.
        drafts: for a round that starts at token t, the probability of each drafted token to pass if those before it
            have; 0 for the last token of the answer and those after it, if any are drafted.
        cost: cost of a round by the number of tokens that it drafts.
        behind: additional cost of a round if all of its drafts pass.
    """
    ahead = [0.0] * (n + 1)
    """Cost from token t to the end."""
    for t in reversed(range(n)):
        chances = drafts(t)
        reached, total = 1.0, cost(len(chances))
        for j, a in enumerate(chances):
            total += reached * (1 - a) * ahead[min(t + j + 1, n)]
            reached *= a
        ahead[t] = total + reached * (behind + ahead[min(t + len(chances) + 1, n)])
    return ahead[0]


def least_cost(
    n: int, drafts: Callable[[int], Sequence[float]], cost: Callable[[int], float], longest: int | None = None
) -> float:
    """Return what `expected_cost` would be if every round knew how many of its drafts pass, and drafted what pays.

    That can be more than the drafts that pass, if a call over a longer block is cheaper. `longest` is the most that a
    round may draft, by default the most that any round does.
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
    """Return the expected number of rounds of up to k drafts for an answer, given the acceptance at each token.

    A single mean acceptance would give a larger number, since passing drafts come in streaks.
    """
    n = len(acceptance)
    return expected_cost(n, lambda t: acceptance[t : t + min(k, n - 1 - t)], lambda _: 1.0)


def starts(a: float, k: int, n: int) -> list[float]:
    """Return the probability that a round starts at each of an answer's n tokens, for rounds of k drafts.

    Whether the last rounds draft k tokens or only those that still fit makes no difference to where rounds start.
    """
    chances: list[float] = []
    tested = 0.0
    """Probability that a draft is tested at token t - 1, just before t."""
    for t in range(n):
        after_whole_block = a**k * chances[t - k - 1] if t > k else 0.0
        chances.append((1 - a) * tested + after_whole_block if t else 1.0)
        tested = a * tested + chances[t] - (a**k * chances[t - k] if t >= k else 0.0)
    return chances


def speed_up(a: float, k: int, c: float, v: float = 1.0) -> float:
    """Return the speed relative to the target alone: tokens per round over the round's cost in target steps."""
    return expected_tokens(a, k) / (c * k + v)


def best_k(a: float, c: float, v: Callable[[int], float] = lambda _: 1.0, longest: int = LONGEST_BLOCK) -> int:
    """Return the block length up to `longest` with the greatest speed-up; ties go to the smaller one."""
    return max(range(1, longest + 1), key=lambda k: (speed_up(a, k, c, v(k)), -k))


def gain_of_drafting_on(reach: float, first: float, later: float, rate: float, costs: Sequence[float]) -> float:
    """Return the largest expected gain, in tokens, of drafting 1, 2, ... or m more tokens in a round; below 0 if none.

    With constant probabilities, and the greatest speed-up as `rate`, it is positive as long as the block is shorter
    than the one with that speed-up: a longer block gains if its extra tokens yield more for their cost than rounds do
    on average.

    Args:
        reach: probability that all tokens drafted so far pass.
        first: probability that the next token passes if they do.
        later: probability that each further token passes if those before it do.
        rate: tokens that a target step is worth, which is how far the text advances in its time.
        costs: `[m]`, what 1 .. m more tokens add to the round's cost, in target steps.
    """
    gains, brought, chance = [], 0.0, reach * first
    for cost in costs:
        brought, chance = brought + chance, chance * later
        gains.append(brought - rate * cost)
    return max(gains, default=-math.inf)


def _or_longer(cost: Callable[[int], float], longest: int) -> Callable[[int], float]:
    """Return the cost of the cheapest block of at least a given number of drafts; extra drafts are discarded."""
    cheapest = list(accumulate((cost(j) for j in range(longest, -1, -1)), min))[::-1]
    return lambda j: cheapest[j] if j <= longest else cost(j)


def oracle_cost(kept: int, cost: Callable[[int], float], longest: int = 0) -> float:
    """Return the least cost in rounds of kept + 1 tokens, if it is known that exactly `kept` drafts pass.

    A round that drafts j of them yields j + 1 tokens. The rest is drafted in further rounds if shorter blocks are that
    much cheaper; more drafts are made than pass, up to `longest`, if a longer block is cheaper. `cost` is the cost of a
    round by the number of tokens that it drafts.
    """
    cost = _or_longer(cost, max(longest, kept))
    least = [0.0] * (kept + 2)
    """Least cost by the number of tokens that remain to be written."""
    for tokens in range(1, kept + 2):
        least[tokens] = min(cost(j) + least[tokens - 1 - j] for j in range(tokens))
    return least[-1]


def acceptance_for(tokens: float, tokens_at: Callable[[float], float]) -> float | None:
    """Return the least acceptance at which the increasing function `tokens_at` reaches `tokens`; None if 1 does not."""
    if tokens_at(1.0) < tokens:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if tokens_at(middle) >= tokens else (middle, high)
    return high
