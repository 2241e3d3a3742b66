"""Compare the law of a loaded pair's texts, for any device and runners, with the law from its own full forwards."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch

from cascli import Pair, generate
from tests.laws.counting import false_alarm_rate, out_of_law
from tests.laws.tables import target
from tests.reference import process
from tests.reference.distributions import softmax, warp
from tests.reference.process import Target, Tokens, sequential_law

PROMPT = (1, 2)
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.4}
MIDDLE = {**SHAPE, "initializer_range": 0.06}
"""Two models that partly agree: most drafts are accepted with a probability between 0.1 and 0.9."""
LENGTH = 3
CASES: list[tuple[str, Target, dict[str, Any]]] = [
    ("target", lambda pair: pair.p, {}),
    ("speculative:k=2", target("exact"), {}),
    ("speculative:k=4", target("exact"), {"temperature": 1.3, "top_k": 4, "top_p": 0.98}),
    ("speculative-cascade:rule=token-v3,alpha=0.3,k=2", target("token-v3", 0.3), {}),
    ("speculative-cascade:rule=opt,alpha=0.3,k=3", target("opt", 0.3), {"temperature": 0.7}),
]
DEEP: list[tuple[str, Target, dict[str, Any]]] = [
    ("speculative:k=4", target("exact"), {}),
    ("speculative:k=5", target("exact"), {"temperature": 0.7}),
    ("speculative-cascade:rule=token-v3,alpha=0.3,k=4", target("token-v3", 0.3), {}),
]
"""Cases for texts of five tokens instead of three: rounds of four drafts and, at the end, of every shorter length."""


def alarms(
    pair: Pair, strategy: str, rule: Target, sampling: dict[str, Any], runs: int, length: int = LENGTH
) -> list[str]:
    """Texts that occurred too often or too rarely; by chance alone, in fewer than one of 100,000 choices of seeds."""
    whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | sampling

    @cache
    def tables(prefix: Tokens) -> process.Pair:
        ids = torch.tensor([[*PROMPT, *prefix]], device=pair.device)
        with torch.inference_mode():
            both = (model.model(input_ids=ids, use_cache=False).logits for model in (pair.draft, pair.target))
            x, y = (logits[0, -1, : pair.vocab].double().cpu().numpy() for logits in both)
        return process.Pair(warp(x, **whole), warp(y, **whole), softmax(x), softmax(y))

    law = sequential_law(tables, rule, length)
    assert len(law) > 10 and false_alarm_rate(law, runs) < 1e-5
    ask = {"prompt_ids": PROMPT, "strategy": strategy, "max_new_tokens": length, **whole}
    texts = Counter(tuple(generate(pair, seed=seed, **ask).token_ids) for seed in range(runs))
    return out_of_law(texts, law)
