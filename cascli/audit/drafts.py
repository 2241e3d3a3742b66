"""Are the tokens of a drafter drawn from the distributions that it reports? Tested along real prompts, by sampling.

Speculation is lossless only if they are, and nothing in a run can tell: the target would correct for another q than the
one that was drawn from. Draft models are checked by `draws`; this is for all other drafters, over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from cascli.audit.report import Check, check_of, failed, skipped
from cascli.blame import blamed
from cascli.chat import encode
from cascli.decoding.session import Session
from cascli.decoding.speculation import Block
from cascli.decoding.step_by_step import DistributionOnly
from cascli.drafters.model import Model
from cascli.engine import Decoding, Request
from cascli.models.pair import Pair
from cascli.prompts import builtin
from cascli.sampling.parameters import Sampling
from cascli.strategies import Strategy
from cascli.strategies.base import Speculating

PROMPTS = 4
PLACES, DRAWS = 24, 10
"""Positions in each prompt after which tokens are drafted, and how often if what is drafted there is uncertain."""
WITH_MODEL, DRAWS_WITH_MODEL = 2, 5
"""The same for a drafter that runs the draft model, which reads the prompt each time."""
SURPRISE = 7.0
"""Bound on the powers of ten by which the tokens would surprise if they were drawn from q."""
FALSE_ALARM = 10**-SURPRISE
ROUNDING = 1e-4
"""How far a sum of probabilities in float32 may be from 1."""


def drafters(strategies: Sequence[Strategy]) -> list[Speculating]:
    """One strategy for each drafter to check: those that are not just the draft model, nor layers of the target."""
    found: dict[object, Speculating] = {}
    for strategy in strategies:
        if (
            isinstance(strategy, Speculating)
            and type(strategy.draft) is not Model
            and strategy.draft.exit_layers is None
        ):
            found.setdefault(strategy.draft, strategy)
    return list(found.values())


@torch.inference_mode()
def drafts(pair: Pair, strategy: Speculating) -> Iterator[Check]:
    """One check: the surprise at the tokens of many drafts, in powers of ten.

    Given a drafter's q, q(x) - sum(q^2) has mean 0 if x is drawn from q. By Freedman's inequality, their sum exceeds s
    with probability at most 2 exp(-s^2 / (2 (v + s / 3))), where v is the sum of their variances.
    """
    total, variance, tokens, places = 0.0, 0.0, 0, 0
    by_model = strategy.draft.needs_model
    texts = _texts(pair, WITH_MODEL if by_model else PLACES)
    for ids in texts:
        uncertain = False
        for seed in range(DRAWS_WITH_MODEL if by_model else DRAWS):
            block = _draft(pair, strategy, ids, seed)
            q = block.q.double().cpu()[: len(block.tokens)]
            if not len(q):
                break
            why = _malformed(pair, strategy, ids, block) if seed == 0 else None
            if why is not None:
                yield failed("drafter", strategy.spec, why)
                return
            of_token = q.gather(1, block.tokens.cpu().unsqueeze(1)).squeeze(1)
            if bool((of_token <= 0).any()):
                yield failed("drafter", strategy.spec, "it drafted a token whose q is 0")
                return
            mean = (q**2).sum(dim=1)
            total += float((of_token - mean).sum())
            variance += float(((q**3).sum(dim=1) - mean**2).clamp(min=0).sum())
            tokens += len(q)
            places += seed == 0
            uncertain = uncertain or bool((q.max(dim=1).values < 1).any())
            if not uncertain:
                break
    if not tokens:
        yield skipped("drafter", strategy.spec, f"it drafted nothing at {len(texts)} positions of the built-in prompts")
        return
    detail = f"{tokens} tokens drafted at {places} of {len(texts)} positions, surprise in powers of ten"
    yield check_of("drafter", strategy.spec, _surprise(total, variance), SURPRISE, FALSE_ALARM, detail)


def _surprise(total: float, variance: float) -> float:
    size = abs(total)
    if size <= ROUNDING:
        return 0.0
    return max(0.0, (size**2 / (2 * (variance + size / 3)) - math.log(2)) / math.log(10))


def _malformed(pair: Pair, strategy: Speculating, ids: Sequence[int], block: Block) -> str | None:
    """What is wrong with a block whatever was drawn: no distribution, or another one where only that is asked for."""
    if bool(((block.q.double().sum(dim=1) - 1).abs() > ROUNDING).any()):
        return "its q does not add up to 1"
    if not strategy.draft.by_prefix:
        return None
    session = _session(pair, strategy, ids, 0)
    with blamed(strategy):
        alone = strategy.draft.propose(session, 0, DistributionOnly())
    if not len(alone.q):
        return "it drafts here, but has no q for this position when only q is asked for (a rule that `reads_draft`)"
    if float((alone.q[0].double() - block.q[0].double()).abs().sum()) / 2 > 1e-3:
        return "its q at one position depends on how many tokens are asked for, though it says `by_prefix`"
    return None


def _draft(pair: Pair, strategy: Speculating, ids: Sequence[int], seed: int) -> Block:
    """What the drafter proposes after a prompt, with the random numbers of a seed."""
    session = _session(pair, strategy, ids, seed)
    with blamed(strategy):
        return strategy.draft.propose(session, strategy.longest, strategy.verification_rule)


def _session(pair: Pair, strategy: Speculating, ids: Sequence[int], seed: int) -> Session:
    request = Request(prompt_ids=ids, sampling=Sampling(1.0), max_new_tokens=strategy.longest + 1, seed=seed)
    return Decoding(pair, strategy, request).session()


def _texts(pair: Pair, count: int) -> list[list[int]]:
    """Beginnings of prompts, the `count` longest of each."""
    if pair.tokenizer is None:
        whole = [[(7 * i + j * j) % pair.vocab for j in range(40)] for i in range(PROMPTS)]
    else:
        whole = [encode(pair, prompt.turns[0]) for prompt in builtin()[::7][:PROMPTS]]
    if pair.context is not None:
        whole = [ids[: max(pair.context // 2, 1)] for ids in whole]
    return [ids[:end] for ids in whole for end in range(len(ids), max(len(ids) - count, 0), -1)]
