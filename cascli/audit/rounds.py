"""Does what decides a round on this device decide as its definition does? By comparison, number by number.

Joint laws are sampled over two or three tokens, so that rounds of three drafts and more are met there by none of them.
Here are rounds of every length up to eight, with the run's own random numbers as they lie on the device, over the few
tokens of a tree and over the whole vocabulary; every other one is truncated. The target is drawn towards the draft
until the two agree half-way: a pair that rejects every first draft tests no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.audit import by_definition
from cascli.audit.joint import rule_of
from cascli.audit.report import Check, check_of
from cascli.audit.tables import Tree, path_of
from cascli.decoding.speculation import decide_round
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
OF_WHOLE_ROWS = [(n, seed) for n in (0, 4) for seed in range(2)]
"""Lengths and seeds of rounds over the whole vocabulary."""
BOUND = 0.02
"""Share of the rounds that may differ: a number at the very edge of a token or a test falls to either side."""
SAMPLINGS = (Sampling(1.0), Sampling(0.9, top_k=12, top_p=0.9))
HALF_WAY = 0.35
"""Largest mean TV(p, q) of the rounds, about the share of drafts that are rejected."""


class Rows(NamedTuple):
    """Logits of both models at some positions, `[m, V]`, in float64 on the CPU."""

    draft: Tensor
    target: Tensor


@torch.inference_mode()
def rounds(pair: Pair, tree: Tree, strategies: Sequence[Strategy]) -> Iterator[Check]:
    """One check for each strategy that speculates."""
    few, whole = drawn_together(of_tree(tree), tree.dtype), drawn_together(of_vocabulary(pair), tree.dtype)
    cases = [(few, n, seed) for n in range(LONGEST + 1) for seed in range(SEEDS)]
    cases += [(whole, n, seed) for n, seed in OF_WHOLE_ROWS]
    for strategy in strategies:
        rule = rule_of(strategy)
        if rule is None or not has_rounds(strategy):
            continue
        blocks = by_block(strategy.params)
        different = [_differs(pair, rows, tree.dtype, rule, blocks, n, seed) for rows, n, seed in cases]
        detail = f"{len(different)} rounds of up to {LONGEST}; {path_of(pair, tree)}"
        yield check_of("round", strategy.spec, sum(different) / len(different), BOUND, 0.0, detail)


def of_tree(tree: Tree) -> Rows:
    """After every text of a tree."""
    return Rows(*(torch.stack([table[text] for text in tree.target]) for table in (tree.draft, tree.target)))


def of_vocabulary(pair: Pair) -> Rows:
    """After each token of some text, over all tokens; where there is no draft model, as in a tree."""
    text = torch.arange(LONGEST, device=pair.device) * 7 % pair.vocab
    found = {}
    for role, model in pair.models.items():
        here = text.to(model.device)
        start = model.runner.begin(here[:1])
        found[role] = model.runner.forward(torch.cat([start, here[1:]]), LONGEST).double().cpu()
        model.runner.reset()
    return Rows(found.get("draft", found["target"].roll(1, dims=-1)), found["target"])


def has_rounds(strategy: Strategy) -> bool:
    """Whether a strategy speculates."""
    return rule_of(strategy) is not None and "k" in strategy.params


def drawn_together(rows: Rows, dtype: torch.dtype) -> Rows:
    """The target's logits as far on the way from the draft's as leaves most drafts accepted, in a precision."""
    draft, target = rows
    share, q = 1.0, distributions.base(draft)
    while float(distributions.total_variation(distributions.base(_between(*rows, share)), q).mean()) > HALF_WAY:
        share /= 1.5
    return Rows(draft, _between(draft, target, share).to(dtype).double())


def _between(draft: Tensor, target: Tensor, share: float) -> Tensor:
    """A share of the way to the target; on that to what a cut head has no row for, which is infinite, it falls off."""
    return (draft + share * (target - draft)).where(draft.isfinite(), target + 1 - 1 / share)


def _differs(pair: Pair, rows: Rows, dtype: torch.dtype, rule: Rule, blocks: bool, n: int, seed: int) -> bool:
    """Whether the device keeps other drafts of a round, or writes another token after them, than its definition."""
    sampling = SAMPLINGS[seed % len(SAMPLINGS)]
    places = (torch.arange(n + 1) + seed) % len(rows.target)
    draft, target = (each[places].to(dtype) for each in rows)
    known, uniforms = n + rule.reads_draft, Uniforms(seed, LONGEST + 2, pair.device)
    u = uniforms.draw(0, n), uniforms.accept(0, n), torch.cat([uniforms.residual(0, n), uniforms.draw(n, 1)])
    holds = [(torch.arange(n + 1) + seed) % 3 > 0] if rule.thinking_only else []
    q, q1 = (each[:known] for each in Sampler(sampling, rule.reads_base)(draft.to(pair.device)))
    drafted = distributions.sample(q[:n], u[0].to(q.device))
    here = (target.to(pair.device), drafted, q, q1, *(each.to(q.device) for each in (*u[1:], *holds)))
    decide, key = partial(decide_round, rule, sampling, by_block=blocks), ("round", rule, sampling, blocks)
    if rule.capturable and n % 2 == 0:  # the others go as the shorter rounds at an answer's end do
        pair.graphs.capture(key, decide, *here)
    ours = RoundFacts.of(pair.graphs.run(key, decide, *here).flatten().tolist())
    theirs = by_definition.decided(
        rule,
        sampling,
        draft.double().numpy(),
        target.double().numpy(),
        by_definition.Numbers(*(each.double().cpu().numpy() for each in u)),
        holds=holds[0].numpy() if holds else None,
        by_block=blocks,
    )
    return (ours.num_accepted, ours.next_id) != theirs
