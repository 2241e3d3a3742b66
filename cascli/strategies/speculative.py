"""Speculative decoding: the draft model writes ahead, the target checks in one call; lossless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import Exact
from cascli.strategies.base import BlockLength, Role, Strategy, speculation_calls

if TYPE_CHECKING:
    from cascli.calls import Calls
    from cascli.session import Session
    from cascli.trace import Round


@dataclass(frozen=True)
class Speculative(Strategy):
    """Draft k, verify in one target call, accept / residual / bonus with pi = p."""

    summary: ClassVar[str] = "draft k tokens, check them in one target call, keep the prefix that passes"
    formula: ClassVar[str] = "pi = p; accept x with min(1, p(x) / q(x)), else draw from norm(max(0, p - q))"
    source: ClassVar[str] = "Leviathan et al. 2023; Chen et al. 2023"
    lossless_when: ClassVar[str] = "always"

    k: BlockLength = 4

    def calls(self, role: Role) -> Calls:
        """Those of rounds of speculation."""
        return speculation_calls(role, Exact(), self.k)

    def decode(self, s: Session) -> Iterator[Round]:
        """Rounds of speculation towards the target's own law."""
        from cascli.strategies._speculation import speculate

        yield from speculate(s, Exact(), self.k)
