"""The draft model alone: the cheap end of every trade-off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.decoding.alone import write
from cascli.strategies.base import Strategy

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.trace import Round


@dataclass(frozen=True)
class Draft(Strategy):
    """One draft call per token; the target is never called."""

    summary: ClassVar[str] = "the draft model alone, token by token"
    formula: ClassVar[str] = "pi = q"
    lossless_when: ClassVar[str] = "not known: the target is not consulted"

    def decode(self, s: Session) -> Iterator[Round]:
        """Write with the draft model."""
        yield from write(s, s.draft, "draft")
