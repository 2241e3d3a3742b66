"""The token-level cascade without speculation: the rule chooses which model writes each token.

At every position it samples from the same pi as the speculative cascade, whatever the rule. With a rule that reads p,
or that does not choose between the models, the target is called at every token, so the run is an oracle: it shows the
output distribution, not a saving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.models.calls import Calls, Role
from cascli.strategies.base import RuleStrategy
from cascli.trace import Detail, Emitted, Round, TurnedDown

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.session import Session


_MOST_CAPTURED = 4
"""Maximum number of draft tokens that the target reads in one captured call; more are read as a prompt is."""


@dataclass(frozen=True)
class TokenCascade(RuleStrategy):
    """The draft model writes a token, or the rule defers it to the target."""

    summary: ClassVar[str] = "the rule chooses which model writes each token, one at a time"
    formula: ClassVar[str] = "pi = T(q, p) of the rule; with a rule that reads p it is an oracle"
    source: ClassVar[str] = "Narasimhan et al. 2025, algorithms 2 and 3"
    lossless_when: ClassVar[str] = "when its rule is"

    @property
    def oracle(self) -> bool:
        """Whether the decision, or pi itself, needs the target at tokens where the saving would skip it."""
        return self.rule.reads_target or not self.rule.chooses or self.rule.thinking_only

    def calls(self, role: Role) -> Calls:
        """One token per call; the target also reads the tokens that the draft model wrote alone."""
        longest = _MOST_CAPTURED if role == "target" else 2
        return Calls(reads=[(n, 1) for n in range(longest, 0, -1)])

    def decode(self, s: Session) -> Iterator[Round]:
        """Yield one token per round."""
        step = self._oracle_step if self.oracle else self._step
        while not s.finished:
            emitted = step(s)
            yield Round(emitted=[emitted], seconds=s.clock.lap())

    def _step(self, s: Session) -> Emitted:
        """Run the draft model; run the target only if the rule defers the token that the draft model drew."""
        from cascli.decoding import detail
        from cascli.decoding.plugin_checks import applied, check_reads_target, deferred
        from cascli.sampling import distributions

        logits = s.draft.read(s.length)
        q, q1 = s.warp(logits), distributions.base(logits)
        ours = s.draw(q)
        defer = deferred(self.rule, distributions.Dists(q, q, q1, q1))
        if defer is None:
            raise TypeError(f"{self.rule}: a rule that does not choose between the models needs both")
        more = detail.of_one(s, ours, detail.Views(q1=q1))
        columns = s.fetch(_of_token(defer, ours), ours, distributions.at(q, ours), distributions.mass(q, defer), *more)
        defers, ids, at_q, mass = (column[0] for column in columns[:4])
        if not defers:
            s.append(ours)
            [seen] = detail.details(columns[4:], 1, s.spell)
            return Emitted(id=int(ids), text=s.spell(int(ids)), event="draft", q=at_q, deferral=mass, detail=seen)
        logits = s.target.read(s.length)
        p = s.warp(logits)
        check_reads_target(self.rule, distributions.Dists(q, p, q1, p), defer)
        token = _from_target(s, p, defer)
        s.append(token)
        # The rule reads q alone, so q1 may stand in for p1 in computing pi and its distance from p.
        tv = distributions.total_variation(applied(self.rule, distributions.Dists(q, p, q1, q1)), p)
        more = _numbers_of_detail(s, token, ours, q, p, q1, logits)
        columns = s.fetch(token, distributions.at(q, token), distributions.at(p, token), tv, *more)
        ids, at_q, at_p, tv_here = (column[0] for column in columns[:4])
        seen, instead = _details(s, columns[4:])
        return Emitted(
            id=int(ids),
            text=s.spell(int(ids)),
            event="target",
            q=at_q,
            p=at_p,
            tv=tv_here,
            deferral=mass,
            detail=seen,
            turned_down=instead,
        )

    def _oracle_step(self, s: Session) -> Emitted:
        """Run both models: the draft's token is used if the rule keeps it, else the target writes.

        If the rule does not choose between the models, the token is drawn from its pi; it counts as the draft model's
        if the draft model would have drawn the same token.
        """
        from cascli.decoding import thinking
        from cascli.sampling import distributions

        draft, target = s.draft.read(s.length), s.target.read(s.length)
        d = distributions.Dists.of_logits(draft, target, s.sampling)
        pi, defer = thinking.judged(self.rule, d, *thinking.where(s, self.rule, s.length, 1))
        ours = s.draw(d.q)
        if defer is None:
            token = s.draw(pi)
            defers = token != ours
            mass = d.q.new_zeros(1)
        else:
            defers = _of_token(defer, ours)
            token = _from_target(s, d.p, defer).where(defers, ours)
            mass = distributions.mass(d.q, defer)
        s.append(token)
        with s.clock.observing():
            distances = (
                distributions.total_variation(pi, d.p),
                distributions.total_variation(pi, d.q),
                distributions.total_variation(d.p, d.q),
                *distributions.divergence(pi, d.p),
                distributions.regret(target, token),
            )
        more = _numbers_of_detail(s, token, ours, d.q, d.p, d.q1, target)
        columns = s.fetch(
            token, defers, distributions.at(d.q, token), distributions.at(d.p, token), mass, *distances, *more
        )
        ids, theirs, at_q, at_p, deferral, tv, tv_to_draft, disagreement, kl, overshoot, regret = (
            column[0] for column in columns[:11]
        )
        seen, instead = _details(s, columns[11:])
        return Emitted(
            id=int(ids),
            text=s.spell(int(ids)),
            event="target" if theirs else "draft",
            q=at_q,
            p=at_p,
            tv=tv,
            tv_to_draft=tv_to_draft,
            disagreement=disagreement,
            kl=kl,
            overshoot=overshoot,
            regret=regret,
            deferral=None if defer is None else deferral,
            detail=seen,
            turned_down=instead if theirs else None,
        )


def _numbers_of_detail(
    s: Session, token: Tensor, ours: Tensor, q: Tensor, p: Tensor, q1: Tensor, logits: Tensor
) -> list[Tensor]:
    """The draft model's token, then both models' numbers for the written token `[1]` and for the draft model's.

    All distributions, and the target's logits, are `[1, V]`.
    """
    import torch

    from cascli.decoding import detail
    from cascli.sampling import distributions

    if not s.top:
        return []
    with s.clock.observing():
        views = detail.Views(q1, distributions.base(logits), distributions.total_variation(p, q))
        tokens = torch.cat([token, ours])
    return [ours, *detail.numbers(s, tokens, torch.zeros_like(tokens), views)]


def _details(s: Session, flat: Sequence[Sequence[float]]) -> tuple[Detail | None, TurnedDown | None]:
    """The token's detail, and the draft model's token; both None if no detail is recorded."""
    from cascli.decoding import detail

    if not flat:
        return None, None
    [[ours], *rest] = flat
    seen, instead = detail.details(rest, 2, s.spell)
    return seen, None if instead is None else TurnedDown(id=int(ours), text=s.spell(int(ours)), detail=instead)


def _of_token(defer: Tensor, token: Tensor) -> Tensor:
    """Whether a mask `[1, 1]` or `[1, V]` defers a token `[1]`, as a bool `[1]`."""
    return defer[0] if defer.shape[-1] == 1 else defer.gather(-1, token.unsqueeze(-1))[0]


def _from_target(s: Session, p: Tensor, defer: Tensor) -> Tensor:
    """The target's token `[1]`.

    If the decision depended on the drawn draft token, the target needs its own uniform. With a whole-distribution rule
    it did not, and sharing the position's uniform keeps runs comparable.
    """
    return s.draw(p) if defer.shape[-1] == 1 else s.draw_again(p)
