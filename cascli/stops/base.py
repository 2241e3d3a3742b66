"""Base classes of stops, which decide token by token whether a round continues to draft.

A stop leaves output distributions unchanged if it uses only what is known before the next token is drawn, and nothing
that was influenced by a token drawn and then discarded: that position is drawn again with the same random number. So a
drawn token is always verified, and after a round a stop learns only what was read at the positions of the round's own
tokens, not how many drafts followed a rejected one. (A distribution that depends on where rounds begin, as with prompt
lookup and a rule that reads q, depends on the stop too.)
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from cascli.trace import StepCosts

Reading = Literal["best", "entropy", "chance"]


class Stopping:
    """Decides for the rounds of one answer; this base class always drafts as many tokens as it may.

    A subclass may change its state only in `most` and `learn`: calls made after a draft that is later rejected must
    leave no trace. (For a stop of another package, state changed by the other methods is discarded after each round.)
    """

    reads: ClassVar[Reading | None] = None
    """The number it decides by at each position, from the draft's distribution at temperature 1: the best probability
    or the entropy (nats), known before a token is drawn there; or the probability of the drawn token, known after.

    If None, a round's length is known at its start and its tokens are drafted in one call. Otherwise they are drafted
    one by one, which waits for a GPU once per token.
    """

    def __init_subclass__(cls, **more: object) -> None:
        """Reject a subclass whose methods would never be called: it would look like one that never stops.

        Raises:
            TypeError: `reads` is not a known reading, is missing, or does not go with the method that is defined.
        """
        super().__init_subclass__(**more)
        overridden = cls.before_step is not Stopping.before_step or cls.before_draw is not Stopping.before_draw
        known = (None, *get_args(Reading))
        if cls.reads not in known or (overridden and cls.reads is None):
            readings = ", ".join(map(repr, get_args(Reading)))
            raise TypeError(f"{cls.__qualname__}: reads must be one of {readings} (got {cls.reads!r})")
        if cls.reads == "chance" and overridden and cls.before_step is Stopping.before_step:
            raise TypeError(f"{cls.__qualname__}: with reads = 'chance', before_step is what is called")

    def most(self, n: int) -> int:
        """Number of tokens, at most `n`, that the next round may draft."""
        return n

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Whether the draft model makes another step; `drawn` is what was read at the tokens drawn so far."""
        del drawn
        return True

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Whether a token is drawn where `here` was read; not called if `reads` is the drawn token's probability."""
        del drawn, here
        return True

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        """Update from the outcome of a round.

        Args:
            seen: what was read at the positions of its kept drafts, and at the next position if it was read.
            kept: number of drafts that were kept.
            rejected: whether there was another draft, which was rejected.
        """


@dataclass(frozen=True)
class Stop(Stopping, ABC):
    """A stop plug-in; subclasses are frozen dataclasses whose fields are the stop's parameters.

    A stop that learns creates a separate `Stopping` for each answer in `begin`.
    """

    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_confidence: ClassVar[bool] = False
    """Whether it depends on the draft's confidence, which is the same for every one-hot draft."""
    needs_costs: ClassVar[bool] = False
    """Whether it uses the cost of the two models' steps."""

    def begin(self, costs: StepCosts | None) -> Stopping:
        """Return what decides for one answer; `costs` are given to a stop that needs them."""
        del costs
        return self
