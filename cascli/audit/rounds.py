"""Does the code that decides a round on this device agree with the definition? Compared given the same random numbers.

Joint laws are sampled over two or three tokens, so they never cover rounds of three or more drafts. This check covers
rounds of every length up to eight, with the run's own random numbers as stored on the device, over the few tokens of a
tree and over the whole vocabulary; every other round is truncated. The target is moved towards the draft until the two
agree half-way: a pair that rejects every first draft tests no other. Further rounds have small numbers for their tests,
so that long blocks are kept whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.audit import by_definition
from cascli.audit.joint import rule_of
from cascli.audit.report import Check, check_of, failed
from cascli.audit.tables import Tree, path_of
from cascli.decoding.speculation import decide_round
from cascli.errors import RunError
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
WHOLE_VOCABULARY_ROUNDS = [(n, seed) for n in (0, 4) for seed in range(2)]
"""Lengths and seeds of rounds over the whole vocabulary."""
LONG_ROUNDS = [(n, SEEDS + 2 * seed) for n in range(5, LONGEST + 1) for seed in range(8)]
"""Lengths and seeds of rounds whose drafts are all kept: a token after eight kept drafts is rare otherwise.

Even seeds, which are not truncated: what the target's truncation leaves out is never kept.
"""
SMALL = 0.001
"""What the numbers of such rounds' tests are scaled by."""
BOUND = 0.01
"""Share of the rounds that may differ, one in all: a number at the very edge of a token or a test can fall on either
side, which happens to one in thousands."""
SAMPLINGS = (Sampling(1.0), Sampling(0.9, top_k=12, top_p=0.9))
BANNED = 1e4
"""Distance from the best logit beyond which a target never writes a token: it has masked it."""
LEAST_SHARE = 1e-6
HALF_WAY = 0.35
"""Largest mean TV(p, q) over the rounds, which is about the share of drafts rejected."""


class Rows(NamedTuple):
    """Logits of both models at some positions, `[m, V]`, in float64 on the CPU."""

    draft: Tensor
    target: Tensor


@torch.inference_mode()
def rounds(pair: Pair, tree: Tree, strategies: Sequence[Strategy]) -> Iterator[Check]:
    """One check for each strategy that speculates."""
    few, whole = drawn_together(of_tree(tree), tree.dtype), drawn_together(of_vocabulary(pair), tree.dtype)
    cases = [(few, n, seed, 1.0) for n in range(LONGEST + 1) for seed in range(SEEDS)]
    cases += [(few, n, seed, SMALL) for n, seed in LONG_ROUNDS]
    cases += [(whole, n, seed, 1.0) for n, seed in WHOLE_VOCABULARY_ROUNDS]
    for strategy in strategies:
        rule = rule_of(strategy)
        if rule is None or not has_rounds(strategy):
            continue
        blocks = by_block(strategy.params)
        try:
            decided = [_decided(pair, tree.dtype, rule, blocks, *case) for case in cases]
        except RunError as problem:  # of a third-party rule
            yield failed("round", strategy.spec, str(problem))
            continue
        different = sum(ours != theirs for ours, theirs in decided)
        outcomes = {(n, *theirs) for (_, theirs), (_, n, *_) in zip(decided, cases, strict=True)}
        whole_blocks = sum(n == theirs.kept == LONGEST for (_, theirs), (_, n, *_) in zip(decided, cases, strict=True))
        detail = (
            f"{len(cases)} rounds of up to {LONGEST}, {len(outcomes)} outcomes, all {LONGEST} kept in {whole_blocks}"
        )
        detail += f"; {path_of(pair, tree)}"
        yield check_of("round", strategy.spec, different / len(cases), BOUND, 0.0, detail)


def of_tree(tree: Tree) -> Rows:
    """Logits after every text of a tree."""
    return Rows(*(torch.stack([table[text] for text in tree.target]) for table in (tree.draft, tree.target)))


def of_vocabulary(pair: Pair) -> Rows:
    """Logits after each token of some text, over all tokens; without a draft model, shifted ones as in a tree."""
    text = torch.arange(LONGEST, device=pair.device) * 7 % pair.vocab
    logits = {}
    for role, model in pair.models.items():
        tokens = text.to(model.device)
        start = model.runner.begin(tokens[:1])
        logits[role] = model.runner.forward(torch.cat([start, tokens[1:]]), LONGEST).double().cpu()
        model.runner.reset()
    return Rows(logits.get("draft", logits["target"].roll(1, dims=-1)), logits["target"])


def has_rounds(strategy: Strategy) -> bool:
    """Whether a strategy speculates."""
    return rule_of(strategy) is not None and "k" in strategy.params


def drawn_together(rows: Rows, dtype: torch.dtype) -> Rows:
    """Move the target's logits towards the draft's until most drafts are accepted, and round them to a precision."""
    target = rows.target
    banned = ~(target > target.max(dim=-1, keepdim=True).values - BANNED)
    draft = rows.draft.masked_fill(banned, -math.inf)  # otherwise no share would bring such a token's logits nearer
    share, q = 1.0, distributions.base(draft)
    while (
        share > LEAST_SHARE
        and float(distributions.total_variation(distributions.base(_between(draft, target, share)), q).mean())
        > HALF_WAY
    ):
        share /= 1.5
    return Rows(draft, _between(draft, target, share).to(dtype).double())


def _between(draft: Tensor, target: Tensor, share: float) -> Tensor:
    """Logits a share of the way to the target; where a cut head has no row, the target's minus (1 / share - 1)."""
    return (draft + share * (target - draft)).where(draft.isfinite(), target + 1 - 1 / share)


def _decided(
    pair: Pair, dtype: torch.dtype, rule: Rule, blocks: bool, rows: Rows, n: int, seed: int, scale: float
) -> tuple[by_definition.Outcome, by_definition.Outcome]:
    """What the device makes of a round, and what the definition does.

    Each length and seed has its own rows and numbers; those of the tests are scaled.
    """
    sampling = SAMPLINGS[seed % len(SAMPLINGS)]
    own = seed * (LONGEST + 1) + n
    places = (torch.arange(n + 1) + own) % len(rows.target)
    draft, target = (each[places].to(dtype) for each in rows)
    num_q, uniforms = n + rule.reads_draft, Uniforms(own, LONGEST + 2, pair.device)
    u = uniforms.draw(0, n), scale * uniforms.accept(0, n), torch.cat([uniforms.residual(0, n), uniforms.draw(n, 1)])
    holds = [(torch.arange(n + 1) + seed) % 3 > 0] if rule.thinking_only else []
    q, q1 = (each[:num_q] for each in Sampler(sampling, rule.reads_base)(draft.to(pair.device)))
    drafted = distributions.sample(q[:n], u[0].to(q.device))
    inputs = (target.to(pair.device), drafted, q, q1, *(each.to(q.device) for each in (*u[1:], *holds)))
    decide, key = partial(decide_round, rule, sampling, by_block=blocks), ("round", rule, sampling, blocks)
    if rule.capturable and n % 2 == 0:  # the others run uncaptured, like the shorter rounds at the end of an answer
        pair.graphs.capture(key, decide, *inputs)
    ours = RoundFacts.of(pair.graphs.run(key, decide, *inputs).flatten().tolist())
    theirs = by_definition.decided(
        rule,
        sampling,
        draft.double().numpy(),
        target.double().numpy(),
        by_definition.Numbers(*(each.double().cpu().numpy() for each in u)),
        holds=holds[0].numpy() if holds else None,
        by_block=blocks,
    )
    return by_definition.Outcome(ours.num_accepted, ours.next_id), theirs
