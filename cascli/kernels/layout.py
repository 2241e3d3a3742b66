"""The results of a round as one matrix of numbers, so that the host gets them in one transfer. Imports no torch.

The code that fills it (`cascli.decoding.speculation`, `cascli.kernels.verification`) and the code that reads it
access it only by these names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

NEGLIGIBLE = 1e-15
"""A probability so small that a whole vocabulary of them adds nothing to a divergence in float32."""


class Field(IntEnum):
    """The rows of the matrix `[len(Field), n + 1]` (float64) of a round over n drafted tokens.

    The first six hold one number per drafted token, the next two one per position, and the next four a single number
    in the first column. The rest measure what the round costs in quality; they are NaN where not computed.
    """

    ID = 0
    Q = 1
    P = 2
    PI = 3
    ACCEPT_PROB = 4
    """Acceptance probability of the token, or of the prefix that ends with it."""
    DEFERRED = 5
    TV = 6
    """TV(pi, p)."""
    DEFERRAL = 7
    """The draft's mass that is not kept; meaningless if the rule does not read q."""
    NUM_ACCEPTED = 8
    NEXT_ID = 9
    """The token after the accepted ones."""
    NEXT_P = 10
    NEXT_Q = 11
    TV_TO_DRAFT = 12
    """TV(pi, q), one per position where something was proposed."""
    DISAGREEMENT = 13
    """TV(p, q), one per position where something was proposed."""
    KL = 14
    """KL(pi || p) in nats, one per position; infinite if pi has a token that p does not."""
    OVERSHOOT = 15
    """The largest pi / p, one per position."""
    REGRET = 16
    """log max p1 - log p1 of the drafted token, one per drafted token."""
    EXACT = 17
    """Whether the exact test would have accepted the drafted token with the same random number."""
    NEXT_REGRET = 18
    """Regret of the token after the accepted ones, in the first column."""


@dataclass(frozen=True)
class RoundFacts:
    """The numbers of a round over n drafted tokens, on the host; lists are indexed by position."""

    ids: list[int]
    q: list[float]
    p: list[float]
    pi: list[float]
    accept_prob: list[float]
    deferred: list[bool]
    tv: list[float]
    """n + 1 values, like `deferral`."""
    deferral: list[float]
    num_accepted: int
    next_id: int
    next_p: float
    next_q: float
    tv_to_draft: list[float | None]
    disagreement: list[float | None]
    kl: list[float | None]
    overshoot: list[float | None]
    regret: list[float | None]
    exact: list[bool | None]
    next_regret: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Create from the flattened matrix."""
        width = len(numbers) // len(Field)
        row = {field: list(numbers[field * width : (field + 1) * width]) for field in Field}
        n = width - 1
        return cls(
            ids=[int(value) for value in row[Field.ID][:n]],
            q=row[Field.Q][:n],
            p=row[Field.P][:n],
            pi=row[Field.PI][:n],
            accept_prob=row[Field.ACCEPT_PROB][:n],
            deferred=[bool(value) for value in row[Field.DEFERRED][:n]],
            tv=row[Field.TV],
            deferral=row[Field.DEFERRAL],
            num_accepted=int(row[Field.NUM_ACCEPTED][0]),
            next_id=int(row[Field.NEXT_ID][0]),
            next_p=row[Field.NEXT_P][0],
            next_q=row[Field.NEXT_Q][0],
            tv_to_draft=_known(row[Field.TV_TO_DRAFT]),
            disagreement=_known(row[Field.DISAGREEMENT]),
            kl=_known(row[Field.KL]),
            overshoot=_known(row[Field.OVERSHOOT]),
            regret=_known(row[Field.REGRET][:n]),
            exact=[None if value is None else bool(value) for value in _known(row[Field.EXACT][:n])],
            next_regret=_known(row[Field.NEXT_REGRET])[0],
        )


def _known(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
