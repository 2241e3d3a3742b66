"""Does greedy speculation give the target's own answer? If not, is the cause a tie, rounding or a bug?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cascli.analysis.comparison import first_divergence
from cascli.audit.report import Check, worst
from cascli.chat import encode
from cascli.decoding.detokenizer import Speller
from cascli.engine import Decoding, Request
from cascli.models.pair import Pair
from cascli.prompts import Prompt
from cascli.sampling.parameters import Sampling
from cascli.strategies import Strategy, parse
from cascli.trace import Run

TIE = 1e-6
REAL_IN_FLOAT32 = 1e-3


def greedy(pair: Pair, strategy: Strategy, ids: Sequence[int], tokens: int) -> Run:
    """One greedy run."""
    decoding = Decoding(pair, strategy, Request(prompt_ids=ids, sampling=Sampling(0.0), max_new_tokens=tokens))
    for _ in decoding.steps():
        pass
    return decoding.run()


@torch.inference_mode()
def margin(pair: Pair, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Margin of the target's best logit over its second after an answer, read in one piece."""
    runner, ids = pair.target.runner, torch.tensor([*prompt, *answer], device=pair.device)
    start = runner.begin(ids[: len(prompt)])
    logits = runner.forward(torch.cat([start, ids[len(prompt) :]]), 1)
    best, second = logits[0].double().topk(2).values.tolist()
    return float(best - second)


def verdict(gap: float, tolerance: float) -> str:
    """Classify a difference by its top-2 margin: tie, numerical or real."""
    return "tie" if gap <= TIE else "numerical" if gap <= tolerance else "real"


def speculation(pair: Pair) -> str:
    """The strategy compared with the target; it uses the pair's draft model, if there is one."""
    return "speculative:k=4" if pair.draft is not None else "speculative:draft=prompt-lookup,k=4"


def parity(pair: Pair, prompts: Sequence[Prompt], tokens: int, tolerance: float) -> Iterator[Check]:
    """One check over all prompts, which names every difference.

    `tolerance` is the logit margin up to which rounding may swap the two best tokens.
    """
    target, speculative = parse("target"), parse(speculation(pair))
    gaps, notes = [], []
    for prompt in prompts:
        ids = encode(pair, prompt.turns[0])
        theirs, ours = (greedy(pair, strategy, ids, tokens) for strategy in (target, speculative))
        place = first_divergence(ours, theirs)
        if place is None:
            continue
        gap = margin(pair, ids, theirs.token_ids[:place])
        gaps.append(gap)
        swap = f"{_named(pair, ours, theirs, place)}, margin {gap:.1g}: {verdict(gap, tolerance)}"
        notes.append(f"{prompt.id} #{place + 1}: {swap}")
    detail = "; ".join(notes) or f"{len(prompts)} prompts x {tokens} tokens, no difference"
    yield Check(
        kind="parity",
        subject=f"{speculation(pair)} against target",
        status="pass" if worst(gaps) <= tolerance else "fail",
        statistic=worst(gaps),
        bound=tolerance,
        false_alarm=0.0,
        detail=detail,
    )


def _named(pair: Pair, ours: Run, theirs: Run, place: int) -> str:
    spell = Speller(pair.tokenizer).token
    words = [spell(run.token_ids[place]) if place < len(run.token_ids) else "(end)" for run in (ours, theirs)]
    return f"{words[0]!r} instead of {words[1]!r}"
