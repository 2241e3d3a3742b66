"""Where a text thinks: between two tokens of the pair's, such as `<think>` and `</think>`.

A rule may hold there alone (`where=thinking`), and elsewhere pi = p. A position is inside if of the two tokens the last
one before it opened: the token that closes is still drawn as the rule says, the one that opens is not. The prompt
counts, since a chat template may have opened already. Nothing is read back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cascli.decoding.plugin_checks import decided
from cascli.rules.base import Rule
from cascli.sampling.distributions import Dists

if TYPE_CHECKING:
    from cascli.decoding.session import Session


def where(s: Session, rule: Rule, end: int, n: int) -> tuple[Tensor, ...]:
    """Whether `[n]` (bool) the rule holds at the last n positions up to that after `end` tokens of the answer.

    Drafted tokens in the session's text count. Empty for a rule that holds everywhere.

    Raises:
        ValueError: the session has no such tokens; the engine refuses to begin it.
    """
    if not rule.thinking_only:
        return ()
    if s.thinking is None:
        raise ValueError(f"{rule}: no tokens between which the text thinks")
    return (inside(s.text[:end], opened(s.prompt_ids, s.thinking), s.thinking)[-n:],)


def inside(text: Tensor, before: bool, tokens: tuple[int, int]) -> Tensor:
    """Whether `[m + 1]` each position of a text `[m]`, and that after it, is between the two tokens.

    Args:
        text: token ids.
        before: whether the first position is.
        tokens: opening and closing one.
    """
    opening, closing = tokens
    seen = torch.cat([text.new_full((1,), opening if before else closing), text])
    marks = (seen == opening) | (seen == closing)
    last = (marks * torch.arange(seen.shape[0], device=seen.device)).cummax(dim=0).values
    return seen[last] == opening


def opened(ids: Sequence[int], tokens: tuple[int, int]) -> bool:
    """Whether a text ends between the two tokens."""
    return next((token for token in reversed(ids) if token in tokens), None) == tokens[0]


def judged(rule: Rule, d: Dists, holds: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """pi `[n, V]` of a rule, and what it defers; where it does not hold (`[n]` or more) pi is p, all is deferred."""
    pi, deferred = decided(rule, d)
    if holds is None:
        return pi, deferred
    outside = ~holds[: pi.shape[0]].unsqueeze(1)
    return d.p.where(outside, pi), None if deferred is None else deferred | outside[: deferred.shape[0]]
