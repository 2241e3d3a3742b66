"""Speculation at a chosen acceptance rate: for pure measurements of speed, never for text.

It is a lawful speculative cascade with a senseless rule: pi = a q + (1 - a) on a token that q does not write. A
drafted token then passes with probability a, whatever the models say, and everything else costs what it always does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Judgement, Rule
from cascli.strategies.base import BlockLength, Speculating, Strategy

if TYPE_CHECKING:
    from cascli.dists import Dists


@dataclass(frozen=True)
class Forced(Rule):
    """Pi under which every drafted token but the least likely one is accepted with probability `acceptance`."""

    formula: ClassVar[str] = "pi = a q + (1 - a) [v = argmin q]"
    reads_draft: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    acceptance: float = 0.8

    def apply(self, d: Dists) -> Judgement:
        """Mix the draft's law with a token that it does not write; the bonus follows p, as in `speculative`."""
        n = d.q.shape[0]
        pi = d.p.clone()
        pi[:n] = d.q * self.acceptance
        pi[:n].scatter_add_(1, d.q.argmin(dim=-1, keepdim=True), pi.new_full((n, 1), 1 - self.acceptance))
        return Judgement(pi, pi.new_ones(pi.shape[0], 1).bool())


@dataclass(frozen=True)
class Synthetic(Speculating, Strategy):
    """`speculative` with a chosen acceptance rate; its text means nothing."""

    acceptance: Annotated[float, Field(ge=0, le=1)] = 0.8
    k: BlockLength = 4

    @property
    def name(self) -> str:
        """A name that marks the numbers of such runs wherever they are shown."""
        return "synthetic-acceptance"

    @property
    def judge(self) -> Rule:
        """The chosen rate."""
        return Forced(self.acceptance)
