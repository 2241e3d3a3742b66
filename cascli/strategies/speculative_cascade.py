"""The speculative cascade: speculation towards the distribution of a deferral rule instead of the target's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Rule
from cascli.strategies.base import BLOCK_FORMULA, BLOCK_SOURCE, RuleStrategy, Speculating


@dataclass(frozen=True)
class SpeculativeCascade(Speculating, RuleStrategy):
    """Draft k, verify in one target call, accept / residual / bonus with pi from the rule."""

    summary: ClassVar[str] = "speculation with a deferral rule in place of the exact check"
    formula: ClassVar[str] = (
        "pi = T(q, p) of the rule; accept x with min(1, pi(x) / q(x)), else norm(max(0, pi - q))" + BLOCK_FORMULA
    )
    source: ClassVar[str] = "Narasimhan et al. 2025, algorithms 4 to 6" + BLOCK_SOURCE
    lossless_when: ClassVar[str] = "when its rule is"
    default_rule: ClassVar[str] = "token-v3"

    @property
    def verification_rule(self) -> Rule:
        """The rule."""
        return self.rule
