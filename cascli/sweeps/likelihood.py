"""How likely a model finds an answer that something else wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.models.pair import LoadedModel

CHUNK = 64
"""Tokens of the answer read at once: logits of a whole answer over a large vocabulary would not fit small cards."""


class Likelihood(NamedTuple):
    """Of an answer, at temperature 1."""

    total: float
    """The log-probability of all its tokens, in nats."""
    greedy: bool
    """Whether each of them is the likeliest there, so that the model would write it by itself."""


class Reader:
    """Reads answers one after the other; what two of them have in common before the answer is read once.

    Nothing else may use the model meanwhile.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model, self._read = model, list[int]()
        model.runner.reset()

    @torch.inference_mode()
    def __call__(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Likelihood:
        """How likely an answer is.

        Args:
            prompt_ids: what the answer follows, not empty.
            token_ids: the answer.
        """
        runner, device = self._model.runner, self._model.device
        ids = torch.tensor(token_ids, dtype=torch.long, device=device)
        before = torch.cat([self._begin(torch.tensor(prompt_ids, dtype=torch.long, device=device)), ids])
        total, greedy = 0.0, True
        for first in range(0, len(ids), CHUNK):
            answer = ids[first : first + CHUNK]
            logits = runner.forward(before[first : first + len(answer)], len(answer)).float()
            total += float(torch.log_softmax(logits, dim=-1).gather(-1, answer.unsqueeze(-1)).sum())
            greedy = greedy and bool((logits.argmax(-1) == answer).all())
        self._read = [*prompt_ids, *token_ids][: runner.length]
        return Likelihood(total, greedy)

    def _begin(self, prompt: Tensor) -> Tensor:
        """Have a prompt `[n]` read, what an encoder reads anew, and return what its answer starts from, `[1]`."""
        runner = self._model.runner
        if self._model.info.encoder is not None:
            return runner.begin(prompt)
        known = _common(self._read, prompt[:-1].tolist())
        runner.truncate(known)
        if len(prompt) - 1 > known:
            runner.forward(prompt[known:-1], 1)
        return prompt[-1:]

    def end(self) -> None:
        """Forget what was read."""
        self._model.runner.reset()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def log_likelihood(model: LoadedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float | None:
    """Mean log-probability of the answer's tokens, in nats a token, at temperature 1; None for an empty answer.

    Args:
        model: its runs are forgotten.
        prompt_ids: what the answer follows, not empty.
        token_ids: the answer.
    """
    if not token_ids:
        return None
    read = Reader(model)
    likelihood = read(prompt_ids, token_ids)
    read.end()
    return likelihood.total / len(token_ids)
