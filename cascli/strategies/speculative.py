"""Speculative decoding: the draft model writes ahead, the target checks in one call; lossless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Exact, Rule
from cascli.strategies.base import BLOCK_FORMULA, BLOCK_SOURCE, Speculating


@dataclass(frozen=True)
class Speculative(Speculating):
    """Draft k, verify in one target call, accept / residual / bonus with pi = p."""

    summary: ClassVar[str] = "draft k tokens, check them in one target call, keep the prefix that passes"
    formula: ClassVar[str] = (
        "pi = p; accept x with min(1, p(x) / q(x)), else draw from norm(max(0, p - q))" + BLOCK_FORMULA
    )
    source: ClassVar[str] = "Leviathan et al. 2023; Chen et al. 2023" + BLOCK_SOURCE
    lossless_when: ClassVar[str] = "always"

    @property
    def verification_rule(self) -> Rule:
        """pi = p."""
        return Exact()
