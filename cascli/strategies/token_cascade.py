"""The token-level cascade without speculation: at each token the rule chooses who writes it.

Its law at every position is the very pi that the speculative cascade samples from, whatever the rule. With a rule that
reads p, or that is no choice between the models, the target is asked at every token, so such a run is an oracle: it
shows the law, not a saving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.models.calls import Calls, Role
from cascli.strategies.base import RuleStrategy
from cascli.trace import Emitted, Round

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.session import Session


_FEW = 4
"""Tokens of the draft model that the target catches up with in one captured call; more are read as a prompt is."""


@dataclass(frozen=True)
class TokenCascade(RuleStrategy):
    """The draft model writes a token, or the rule defers it to the target."""

    summary: ClassVar[str] = "the rule chooses the writer of each token, one after the other"
    formula: ClassVar[str] = "pi = T(q, p) of the rule; with a rule that reads p it is an oracle"
    source: ClassVar[str] = "Narasimhan et al. 2025, algorithms 2 and 3"
    lossless_when: ClassVar[str] = "as the rule"

    @property
    def oracle(self) -> bool:
        """Whether the decision, or the law itself, needs the target where the saving would do without."""
        return self.rule.reads_target or not self.rule.chooses

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
        """Ask the draft model; ask the target only if the rule defers the token that the draft model drew."""
        from cascli.sampling import distributions

        logits = s.draft.read(s.length)
        q, q1 = s.warp(logits), distributions.base(logits)
        token = s.draw(q)
        defer = self.rule.deferred(distributions.Dists(q, q, q1, q1))
        if defer is None:
            raise TypeError(f"{self.rule}: a rule that is no choice between the models needs both")
        columns = s.fetch(_of_token(defer, token), token, distributions.at(q, token), (q * defer).sum(dim=-1))
        defers, ids, at_q, mass = (column[0] for column in columns)
        if not defers:
            s.append(token)
            return Emitted(id=int(ids), text=s.spell(int(ids)), event="draft", q=at_q, deferral=mass)
        p = s.warp(s.target.read(s.length))
        token = _from_target(s, p, defer)
        s.append(token)
        # The rule looks at q alone, so that what it says of both is known now: pi, and how far it is from p.
        tv = distributions.total_variation(self.rule.apply(distributions.Dists(q, p, q1, q1)), p)
        ids, at_q, at_p, tv_here = (
            column[0] for column in s.fetch(token, distributions.at(q, token), distributions.at(p, token), tv)
        )
        return Emitted(
            id=int(ids),
            text=s.spell(int(ids)),
            event="target",
            q=at_q,
            p=at_p,
            tv=tv_here,
            deferral=mass,
        )

    def _oracle_step(self, s: Session) -> Emitted:
        """Ask both models: the draft's token stands if the rule keeps it, else the target writes.

        A rule that is no such choice gives a distribution of its own, which the token is drawn from; it counts as the
        draft model's if that would have drawn the same one.
        """
        from cascli.sampling import distributions

        draft, target = s.draft.read(s.length), s.target.read(s.length)
        d = distributions.Dists(s.warp(draft), s.warp(target), distributions.base(draft), distributions.base(target))
        pi, defer = self.rule.apply(d), self.rule.deferred(d)
        ours = s.draw(d.q)
        if defer is None:
            token = s.draw(pi)
            defers = token != ours
            mass = d.q.new_zeros(1)
        else:
            defers = _of_token(defer, ours)
            token = _from_target(s, d.p, defer).where(defers, ours)
            mass = (d.q * defer).sum(dim=-1)
        s.append(token)
        tv = distributions.total_variation(pi, d.p)
        columns = s.fetch(token, defers, distributions.at(d.q, token), distributions.at(d.p, token), tv, mass)
        ids, theirs, at_q, at_p, tv_here, deferral = (column[0] for column in columns)
        return Emitted(
            id=int(ids),
            text=s.spell(int(ids)),
            event="target" if theirs else "draft",
            q=at_q,
            p=at_p,
            tv=tv_here,
            deferral=None if defer is None else deferral,
        )


def _of_token(defer: Tensor, token: Tensor) -> Tensor:
    """Whether `[1]` a mask `[1, 1]` or `[1, V]` defers a token `[1]`."""
    return defer[0] if defer.shape[-1] == 1 else defer.gather(-1, token.unsqueeze(-1))[0]


def _from_target(s: Session, p: Tensor, defer: Tensor) -> Tensor:
    """The target's token `[1]`.

    Where the rule looked at the drawn draft token, the target needs a uniform of its own; a whole-distribution rule did
    not, and sharing the position's uniform keeps runs comparable.
    """
    return s.draw(p) if defer.shape[-1] == 1 else s.draw_again(p)
