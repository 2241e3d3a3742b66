"""The exact joint law of the first m tokens: of a process of speculative rounds, and of a sequential cascade.

`tables(prefix)` gives the pair of distributions after a prefix of tokens; `rule(pair)` gives pi. Both laws
map a tuple of m tokens to its probability; tuples of probability 0 are left out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from tests.reference.distributions import Row
from tests.reference.verification import acceptance, residual

Tokens = tuple[int, ...]
Law = dict[Tokens, float]


class Pair(NamedTuple):
    """Both models' distributions of the next token: q and p warped, q1 and p1 before warping; each [V]."""

    q: Row
    p: Row
    q1: Row
    p1: Row


Tables = Callable[[Tokens], Pair]
Target = Callable[[Pair], Row]


def sequential_law(
    tables: Tables, rule: Target, length: int, prefix: Tokens = (), holds: Callable[[Tokens], bool] = lambda _: True
) -> Law:
    """The token cascade: the product of pi(x_i | x_<i) along the text, with pi = p where the rule does not hold."""
    if length == 0:
        return {(): 1.0}
    law: Law = {}
    there = tables(prefix)
    for token, prob in enumerate(rule(there) if holds(prefix) else there.p):
        if prob > 0:
            rest = sequential_law(tables, rule, length - 1, (*prefix, token), holds)
            law |= {(token, *tail): prob * weight for tail, weight in rest.items()}
    return law


def round_outcomes(
    tables: Tables, rule: Target, prefix: Tokens, k: int, bonus: Target | None = None
) -> Iterator[tuple[Tokens, float]]:
    """Every outcome of one round: (emitted tokens, probability), by enumerating drafts and tests.

    `bonus` replaces the distribution of the token after a fully accepted block, only to show that a wrong one
    is detected.
    """
    size = len(tables(prefix).q)
    for drafted in product(range(size), repeat=k):
        pairs = [tables(prefix + drafted[:i]) for i in range(k + 1)]
        pis = [rule(pair) for pair in pairs]
        chance = float(np.prod([pairs[i].q[x] for i, x in enumerate(drafted)]))  # of drafting this block
        if chance == 0:
            continue
        for i, x in enumerate(drafted):
            accept = acceptance(pis[i], pairs[i].q, x)
            for token, weight in enumerate(residual(pis[i], pairs[i].q)):
                yield (*drafted[:i], token), chance * (1 - accept) * weight
            chance *= accept
        for token, weight in enumerate((bonus or rule)(pairs[k])):
            yield (*drafted, token), chance * weight


def block_outcomes(tables: Tables, rule: Target, prefix: Tokens, k: int) -> Iterator[tuple[Tokens, float]]:
    """Every outcome of one round by block verification: loops over the definitions of Sun et al. 2024."""
    size = len(tables(prefix).q)
    for drafted in product(range(size), repeat=k):
        pairs = [tables(prefix + drafted[:i]) for i in range(k + 1)]
        pis = [rule(pair) for pair in pairs]
        chance = float(np.prod([pairs[i].q[x] for i, x in enumerate(drafted)]))
        if chance == 0:
            continue
        weights = prefix_weights([pi[x] / pair.q[x] for pi, pair, x in zip(pis, pairs, drafted, strict=False)])
        for kept in range(k, -1, -1):  # longest prefix first; `chance` is what remains after the longer ones
            law = pis[k]
            passes = weights[k]
            if kept < k:
                excess = [max(0.0, weights[kept] * a - b) for a, b in zip(pis[kept], pairs[kept].q, strict=True)]
                lacking = sum(excess) + 1 - weights[kept]
                passes = sum(excess) / lacking if lacking > 0 and kept > 0 else 1.0
                law = np.array(excess) / sum(excess) if sum(excess) > 0 else pis[kept]
            for token, weight in enumerate(law):
                yield (*drafted[:kept], token), chance * passes * weight
            chance *= 1 - passes


def prefix_weights(ratios: list[float]) -> list[float]:
    """p_0 to p_k from the ratios pi / q of k drafted tokens."""
    weights = [1.0]
    for ratio in ratios:
        weights.append(min(1.0, weights[-1] * ratio))
    return weights


def speculative_law(
    tables: Tables,
    rule: Target,
    length: int,
    k: int,
    prefix: Tokens = (),
    stop_at_length: bool = False,
    bonus: Target | None = None,
) -> Law:
    """The first `length` tokens of rounds of k drafted tokens each, across round borders.

    stop_at_length: the text ends there, so a round drafts min(k, remaining - 1) tokens; otherwise the text
    continues, and what a round emits beyond the length is summed out.
    """
    if length == 0:
        return {(): 1.0}
    drafted = min(k, length - 1) if stop_at_length else k
    emissions: Law = defaultdict(float)
    for emitted, weight in round_outcomes(tables, rule, prefix, drafted, bonus):
        if weight > 0:
            emissions[emitted[:length]] += weight
    law: Law = defaultdict(float)
    for emitted, weight in emissions.items():
        left = length - len(emitted)
        tails = speculative_law(tables, rule, left, k, prefix + emitted, stop_at_length, bonus)
        for tail, more in tails.items():
            law[emitted + tail] += weight * more
    return dict(law)


Plan = Callable[[Tokens], Tokens]
"""The continuation of a text that a deterministic drafter proposes, as far as it can."""


def planned_law(
    tables: Tables, rule: Target, length: int, k: int, plan: Plan, exact: bool = False, prefix: Tokens = ()
) -> Law:
    """The law of `length` tokens written by rounds of at most k drafts that are planned when the round begins.

    A planned position has the one-hot q of its token; at any other position the token is drawn from the target's p.
    `exact`: the rule does not read q, so the plan for the position after the drafts is not used.
    """
    if length == 0:
        return {(): 1.0}
    n = min(k, length - 1)
    planned = plan(prefix)[: n if exact else n + 1]
    law: Law = defaultdict(float)

    def follow(depth: int, chance: float) -> None:
        text = (*prefix, *planned[:depth])
        there = tables(text)
        q = np.eye(len(there.p))[planned[depth]] if depth < len(planned) else None
        pi = there.p if q is None else rule(Pair(q, there.p, q, there.p1))
        drafted = depth < min(n, len(planned))
        accept = min(1.0, pi[planned[depth]]) if drafted else 0.0
        if drafted and accept > 0:
            follow(depth + 1, chance * accept)
        if accept < 1:
            others = np.maximum(pi - q, 0.0) / np.maximum(pi - q, 0.0).sum() if drafted else pi
            for token, weight in enumerate(others):
                if weight > 0:
                    emitted = (*planned[:depth], token)
                    rest = planned_law(tables, rule, length - len(emitted), k, plan, exact, (*prefix, *emitted))
                    for tail, more in rest.items():
                        law[(*emitted, *tail)] += chance * (1 - accept) * weight * more

    follow(0, 1.0)
    return dict(law)


def distance(a: Law, b: Law) -> float:
    """The largest difference between two laws over all texts."""
    return max(abs(a.get(text, 0.0) - b.get(text, 0.0)) for text in a.keys() | b.keys())
