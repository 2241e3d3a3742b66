"""What a stop is: it says, token by token, whether a round drafts on.

Output distributions do not notice it as long as it goes by what is known before the next token is drawn, and by nothing
that a token had a say in which was drawn and then thrown away: its position is drawn again with the same random
number. So a drawn token is always verified, and of a round that is over a stop is told what was read at the
positions of the round's own tokens, not how many drafts there were behind a rejected one.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from cascli.trace import StepCosts

Reading = Literal["best", "entropy", "chance"]


class Stopping:
    """Decides of the rounds of one answer; this one drafts as much as it may.

    One that remembers does so in `most` and `learn` alone: what it was asked behind a draft that did not stand must
    leave nothing behind. (What one of another package remembers of that is taken from it after each round.)
    """

    reads: ClassVar[Reading | None] = None
    """The number that it goes by at each position, of the draft's distribution at temperature 1: its best probability
    or its entropy (nats), known before a token is drawn there; or the probability of the drawn token, known after.

    Without one a round's length is known where it begins, and its tokens are drafted in one go; with one they are
    drafted one by one, and a GPU is waited for once a token.
    """

    def __init_subclass__(cls, **more: object) -> None:
        """Refuse one that would never be asked, which looks like one that never stops.

        Raises:
            TypeError: it goes by something that is not read, or says nothing of what it goes by.
        """
        super().__init_subclass__(**more)
        asked = cls.before_step is not Stopping.before_step or cls.before_draw is not Stopping.before_draw
        known = (None, *get_args(Reading))
        if cls.reads not in known or (asked and cls.reads is None):
            readings = ", ".join(map(repr, get_args(Reading)))
            raise TypeError(f"{cls.__qualname__}: reads must be one of {readings} (got {cls.reads!r})")
        if cls.reads == "chance" and asked and cls.before_step is Stopping.before_step:
            raise TypeError(f"{cls.__qualname__}: with reads = 'chance', before_step is what is called")

    def most(self, n: int) -> int:
        """How many tokens of at most `n` the next round may draft."""
        return n

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Whether the draft model makes another step, after tokens at which this was read."""
        del drawn
        return True

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Whether a token is drawn where `here` was read; not asked if it is the drawn token that is read."""
        del drawn, here
        return True

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        """Take in what a round has come to.

        Args:
            seen: what was read at the positions of its kept drafts, and at that of the token after them if it was.
            kept: how many drafts stand.
            rejected: whether there was one more, which does not.
        """


@dataclass(frozen=True)
class Stop(Stopping, ABC):
    """A plug-in; subclasses are frozen dataclasses whose fields are its parameters.

    One that learns has a `Stopping` of its own for each answer, which `begin` makes.
    """

    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_confidence: ClassVar[bool] = False
    """Whether it goes by how sure the draft is, which is the same for every draft that is one-hot."""
    needs_costs: ClassVar[bool] = False
    """Whether it goes by what steps of the two models cost."""

    def begin(self, costs: StepCosts | None) -> Stopping:
        """What decides of one answer; `costs` are known to one that needs them."""
        del costs
        return self
