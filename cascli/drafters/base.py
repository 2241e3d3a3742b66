"""What a drafter is: it proposes the tokens that the target checks, and says what distributions they come from.

Drafters import no torch when loaded, so that the command line can list and check them at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.models.calls import ROLES, Calls, Role

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block
    from cascli.models.pair import Pair
    from cascli.models.runner import Runner
    from cascli.rules.base import Rule


@dataclass(frozen=True)
class Drafter(ABC):
    """A source of drafted tokens; subclasses are frozen dataclasses whose fields are the drafter's parameters."""

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False
    """Whether it asks the pair's draft model; a pair without one can use the other drafters."""
    cost: ClassVar[float] = 0.0
    """Steps of the draft model that a drafted token takes."""
    on_host: ClassVar[bool] = True
    """Whether it reads the text on the host, to which a token then goes as soon as it is drawn."""
    one_hot: ClassVar[bool] = False
    """Whether q is certain of one token: then rules that read the draft's confidence are refused."""
    by_prefix: ClassVar[bool] = True
    """Whether q depends on the text before a position alone.

    Where it depends on where the round began too, so does the output distribution of a rule that is not lossless.
    """

    @property
    def remembers(self) -> int:
        """In how many texts that the same strategy has read and written before it looks for drafts."""
        return 0

    def calls(self, rule: Rule, k: int) -> Calls:
        """What it will ask of the draft model in rounds of at most k tokens; nothing unless it needs one."""
        del rule, k
        return Calls()

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """What the session's cursors read with: the pair's own runners, unless it drafts with a part of the target."""
        return {role: pair.runner(role) for role in ROLES}

    @abstractmethod
    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        """Draft at most `n` tokens after the answer so far.

        Args:
            s: the session, whose text must not be changed.
            n: 0 or more.
            rule: looks at q after the last token if it `reads_draft`, and at q at temperature 1 if it `reads_base`.

        Returns:
            The tokens, and the very distributions that they were drawn from; a row more for the position after them
            if the rule reads q and there is a proposal for that position. No token at all makes a step of the target.
        """
