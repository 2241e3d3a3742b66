"""Speculative decoding that keeps what it saw: the distributions of both models at every position of a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import Exact, Rule
from cascli.strategies.base import Speculating

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists

Seen = Callable[["Dists"], "Dists"]


@dataclass(frozen=True)
class Watching(Exact):
    """The rule of speculative decoding, which keeps what `on_distributions` makes of all it is given."""

    reads_draft: ClassVar[bool] = True
    reads_base: ClassVar[bool] = True
    capturable: ClassVar[bool] = False

    on_distributions: Seen | None = None
    seen: list[Dists] = field(default_factory=list)

    def apply(self, d: Dists) -> Tensor:
        """pi = p."""
        self.seen.append(self.on_distributions(d) if self.on_distributions else d)
        return super().apply(d)


@dataclass(frozen=True)
class Recording(Speculating):
    """`speculative`, watched."""

    on_distributions: Seen | None = None
    seen: list[Dists] = field(default_factory=list)
    """By round; rows beyond the round's emitted tokens are of prefixes that were not visited."""

    @property
    def name(self) -> str:
        """As the strategy that it is."""
        return "speculative"

    @property
    def params(self) -> dict[str, int]:
        """Those of `speculative`."""
        return {"k": self.k}

    @property
    def verification_rule(self) -> Rule:
        """Exact, watched."""
        return Watching(self.on_distributions, self.seen)
