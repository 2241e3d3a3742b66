"""Base class of drafters, which propose the tokens that the target checks and return the distributions they come from.

Drafters do not import torch when loaded, so that the command line can list and check them quickly.
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
    """Whether it uses the pair's draft model; a pair without one can use the other drafters."""
    cost: ClassVar[float] = 0.0
    """Draft model steps per drafted token."""
    on_host: ClassVar[bool] = True
    """Whether it reads the text on the host; each token is then copied there as soon as it is drawn."""
    one_hot: ClassVar[bool] = False
    """Whether q is certain of one token; rules that read the draft's confidence are then rejected."""
    by_prefix: ClassVar[bool] = True
    """Whether q depends only on the text before a position.

    If it also depends on where the round began, so does the output distribution of a rule that is not lossless.
    """

    @property
    def remembers(self) -> int:
        """Number of the same strategy's earlier texts (prompt and answer) that it searches for drafts."""
        return 0

    @property
    def exit_layers(self) -> int | None:
        """Number of the target's first layers that it drafts with; None if it drafts with something else."""
        return None

    def calls(self, rule: Rule, k: int) -> Calls:
        """The calls it will make to the draft model in rounds of at most k tokens; none by default."""
        del rule, k
        return Calls()

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """The runners of the session's cursors: the pair's own, unless it drafts with a part of the target."""
        return {role: pair.runner(role) for role in ROLES}

    @abstractmethod
    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        """Draft at most `n` tokens after the answer so far.

        Args:
            s: the session, whose text must not be changed.
            n: 0 or more.
            rule: needs q after the last token if it `reads_draft`, and q at temperature 1 if it `reads_base`.

        Returns:
            The tokens and the exact distributions they were drawn from, with one more row for the position after them
            if the rule reads q and there is a proposal for that position. Without tokens, the round is a single step
            of the target.
        """
