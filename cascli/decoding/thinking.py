"""Where a text is thinking: between two tokens that the pair defines, such as `<think>` and `</think>`.

A rule may apply only there (`where=thinking`); elsewhere pi = p. A position is inside if the last of the two tokens
before it is the opening one: the rule still applies to the closing token, but not to the opening one. The prompt
counts, since a chat template may already contain the opening token. Nothing is read back to the host.
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
    """Whether the rule applies at each of the last n positions, up to the one after `end` answer tokens: bool `[n]`.

    Drafted tokens in the session's text count. An empty tuple for a rule that applies everywhere.

    Raises:
        ValueError: the session has no such tokens; the engine refuses to start one.
    """
    if not rule.thinking_only:
        return ()
    if s.thinking is None:
        raise ValueError(f"{rule}: no tokens between which the text thinks")
    return (inside(s.text[:end], opened(s.prompt_ids, s.thinking), s.thinking)[-n:],)


def inside(text: Tensor, before: bool, tokens: tuple[int, int]) -> Tensor:
    """Whether each position of a text `[m]`, and the one after it, is between the two tokens: bool `[m + 1]`.

    Args:
        text: token ids.
        before: whether the first position is.
        tokens: the opening and the closing token.
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
    """A rule's pi `[n, V]` and what it defers; where `holds` (`[n]` or more) is false, pi = p and all is deferred."""
    pi, deferred = decided(rule, d)
    if holds is None:
        return pi, deferred
    outside = ~holds[: pi.shape[0]].unsqueeze(1)
    return d.p.where(outside, pi), None if deferred is None else deferred | outside[: deferred.shape[0]]
