"""The token-level cascade without speculation: at each token the rule chooses who writes it.

Its law at every position is the very pi that the speculative cascade samples from. With a rule that
reads p the target is asked at every token, so such a run is an oracle: it shows the law, not a saving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.calls import Calls
from cascli.strategies.base import Role, RuleStrategy
from cascli.trace import Emitted, Round

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.dists import Dists
    from cascli.session import Session


_FEW = 4
"""Tokens of the draft model that the target catches up with in one recorded call; more are read as a prompt is."""


@dataclass(frozen=True)
class TokenCascade(RuleStrategy):
    """The draft model writes a token, or the rule defers it to the target."""

    summary: ClassVar[str] = "the rule chooses the writer of each token, one after the other"
    formula: ClassVar[str] = "pi = T(q, p) of the rule; with a rule that reads p it is an oracle"
    source: ClassVar[str] = "Narasimhan et al. 2025, algorithms 2 and 3"
    lossless_when: ClassVar[str] = "as the rule"

    @property
    def oracle(self) -> bool:
        """Whether the decision needs the target's distribution, which the saving would do without."""
        return self.rule.reads_target

    def calls(self, role: Role) -> Calls:
        """A token a call; the target also catches up with what the draft model wrote alone."""
        longest = _FEW if role == "target" else 2
        return Calls(reads=[(n, 1) for n in range(longest, 0, -1)])

    def decode(self, s: Session) -> Iterator[Round]:
        """One token a round."""
        step = self._oracle_step if self.oracle else self._step
        while not s.finished:
            emitted = step(s)
            yield Round(emitted=[emitted], seconds=s.clock.lap())

    def _step(self, s: Session) -> Emitted:
        """Ask the draft model; ask the target only if the rule defers."""
        from cascli import dists

        logits = s.draft.read(s.length)
        q, q1 = s.warp(logits), dists.base(logits)
        token = s.draw(q)
        defer = self.rule.apply(dists.Dists(q, q, q1, q1)).defer
        (defers, ids, at_q) = s.fetch(defer, token, dists.at(q, token))
        if not defers[0]:
            s.append(token)
            return Emitted(id=int(ids[0]), text=s.spell(int(ids[0])), event="draft", q=at_q[0], deferral=0.0)
        p = s.warp(s.target.read(s.length))
        token = s.draw(p)
        s.append(token)
        (ids, at_q, at_p) = s.fetch(token, dists.at(q, token), dists.at(p, token))
        return Emitted(
            id=int(ids[0]),
            text=s.spell(int(ids[0])),
            event="target",
            q=at_q[0],
            p=at_p[0],
            tv=0.0,
            deferral=1.0,
        )

    def _oracle_step(self, s: Session) -> Emitted:
        """Ask both models: the draft's token stands if the rule keeps it, else the target writes."""
        from cascli import dists

        draft, target = s.draft.read(s.length), s.target.read(s.length)
        d = dists.Dists(s.warp(draft), s.warp(target), dists.base(draft), dists.base(target))
        pi, defer = self.rule.apply(d)
        token, defers = _choose(s, d, defer)
        s.append(token)
        tv, mass = dists.total_variation(pi, d.p), (d.q * defer).sum(dim=-1)
        columns = s.fetch(token, defers, dists.at(d.q, token), dists.at(d.p, token), tv, mass)
        ids, deferred, at_q, at_p, tv_here, deferral = (column[0] for column in columns)
        return Emitted(
            id=int(ids),
            text=s.spell(int(ids)),
            event="target" if deferred else "draft",
            q=at_q,
            p=at_p,
            tv=tv_here,
            deferral=deferral,
        )


def _choose(s: Session, d: Dists, defer: Tensor) -> tuple[Tensor, Tensor]:
    """The token `[1]` and whether the target wrote it.

    A token rule looks at the drawn draft token, so the target then needs a uniform of its own; a
    whole-distribution rule does not, and sharing the position's uniform keeps runs comparable.
    """
    ours = s.draw(d.q)
    if defer.shape[-1] == 1:
        defers, theirs = defer[0], s.draw(d.p)
    else:
        defers = defer.gather(-1, ours.unsqueeze(-1))[0]
        theirs = s.draw_again(d.p)
    return theirs.where(defers, ours), defers
