"""Checks of what third-party plug-ins return, before it is used: a mistake must not silently change the output law.

cascli's own plug-ins are not checked here: tests cover their laws. On a GPU values are not checked, since reading them
would synchronise.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from cascli.blame import label
from cascli.errors import RunError, raised
from cascli.plugins import is_own
from cascli.rules.base import Rule
from cascli.sampling.distributions import Dists, total_variation
from cascli.stops.base import Reading, Stop, Stopping
from cascli.trace import FinishReason, Handover, Round, StepCosts

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block, Propose

SLACK = 1e-3
"""How far the sum of a position's probabilities may be from 1; float32 rounding over 260,000 of them is far less."""


# ---- rules


def given(rule: Rule, d: Dists) -> Dists:
    """The distributions passed to a rule; a third-party rule gets copies, which it may write to.

    On a CPU, one that declares `reads_draft = False` gets NaN in place of the draft's distributions.
    """
    if is_own(rule):
        return d
    parts = [each.clone() for each in d]
    if not (rule.reads_draft or d.q.is_cuda):
        parts[0], parts[2] = (torch.full_like(d.p, torch.nan) for _ in range(2))
    shown = type(d)(*parts)
    if extra := getattr(d, "__dict__", None):  # of a subclass with more, such as entropies over the whole vocabulary
        shown.__dict__.update(extra)
    return shown


def applied(rule: Rule, d: Dists) -> Tensor:
    """A rule's pi `[n, V]`, checked if the rule is third-party.

    Raises:
        RunError: pi has the wrong shape or is not a distribution.
    """
    pi = rule.apply(given(rule, d))
    if is_own(rule):
        return pi
    _check(f"{label(rule)}: pi", pi, d.p.shape)
    return pi


def decided(rule: Rule, d: Dists) -> tuple[Tensor, Tensor | None]:
    """A rule's pi `[n, V]`, and what it defers if it chooses between the models: bool `[n, 1]` or `[n, V]`, else None.

    Raises:
        RunError: pi is not a distribution, or not the one that the choice between both models gives.
    """
    pi, defer = applied(rule, d), rule.deferred(given(rule, d))
    if is_own(rule):
        return pi, defer
    return pi, _checked_choice(rule, d, pi, defer)


def deferred(rule: Rule, d: Dists) -> Tensor | None:
    """What a rule defers, as in `decided`, without computing pi.

    Raises:
        RunError: it has the wrong shape or type.
    """
    defer = rule.deferred(given(rule, d))
    if defer is not None and not is_own(rule):
        _check_mask(rule, defer, d.q.shape)
    return defer


def _check_mask(rule: Rule, defer: Tensor, shape: torch.Size) -> None:
    if not isinstance(defer, Tensor) or defer.dtype != torch.bool or defer.shape not in ((*shape[:-1], 1), shape):
        actual = f"{[*defer.shape]} of {defer.dtype}" if isinstance(defer, Tensor) else type(defer).__name__
        raise RunError(f"{label(rule)}: deferred must be bool [n, 1] or [n, V] (got {actual}).")


def _checked_choice(rule: Rule, d: Dists, pi: Tensor, defer: Tensor | None) -> Tensor | None:
    """Return what a choice defers, after checking that it is consistent with pi: the two come from separate calls."""
    if not rule.chooses:
        return None
    if defer is None:
        raise RunError(f"{label(rule)}: it chooses between the models, but deferred returns None.")
    _check_mask(rule, defer, d.q.shape)
    if pi.is_cuda:
        return defer
    if defer.shape[-1] == 1:
        chosen = d.p.where(defer, d.q)
    else:
        chosen = d.q * ~defer + d.p * (d.q * defer).sum(dim=-1, keepdim=True)
    if pi.numel() and float(total_variation(chosen, pi).max()) > SLACK:
        raise RunError(
            f"{label(rule)}: pi is not what deferred makes of both models. The two must agree on the same input;"
            " a pi of its own needs chooses = False."
        )
    return defer


def check_reads_target(rule: Rule, d: Dists, before: Tensor) -> None:
    """Check that a third-party rule with `reads_target = False` defers the same with the target as without it.

    Raises:
        RunError: it does not; `before` is what it deferred with the draft's distribution in place of the target's.
    """
    if is_own(rule) or before.is_cuda:
        return
    now = deferred(rule, d)
    if now is None or not torch.equal(now, before):
        raise RunError(f"{label(rule)}: reads_target is False, but what it defers changes with p.")


# ---- drafters


