"""What strategies are whose rounds are those of speculation; the rounds themselves are in `_speculation`. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cascli.calls import Calls, Write

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.rules import Rule
    from cascli.sampling import Sampling
    from cascli.session import Rehearses, Session
    from cascli.strategies.base import Role
    from cascli.trace import Round


class Speculating:
    """Rounds of k drafted tokens, judged by a rule."""

    k: int

    @property
    def judge(self) -> Rule:
        """What the drafted tokens are judged by."""
        raise NotImplementedError

    def calls(self, role: Role) -> Calls:
        """Those of rounds of k drafted tokens, fewer at the end of an answer."""
        rule = self.judge
        if role == "target":
            return Calls(reads=[(n, n) for n in range(self.k + 1, 0, -1)])
        # After a round whose drafts were all kept, a draft model that was not asked for the bonus has two to read.
        unread = (1,) if rule.reads_draft else (2, 1)
        blocks = [Write(m, self.k, rule.reads_draft) for m in unread]
        return Calls(writes=[*blocks, *(Write(m, 1) for m in unread)], reads_base=rule.reads_base)

    def rehearse(self, compute: Rehearses, sampling: Sampling, logits: Tensor) -> None:
        """Have the decision of a round recorded."""
        from cascli.strategies._speculation import rehearse

        rehearse(compute, self.judge, sampling, self.k, logits)

    def decode(self, s: Session) -> Iterator[Round]:
        """Rounds of speculation towards the rule's law."""
        from cascli.strategies._speculation import speculate

        yield from speculate(s, self.judge, self.k)
