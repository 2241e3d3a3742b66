"""Drafting token by token, with a stop that decides whether to draft another.

This works with any drafter: it is called for its proposal after the answer and the tokens drafted so far, and a token
is drawn from the proposal if the stop allows it. A step of a captured draft model is one replay. The number that the
stop uses reaches the host in one transfer per step, which the next step waits for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cascli.decoding.session import Session
from cascli.rules.base import Rule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.stops.base import Stopping

Look = Callable[[Session], tuple[Tensor, Tensor]]
"""The proposal after the session's text: q and q1, `[1, V]`, or `[0, V]` if nothing is proposed."""


ReadLast = bool | Literal["if seen"]
"""Whether q is also wanted after the last token; "if seen": only if the stop has read it there."""


@dataclass(frozen=True)
class DistributionOnly(Rule):
    """Not a deferral rule: passed to a drafter to get q alone, where no token is drafted."""

    reads_target: ClassVar[bool] = False
    capturable: ClassVar[bool] = False
    """The drafter's result stays valid after its next call."""

    def apply(self, d: Dists) -> Tensor:
        """Follow the draft."""
        return d.q


@dataclass(frozen=True)
class TokensOnly(DistributionOnly):
    """Not a deferral rule: passed to a drafter to get tokens alone, without q after the last one."""

    reads_draft: ClassVar[bool] = False
    reads_base: bool = True  # type: ignore[misc]  # per instance, not per class
    capturable: ClassVar[bool] = True


class Steps(NamedTuple):
    """n drafted tokens, and what was read while drafting them."""

    tokens: Tensor
    """`[n]`."""
    q: Tensor
    """`[n, V]`, or `[n + 1, V]` if the position after them is known too; float32."""
    q1: Tensor
    """`q` at temperature 1."""
    seen: list[float]
    """What the stop has read: a number per token, and one for the next position if it refused a draw there."""


def by_steps(s: Session, n: int, look: Look, stopping: Stopping, *, read_last: ReadLast, on_host: bool = True) -> Steps:
    """Draft up to n tokens, until the stop ends the draft or nothing is proposed.

    Args:
        s: the session; its text beyond the answer is overwritten.
        n: 0 or more.
        look: calls the drafter.
        stopping: decides whether to draft on.
        read_last: whether q is wanted after the last token.
        on_host: whether the drafter reads the text on the host; each token is then transferred as soon as it is drawn.
    """
    u, ahead, seen = s.uniforms.draw(s.length, n), copy.copy(s), list[float]()
    nothing = s.text.new_zeros((0, s.vocab), dtype=torch.float32)
    tokens, rows = [s.text[:0]], [(nothing, nothing)]
    for i in range(n):
        if not stopping.before_step(seen):
            break
        rows.append(look(ahead))
        q, q1 = rows[-1]
        if not q.shape[0] or not _is_drawn(s, stopping, seen, q1):
            break
        token = distributions.sample(q, u[i : i + 1])
        if stopping.reads == "chance":
            seen += s.fetch(distributions.at(q1, token))[0]
        tokens.append(token)
        s.text[ahead.length] = token[0]
        ahead.length += 1
        if on_host:
            ahead.answer_ids = [*ahead.answer_ids, int(token)]
    if read_last is True and len(rows) == len(tokens):  # not read yet
        rows.append(look(ahead))
    last = len(tokens) - 1 + bool(read_last)
    probs, base = (torch.cat(each)[:last] for each in zip(*rows, strict=True))
    return Steps(torch.cat(tokens), probs, base, seen)


def _is_drawn(s: Session, stopping: Stopping, seen: list[float], q1: Tensor) -> bool:
    """Whether the stop allows a draw from the distribution with base `q1`; what it reads of it is added to `seen`."""
    if stopping.reads not in ("best", "entropy"):
        return True
    number = q1.amax(dim=-1) if stopping.reads == "best" else torch.special.entr(q1).sum(dim=-1)
    before, here = list(seen), s.fetch(number)[0]
    seen += here
    return stopping.before_draw(before, here[0])
