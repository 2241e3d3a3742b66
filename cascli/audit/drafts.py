"""Are the tokens of a drafter drawn from the distributions that it reports? Tested along real prompts, by sampling.

Speculation is lossless only if they are, and nothing in a run can tell: the target would correct for another q than the
one that was drawn from. Draft models are checked by `draws`; this is for all other drafters, over the whole vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cascli.audit.report import Check, check_of, failed, skipped
from cascli.blame import blamed
from cascli.chat import encode
from cascli.decoding.session import Session
from cascli.decoding.speculation import Block
from cascli.decoding.step_by_step import DistributionOnly
from cascli.drafters.base import Drafter
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
FALSE_ALARM = 3 * 10**-SURPRISE
AS_READ = 0.1
"""Largest TV between a model's distributions after a text read in one piece and token by token, in 16 bits."""
ROUNDING = 1e-4
"""How far a sum of probabilities in float32 may be from 1."""


def drafters(strategies: Sequence[Strategy]) -> list[Speculating]:
    """One strategy for each drafter to check: all that are not just the draft model."""
    found: dict[object, Speculating] = {}
    for strategy in strategies:
        if isinstance(strategy, Speculating) and type(strategy.draft) is not Model:
            found.setdefault(strategy.draft, strategy)
    return list(found.values())


def _reads(draft: Drafter) -> bool:
    """Whether it drafts with a model or with layers of one."""
    return draft.needs_model or draft.exit_layers is not None


@torch.inference_mode()
def drafts(pair: Pair, strategy: Speculating) -> Iterator[Check]:
    """One check: the surprise at the tokens of many drafts, in powers of ten.

    With all tokens in some order, the mass before the drafted one plus a random share of its own is uniform in [0, 1)
    if it was drawn from q, independently of all before. This is tested in the order of falling q, in which a draw that
    prefers likely tokens stands out, and in that of ids, which draws follow. So is the difference, modulo 1, from the
    token before it in the draft, which shows tokens drawn with the same number.
    """
    by_q, by_id, steps, tokens, places = list[float](), list[float](), list[float](), 0, 0
    shares, by_model = random.Random(0), _reads(strategy.draft)
    texts = _texts(pair, WITH_MODEL if by_model else PLACES)
    most = DRAWS_WITH_MODEL if by_model else DRAWS
    for place, ids in enumerate(texts):
        for seed in range(most):
            block = _draft(pair, strategy, ids, place * most + seed)  # two places of one seed would share their numbers
            q = block.q.double().cpu()[: len(block.tokens)]
            if not len(q):
                break
            why = _malformed(pair, strategy, ids, block) if seed == 0 else None
            if why is not None:
                yield failed("drafter", strategy.spec, why)
                return
            of_token = q.gather(1, block.tokens.cpu().unsqueeze(1))
            if bool((of_token <= 0).any()):
                yield failed("drafter", strategy.spec, "it drafted a token whose q is 0")
                return
            tokens += len(q)
            places += seed == 0
            if bool((q == 1).any(dim=1).all()):
                break  # certain of all its tokens: there is nothing to draw again
            drafted = zip(q, block.tokens.tolist(), strict=True)
            falling, rising = zip(*(_ranks(*each, shares.random()) for each in drafted), strict=True)
            by_q += falling
            by_id += rising
            steps += [(after - before) % 1 for before, after in pairwise(rising)]
    if not tokens:
        yield skipped("drafter", strategy.spec, f"it drafted nothing at {len(texts)} positions of the built-in prompts")
        return
    detail = f"{tokens} tokens drafted at {places} of {len(texts)} positions, {len(by_q)} of them uncertain"
    yield check_of("drafter", strategy.spec, max(map(_surprise, (by_q, by_id, steps))), SURPRISE, FALSE_ALARM, detail)


def _ranks(q: Tensor, token: int, share: float) -> tuple[float, float]:
    """The mass of the tokens before one and of a share of its own, in the order of falling q and in that of ids."""
    own = float(q[token])
    earlier = torch.arange(len(q)) < token
    likelier = (q > own) | ((q == own) & earlier)
    return float(q[likelier].sum()) + share * own, float(q[earlier].sum()) + share * own


def _surprise(numbers: Sequence[float]) -> float:
    """How surprising numbers are if they should be independent and uniform in [0, 1), in powers of ten.

    The largest distance d between the distribution of n of them and the uniform one exceeds a bound with a probability
    of at most 2 exp(-2 n d^2) (the Dvoretzky-Kiefer-Wolfowitz inequality, with Massart's constant).
    """
    n = len(numbers)
    distance = max((max((i + 1) / n - x, x - i / n) for i, x in enumerate(sorted(numbers))), default=0.0)
    return max(0.0, (2 * n * distance**2 - math.log(2)) / math.log(10))


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
    return _after_the_last(pair, strategy, ids)


def _after_the_last(pair: Pair, strategy: Speculating, ids: Sequence[int]) -> str | None:
    """What is wrong with the q after the last draft, for a rule that reads it: the bonus would depend on the rounds."""
    draft = strategy.draft
    with blamed(strategy):
        block = draft.propose(_session(pair, strategy, ids, 0), strategy.longest, DistributionOnly())
        n, q = len(block.tokens), block.q.double()
        after = draft.propose(
            _session(pair, strategy, [*ids, *block.tokens.tolist()], 0), 0, DistributionOnly()
        ).q.double()
    if not n or len(q) == n + len(after) == n:
        return None
    if len(q) != n + len(after):
        return "it has a q after its last draft in some calls only; a rule that `reads_draft` needs it in all"
    if float((q[n] - after[0]).abs().sum()) / 2 > (AS_READ if _reads(draft) else 1e-3):
        return "its q after the last draft is not its q after the same text, though it says `by_prefix`"
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
