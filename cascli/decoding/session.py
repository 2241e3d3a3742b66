"""The state of one run that strategies work on: the text so far, the two models, the random numbers.

The text lies on the models' device; strategies write drafted tokens into it and never wait for the host
except once a round, in `Session.fetch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cascli.decoding.clock import Clock
from cascli.decoding.cursor import Cursor
from cascli.errors import RunError
from cascli.sampling import distributions
from cascli.sampling.parameters import Sampling
from cascli.trace import FinishReason

Result = TypeVar("Result")


class RandomNumbers(Protocol):
    """Uniforms by position: see `cascli.sampling.uniforms.Uniforms`."""

    def draw(self, start: int, n: int) -> Tensor:
        """Draws of drafted, bonus and baseline tokens `[n]`."""

    def accept(self, start: int, n: int) -> Tensor:
        """Acceptance tests `[n]`."""

    def residual(self, start: int, n: int) -> Tensor:
        """Draws after a rejection `[n]`."""


class Computes(Protocol):
    """Applies a function to tensors on the device: at once, or by a recording of it."""

    def __call__(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """`function(*inputs)`, where `key` tells apart what is computed in different ways.

        The result is valid until the next call with this key.
        """


class Rehearses(Computes, Protocol):
    """One that can get ready."""

    def prepare(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Record a call of which these are examples; says whether it was not there already."""


def at_once(key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
    """Simply call the function."""
    del key
    return function(*inputs)


@dataclass
class Session:
    """What a strategy may use; the engine ends it between two rounds."""

    draft: Cursor
    target: Cursor
    sampling: Sampling
    uniforms: RandomNumbers
    text: Tensor
    """`[capacity]` token ids on the device: the prompt, the answer so far, and drafted tokens."""
    prompt_length: int
    max_new_tokens: int
    vocab: int
    clock: Clock
    spell: Callable[[int], str]
    """The text of a single token, for the trace."""
    compute: Computes = at_once
    """How a round's computations besides the two models' are done."""
    length: int = field(init=False)
    finish_reason: FinishReason | None = None
    """Set by the engine when the answer has ended."""

    def __post_init__(self) -> None:
        """Start after the prompt."""
        self.length = self.prompt_length

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def position(self) -> int:
        """Index in the answer of the next token to be decided."""
        return self.length - self.prompt_length

    @property
    def remaining(self) -> int:
        """How many tokens may still be added."""
        return self.max_new_tokens - self.position

    def warp(self, logits: Tensor) -> Tensor:
        """The distributions `[n, V]` that tokens are drawn from."""
        return distributions.warp(logits, self.sampling)

    def draw(self, probs: Tensor) -> Tensor:
        """Draw the next token, `[1]`, from `probs` `[1, V]` with the position's own uniform."""
        return distributions.sample(probs, self.uniforms.draw(self.position, 1))

    def draw_again(self, probs: Tensor) -> Tensor:
        """Draw a token `[1]` where the position's first uniform has been used already."""
        return distributions.sample(probs, self.uniforms.residual(self.position, 1))

    def append(self, tokens: Tensor) -> None:
        """Add decided tokens `[n]` to the text."""
        n = tokens.shape[0]
        self.text[self.length : self.length + n] = tokens
        self.length += n

    def restart(self) -> None:
        """Forget the answer and begin again after the prompt."""
        self.length = self.prompt_length
        self.finish_reason = None

    def fetch(self, *columns: Tensor) -> list[list[float]]:
        """Bring several short tensors to the host in one transfer; ids stay exact as float64.

        Raises:
            RunError: a model's logits were not finite numbers.
        """
        values = self._transfer(*columns, self.draft.health, self.target.health)
        for role, [health] in zip(("draft", "target"), values[-2:], strict=True):
            if not math.isfinite(health):
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
