"""How likely a model finds an answer that something else wrote."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascli.models.pair import LoadedModel

CHUNK = 64
"""Tokens of the answer read at once: logits of a whole answer over a large vocabulary would not fit small cards."""


@torch.inference_mode()
def log_likelihood(model: LoadedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float | None:
    """Mean log-probability of the answer's tokens, in nats a token, at temperature 1; None for an empty answer.

    Args:
        model: its runs are forgotten.
        prompt_ids: what the answer follows, not empty.
        token_ids: the answer.
    """
    if not token_ids:
        return None
    runner = model.runner
    prompt, ids = (torch.tensor(each, dtype=torch.long, device=model.device) for each in (prompt_ids, token_ids))
    before = torch.cat([runner.begin(prompt), ids])
    total = 0.0
    for first in range(0, len(ids), CHUNK):
        answer = ids[first : first + CHUNK]
        logits = runner.forward(before[first : first + len(answer)], len(answer))
        logs = torch.log_softmax(logits.float(), dim=-1)
        total += float(logs.gather(-1, answer.unsqueeze(-1)).sum())
    runner.reset()
    return total / len(token_ids)
