"""The state of one run that strategies work on: the answer so far, the two models, the random numbers.

The text is on the models' device; strategies write drafted tokens into it and synchronise with the host
only once per round, in `Session.fetch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cascli.decoding.clock import Clock
from cascli.decoding.cursor import Cursor
from cascli.errors import RunError
from cascli.models.gpu.graph_cache import GraphCache
from cascli.sampling import distributions
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import RandomNumbers
from cascli.trace import FinishReason, StepCosts


@dataclass
class Session:
    """What a strategy may use; the engine ends it between rounds."""

    draft: Cursor
    target: Cursor
    sampling: Sampling
    uniforms: RandomNumbers
    text: Tensor
    """`[capacity]` token ids on the device: the answer so far, and drafted tokens. The runners hold the prompt."""
    prompt_ids: Sequence[int]
    max_new_tokens: int
    vocab: int
    eos_ids: Collection[int]
    clock: Clock
    spell: Callable[[int], str]
    """The text of a single token, for the trace."""
    graphs: GraphCache = field(default_factory=GraphCache)
    """Everything a round computes outside the models' forward passes goes through its `run`."""
    thinking: tuple[int, int] | None = None
    """The tokens that open and close a text's thinking, if the pair has them."""
    top: int = 0
    """Number of each model's likeliest tokens that the trace keeps per position: see `cascli.decoding.detail`."""
    earlier: Sequence[Sequence[int]] = ()
    """Texts that the same strategy has read and written before, for drafters that search them."""
    notes: dict[Any, Any] = field(default_factory=dict)
    """What a drafter has prepared from the earlier texts for the whole run, keyed by the drafter."""
    costs: StepCosts | None = None
    """Step costs, for stops that need them."""
    length: int = field(default=0, init=False)
    """Number of answer tokens so far, which is the index of the next one to be decided."""
    answer_ids: Sequence[int] = field(default=(), init=False)
    """The answer so far, on the host; set by the engine after each round."""
    finish_reason: FinishReason | None = field(default=None, init=False)
    """Set by the engine when the answer has ended."""

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be added."""
        return self.max_new_tokens - self.length

    def warp(self, logits: Tensor) -> Tensor:
        """The distributions `[n, V]` that tokens are drawn from."""
        return distributions.warp(logits, self.sampling)

    def draw(self, probs: Tensor) -> Tensor:
        """Draw the next token, `[1]`, from `probs` `[1, V]` with the position's own uniform."""
        return distributions.sample(probs, self.uniforms.draw(self.length, 1))

    def draw_again(self, probs: Tensor) -> Tensor:
        """Draw a token `[1]` where the position's first uniform has already been used."""
        return distributions.sample(probs, self.uniforms.residual(self.length, 1))

    def append(self, tokens: Tensor) -> None:
        """Add decided tokens `[n]` to the text."""
        n = tokens.shape[0]
        self.text[self.length : self.length + n] = tokens
        self.length += n

    def restart(self) -> None:
        """Forget the answer and begin again after the prompt."""
        self.length, self.answer_ids, self.finish_reason = 0, (), None

    def fetch(self, *columns: Tensor) -> list[list[float]]:
        """Bring several short tensors to the host in one transfer; ids stay exact as float64.

        Raises:
            RunError: a model's logits were not finite.
        """
        values = self._transfer(*columns, self.draft.max_logit, self.target.max_logit)
        for role, [max_logit] in zip(("draft", "target"), values[-2:], strict=True):
            if not math.isfinite(max_logit):
                raise RunError(f"the {role} model's logits are not finite numbers; try --dtype bfloat16 or float32.")
        return values[:-2]

    @staticmethod
    def _transfer(*columns: Tensor) -> list[list[float]]:
        flat = torch.cat([column.reshape(-1).double() for column in columns]).tolist()
        result, start = [], 0
        for column in columns:
            result.append(flat[start : start + column.numel()])
            start += column.numel()
        return result
