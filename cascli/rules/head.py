"""Keep each token that the target finds nearly its best, without a coin, and test the others exactly.

K = {v: p1(v) >= (1 - alpha) max p1}. On K the draft stands; outside it passes with min(1, p / q), and what is rejected
is drawn from norm(max(0, p - q)): token-v3 with tail=exact. With tail=cut that rule draws anew from p: this one never
accepts fewer drafts than it, and is never farther from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cascli.rules.base import option
from cascli.rules.token_v3 import TokenV3


@dataclass(frozen=True)
class Head(TokenV3):
    """Keep what the target finds nearly its best; test the rest exactly."""

    formula: ClassVar[str] = (
        "pi = q on K, min(q, p) outside, + rejected mass * norm(max(0, p - q)); K: p1(v) >= (1 - alpha) max p1"
    )
    source: ClassVar[str] = "MTPLX #485 and mlx-serve #419 (as TokenV3)"
    greedy: ClassVar[str] = "token-v3"
    relatives: ClassVar[str] = (
        "token-v3 with tail=exact; the K of min-p; never accepts fewer drafts than token-v3, never farther from p; with"
        " top=N at temperature 0 relaxed acceptance, like token-v3"
    )

    tail: Literal["exact"] = option("exact")
