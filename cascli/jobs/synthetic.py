"""Speculation at a chosen acceptance rate, only for measuring speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from cascli.engine import Request
from cascli.rules._forced import Forced
from cascli.rules.base import Rule
from cascli.sampling.parameters import Sampling
from cascli.strategies.base import Speculating

PROMPT_TOKENS = 32
"""Length of a prompt whose content does not matter."""


def prompt_ids(vocab: int) -> list[int]:
    """A prompt whose content does not matter."""
    return [i % vocab for i in range(PROMPT_TOKENS)]


def request(vocab: int, tokens: int, seed: int) -> Request:
    """A greedy request for this many tokens; the seed decides which drafts are accepted."""
    return Request(prompt_ids=prompt_ids(vocab), sampling=Sampling(temperature=0.0), max_new_tokens=tokens, seed=seed)


@dataclass(frozen=True)
class Synthetic(Speculating):
    """`speculative` with a chosen acceptance rate; its text is meaningless."""

    acceptance: Annotated[float, Field(ge=0, le=1)] = 0.8

    @property
    def name(self) -> str:
        """Name that marks the numbers of these runs wherever they are shown."""
        return "synthetic-acceptance"

    @property
    def verification_rule(self) -> Rule:
        """Rule that accepts drafts at the chosen rate."""
        return Forced(self.acceptance)