def proposing(drafter: object, propose: Propose) -> Propose:
    """A drafter's `propose`; a third-party drafter's is wrapped to check each block.

    Raises:
        RunError: when called: tokens or q have the wrong shape, q is not a distribution or gives a drafted token
            probability 0, or the drafter has changed the text.
    """
    if is_own(drafter):
        return propose

    def checked(s: Session, n: int, rule: Rule) -> Block:
        start, ids = s.length, [*s.answer_ids]
        text = None if s.text.is_cuda else s.text[:start].clone()
        block = propose(s, n, rule)
        if s.length != start or [*s.answer_ids] != ids or (text is not None and not torch.equal(s.text[:start], text)):
            raise RunError(f"{label(drafter)}: has changed the answer so far, which belongs to the engine.")
        _check_block(label(drafter), block, n, s.vocab)
        return block

    return checked


def _check_block(name: str, block: Block, n: int, vocab: int) -> None:
    tokens, q, q1 = (getattr(block, part, None) for part in ("tokens", "q", "q1"))
    if not (isinstance(tokens, Tensor) and isinstance(q, Tensor) and isinstance(q1, Tensor)):
        raise RunError(f"{name}: expected a Block of three tensors: tokens, q, q1 (got {type(block).__name__}).")
    drafted = tokens.shape[0] if tokens.dim() == 1 else n + 1
    if drafted > n or tokens.dtype != torch.long:
        raise RunError(f"{name}: tokens must be int64 and at most [{n}] (got {[*tokens.shape]} of {tokens.dtype}).")
    expected = torch.Size((min(max(q.shape[0] if q.dim() else 0, drafted), drafted + 1), vocab))
    for what, values in {"q": q, "q1": q1}.items() if q1 is not q else [("q", q)]:
        _check(f"{name}: {what}", values, expected)
    if drafted and not q.is_cuda:
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
            raise RunError(f"{name}: a drafted id is outside the vocabulary of {vocab} tokens.")
        if not bool((q[:drafted].gather(1, tokens.unsqueeze(1)) > 0).all()):
            raise RunError(f"{name}: a drafted token has probability 0 in its own q.")


def _check(what: str, values: Tensor, shape: torch.Size) -> None:
    if not isinstance(values, Tensor):
        raise RunError(f"{what} must be a tensor (got {type(values).__name__}).")
    if values.shape != shape:
        raise RunError(f"{what} must have shape {list(shape)} (got {list(values.shape)}).")
    if values.dtype == torch.bool or values.is_complex():
        raise RunError(f"{what} must be probabilities (got {values.dtype}).")
    if values.is_cuda or not values.numel():
        return
    if not bool(torch.isfinite(values).all()):
        hint = " (with reads_draft = False a rule sees NaN for q, q1)" if what.startswith("the rule") else ""
        raise RunError(f"{what} has values that are not finite{hint}.")
    low, error = float(values.min()), float((values.sum(dim=-1) - 1).abs().max())
    if low < -SLACK:
        raise RunError(f"{what} has negative values (down to {low:.3g}): expected probabilities.")
    if error > SLACK:
        raise RunError(f"{what} is not a distribution: its sum is {error:.3g} away from 1.")


# ---- stops


def beginning(stop: Stop, costs: StepCosts | None) -> Stopping:
    """The `Stopping` for one answer; a third-party one is checked, and wrapped so that it forgets what it must.

    Raises:
        RunError: it is not a Stopping.
    """
    begun = stop.begin(costs)
    if is_own(stop):
        return begun
    if not isinstance(begun, Stopping):
        raise RunError(f"{label(stop)}: begin must return a Stopping (got {type(begun).__name__}).")
    if begun.reads != stop.reads:
        raise RunError(
            f"{label(stop)}: what begin returned reads {begun.reads!r}, but the stop declares {stop.reads!r}; both must"
            " declare the same."
        )
    return _Checked(label(stop), begun)


class _Checked(Stopping):
    """A third-party stop; calls during a draft go to a copy that is discarded after the round.

    Otherwise what it read after a rejected draft could influence where the next round ends, and the answer would no
    longer follow pi.
    """

    reads: ClassVar[Reading | None] = "best"

    def __init__(self, name: str, original: Stopping) -> None:
        self._name, self._original, self._during_draft = name, original, original
        self.reads = original.reads  # type: ignore[misc]  # that of the wrapped stop

    def most(self, n: int) -> int:
        most = self._original.most(n)
        if isinstance(most, bool) or not hasattr(most, "__index__"):
            raise RunError(f"{self._name}: most must return a whole number (got {most!r}).")
        if self.reads is not None:
            self._during_draft = self._copy()
        return operator.index(most)

    def _copy(self) -> Stopping:
        try:
            return copy.deepcopy(self._original)
        except Exception as error:
            raise RunError(
                f"{self._name}: each draft uses a copy, which a rejection discards, but it cannot be copied"
                f" ({raised(error)})."
            ) from None

    def before_step(self, drawn: Sequence[float]) -> bool:
        return self._bool("before_step", self._during_draft.before_step([*drawn]))

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        return self._bool("before_draw", self._during_draft.before_draw([*drawn], here))

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        self._original.learn([*seen], kept, rejected=rejected)

    def _bool(self, what: str, answer: object) -> bool:
        answer = answer.item() if hasattr(answer, "item") else answer  # numpy or torch
        if not isinstance(answer, bool):
            raise RunError(f"{self._name}: {what} must return True or False (got {answer!r}).")
        return answer


