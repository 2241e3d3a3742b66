"""Does what decides a round on this device decide as the plain mathematics does? By comparison, number by number.

Joint laws are sampled over two or three tokens, so that rounds of three drafts and more are met there by none of them.
Here are rounds of every length up to eight, with the run's own random numbers as they lie on the device. The target is
drawn towards the draft until the two agree half-way: a pair that rejects every first draft tests no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from cascli.audit.joint import rule_of
from cascli.audit.report import Check, check_of
from cascli.audit.tables import Tree, path_of
from cascli.decoding.speculation import decide_round, plain_round
from cascli.kernels.layout import RoundFacts
from cascli.models.pair import Pair
from cascli.rules.base import Rule
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import Uniforms
from cascli.strategies import Strategy
from cascli.trace import by_block

LONGEST = 8
SEEDS = 10
BOUND = 0.02
"""Share of the rounds that may differ: a number at the very edge of a token or a test falls to either side."""
SAMPLING = Sampling(1.0)
HALF_WAY = 0.35
"""Largest mean TV(p, q) of the rounds, about the share of drafts that are rejected."""


@torch.inference_mode()
def rounds(pair: Pair, tree: Tree, strategies: Sequence[Strategy]) -> Iterator[Check]:
    """One check for each strategy that speculates."""
    tree = drawn_together(tree)
    for strategy in strategies:
        rule = rule_of(strategy)
        if rule is None or not has_rounds(strategy):
            continue
        blocks = by_block(strategy.params)
        different = [_differs(pair, tree, rule, blocks, n, seed) for n in range(LONGEST + 1) for seed in range(SEEDS)]
        detail = f"{len(different)} rounds of up to {LONGEST}; {path_of(pair, tree)}"
        yield check_of("round", strategy.spec, sum(different) / len(different), BOUND, 0.0, detail)


def has_rounds(strategy: Strategy) -> bool:
    """Whether a strategy speculates."""
    return rule_of(strategy) is not None and "k" in strategy.params


def drawn_together(tree: Tree) -> Tree:
    """The tree with the target's logits as far on the way from the draft's as leaves most drafts accepted."""
    draft, target = (torch.stack([table[text] for text in tree.target]) for table in (tree.draft, tree.target))
    share = 1.0
    while (
        float(
            distributions.total_variation(
                distributions.base(_between(draft, target, share)), distributions.base(draft)
            ).mean()
        )
        > HALF_WAY
    ):
        share /= 1.5
    rows = _between(draft, target, share).to(tree.dtype).double()
    return replace(tree, target=dict(zip(tree.target, rows, strict=True)))


def _between(draft: Tensor, target: Tensor, share: float) -> Tensor:
    return draft + share * (target - draft)


def _differs(pair: Pair, tree: Tree, rule: Rule, blocks: bool, n: int, seed: int) -> bool:
    """Whether the device keeps other drafts of a round, or writes another token after them, than the plain path."""
    texts = list(tree.target)
    rows = [texts[(seed + i) % len(texts)] for i in range(n + 1)]
    draft, target = (torch.stack([table[row] for row in rows]).to(tree.dtype) for table in (tree.draft, tree.target))
    known, uniforms = n + rule.reads_draft, Uniforms(seed, LONGEST + 2, pair.device)
    u = uniforms.draw(0, n), uniforms.accept(0, n), torch.cat([uniforms.residual(0, n), uniforms.draw(n, 1)])
    sampler = Sampler(SAMPLING, rule.reads_base)
    holds = [(torch.arange(n + 1) + seed) % 3 > 0] if rule.thinking_only else []

    def given(draft: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        q, q1 = (each[:known] for each in sampler(draft))
        return (
            target,
            distributions.sample(q[:n], u[0].to(q.device)),
            q,
            q1,
            *(each.to(q.device) for each in (*u[1:], *holds)),
        )

    here = given(draft.to(pair.device), target.to(pair.device))
    decide = partial(decide_round, rule, SAMPLING, by_block=blocks)
    numbers = pair.graphs.run(("round", rule, blocks), decide, *here) if rule.capturable else decide(*here)
    ours = RoundFacts.of(numbers.flatten().tolist())
    plain = plain_round(rule, SAMPLING, *given(draft.double(), target.double()), by_block=blocks)
    theirs = RoundFacts.of(plain.flatten().tolist())
    return (ours.num_accepted, ours.next_id) != (theirs.num_accepted, theirs.next_id)
