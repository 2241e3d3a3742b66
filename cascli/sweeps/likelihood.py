"""How likely an answer from elsewhere is under a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.models.pair import LoadedModel

CHUNK = 64
"""Answer tokens read in one call: logits of a whole answer over a large vocabulary would not fit on small GPUs."""


class Likelihood(NamedTuple):
    """Likelihood of an answer at temperature 1."""

    total: float
    """Log-probability of all its tokens, in nats."""
    greedy: bool
    """Whether each token is the likeliest at its position, so that the model itself would write it greedily."""


class Reader:
    """Reads answers one after the other; a prefix that a prompt shares with the previous text is read only once.

    Nothing else may use the model meanwhile.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model, self._read = model, list[int]()
        model.runner.reset()

    @torch.inference_mode()
    def __call__(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Likelihood:
        """Return the likelihood of an answer.

        Args:
            prompt_ids: what the answer follows; not empty.
            token_ids: the answer.

        Raises:
            ValueError: the prompt is empty, so nothing predicts the first token.
        """
        if not prompt_ids:
            raise ValueError("nothing predicts the first token of an answer without a prompt")
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
        """Read a prompt `[n]` (an encoder reads all of it again), and return what its answer starts from, `[1]`."""
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
    """Length of the common prefix of two texts, in tokens."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def log_likelihood(model: LoadedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float | None:
    """Mean log-probability of the answer's tokens, in nats per token, at temperature 1; None for an empty answer.

    Args:
        model: a loaded model; its cache is reset.
        prompt_ids: what the answer follows; not empty.
        token_ids: the answer.
    """
    if not token_ids:
        return None
    read = Reader(model)
    likelihood = read(prompt_ids, token_ids)
    read.end()
    return likelihood.total / len(token_ids)
