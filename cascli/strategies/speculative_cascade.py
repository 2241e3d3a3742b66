"""The speculative cascade: speculation towards the law of a deferral rule instead of the target's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.strategies.base import BlockLength, Role, RuleStrategy, speculation_calls

if TYPE_CHECKING:
    from cascli.calls import Calls
    from cascli.session import Session
    from cascli.trace import Round


@dataclass(frozen=True)
class SpeculativeCascade(RuleStrategy):
    """Draft k, verify in one target call, accept / residual / bonus with pi from the rule."""

    summary: ClassVar[str] = "speculation with a deferral rule in place of the exact check"
    formula: ClassVar[str] = "pi = T(q, p) of the rule; accept x with min(1, pi(x) / q(x)), else norm(max(0, pi - q))"
    source: ClassVar[str] = "Narasimhan et al. 2025, algorithms 4 to 6"
    lossless_when: ClassVar[str] = "as the rule"
    default_rule: ClassVar[str] = "token-v3"

    k: BlockLength = 4

    def calls(self, role: Role) -> Calls:
        """Those of rounds of speculation."""
        return speculation_calls(role, self.rule, self.k)

    def decode(self, s: Session) -> Iterator[Round]:
        """Rounds of speculation towards the rule's law."""
        from cascli.strategies._speculation import speculate

        yield from speculate(s, self.rule, self.k)
