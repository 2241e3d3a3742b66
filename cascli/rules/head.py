"""Keep each token nearly as likely as the target's best one, without a random test, and test the others exactly.

K = {v: p1(v) >= (1 - alpha) max p1}. A draft in K is kept; one outside passes with min(1, p / q), and a rejected one is
replaced from norm(max(0, p - q)): token-v3 with tail=exact. With tail=cut, token-v3 redraws from p instead; head never
accepts fewer drafts than that, and is never farther from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cascli.rules.base import option
from cascli.rules.token_v3 import TokenV3


@dataclass(frozen=True)
class Head(TokenV3):
    """Keep each token nearly as likely as the target's best one; test the rest exactly."""

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
