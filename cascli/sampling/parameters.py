"""How tokens are drawn from logits: temperature, top-k, top-p. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cascli.errors import UsageError

MOST_DRAFTED = 64
"""Maximum number of tokens that a round may draft."""
AUTO_DRAFTED = 16
"""Maximum number of tokens that a round may draft with `k=auto`, where a stop chooses."""
SMALLEST = 1e-30
"""The smallest temperature above 0: greedy except for ties. float32 cannot divide by smaller ones."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """One warping for both models, applied in the order temperature, top-k, top-p.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch the truncations off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        if self.temperature != 0 and not SMALLEST <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 (greedy) or at least {SMALLEST} (got {self.temperature})")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (off) or more (got {self.top_k})")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be in (0, 1] (got {self.top_p})")
