"""The target model alone: the baseline that quality and speed are measured against."""

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
class Target(Strategy):
    """One target call per token."""

    summary: ClassVar[str] = "the target model alone, token by token"
    formula: ClassVar[str] = "pi = p"
    lossless_when: ClassVar[str] = "always"

    @property
    def needs_draft(self) -> bool:
        """False: the target answers alone."""
        return False

    def decode(self, s: Session) -> Iterator[Round]:
        """Write with the target model."""
        yield from write(s, s.target, "target")