# ---- strategies


def rounds(strategy: object, s: Session, decoded: object, *, most: int, tentative: bool) -> Iterator[Round | Handover]:
    """Yield the rounds of a strategy; those of a third-party one are checked against the session's text.

    Args:
        strategy: the strategy.
        s: its session.
        decoded: what its `decode` returned.
        most: maximum number of drafted tokens per round, from its parameter `k`.
        tentative: whether its first answer may be withdrawn.

    Raises:
        RunError: an item is not a round, adds no token or too many, has tokens other than those that were appended or
            a number out of range; or there are no more rounds although the answer has not ended.
    """
    if is_own(strategy):
        yield from decoded  # type: ignore[misc]
        return
    name = label(strategy)
    if not hasattr(decoded, "__iter__"):
        raise RunError(f"{name}: decode must yield rounds (it returned {type(decoded).__name__}).")
    decided, reason = not tentative, s.finish_reason
    for item in decoded:
        _check_reason(name, s, reason)
        if isinstance(item, Handover):
            if decided:
                raise RunError(f"{name}: a Handover may come only once, and only from a tentative strategy.")
            decided = True
        else:
            _check_round(name, s, item, most)
        yield item
        reason = s.finish_reason
    _check_reason(name, s, reason)
    if not decided:
        raise RunError(f"{name}: is tentative, but has yielded no Handover.")
    if not s.finished:
        raise RunError(f"{name}: decode ended before the answer did; it must go on until s.finished.")


def _check_reason(name: str, s: Session, reason: FinishReason | None) -> None:
    """Check that only the engine has ended the answer; an answer that is written again has not ended."""
    if s.finish_reason not in (reason, None):
        raise RunError(f"{name}: has set s.finish_reason, which belongs to the engine.")


def _check_round(name: str, s: Session, item: object, most: int) -> None:
    if not isinstance(item, Round):
        raise RunError(f"{name}: decode must yield rounds (it yielded {type(item).__name__}).")
    start, ids = len(s.answer_ids), [token.id for token in item.emitted]
    if s.finished:
        raise RunError(f"{name}: another round after s.finished was true.")
    if not ids:
        raise RunError(f"{name}: a round must add a token.")
    if len(ids) > s.max_new_tokens - start:
        left = s.max_new_tokens - start
        raise RunError(f"{name}: a round of {len(ids)} tokens, but s.remaining was {left}.")
    if not all(0 <= each < s.vocab for each in ids):
        raise RunError(f"{name}: an emitted id is outside the vocabulary of {s.vocab} tokens.")
    text = s.text[: s.length]
    if s.length != start + len(ids) or (not text.is_cuda and text.tolist() != [*s.answer_ids, *ids]):
        raise RunError(f"{name}: the tokens of a round must be those appended to the session's text.")
    if len(item.drafted) > most:
        raise RunError(f"{name}: a round of {len(item.drafted)} drafted tokens, but its parameter k allows {most}.")
    passed = [token.id for token in item.drafted if token.accepted]
    if passed != [token.id for token in item.emitted if token.event == "accepted"]:
        raise RunError(f"{name}: the accepted drafts of a round differ from its tokens of event 'accepted'.")
    for each in (*item.drafted, *item.emitted):
        _check_numbers(name, s, each.model_dump(include={*_SHARES, *_AMOUNTS}))


_SHARES = ("q", "p", "pi", "accept_prob", "tv", "tv_to_draft", "disagreement", "deferral")
_AMOUNTS = ("kl", "overshoot", "regret")


def _check_numbers(name: str, s: Session, numbers: dict[str, float | None]) -> None:
    for key, value in numbers.items():
        if value is None:
            continue
        if not (value >= -SLACK and (key in _AMOUNTS or value <= 1 + SLACK)):
            bounds = "0 or more" if key in _AMOUNTS else "between 0 and 1"
            raise RunError(f"{name}: {key} = {value:g} for a token; expected a number {bounds} or None.")
        if key in ("tv", "kl", "regret") and not s.target.passes:
            raise RunError(f"{name}: reports {key} to the target without calling it; use None for what is not known.")
