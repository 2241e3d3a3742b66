"""How far a strategy's output distribution is from both models, and what that buys. No torch.

At one position TV(pi, q) + TV(pi, p) >= TV(p, q), with equality iff pi is between p and q for every token: rejections
and distance from the target trade one for one, and any excess is waste. Summed over the positions of an answer,
KL(pi || p) is an unbiased estimate of the KL between the laws of whole answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cascli.trace import Distances, Drafted, Round

LOSSLESS_TOLERANCE = 1e-6
"""Largest TV(pi, p) that is attributed to float32 rounding; pi = p gives exactly 0."""
THREE_WAY_SUMS = ("tv_to_target", "tv_to_draft", "disagreement")
"""Fields that are sums over positions where all three distributions are known."""
HEAD_SHARE = 0.2
"""Share of the target's best probability below which a token is outside the head of its distribution."""


def distances(rounds: Sequence[Round]) -> Distances | None:
    """Return the distances of one run; None if nothing is known at any position."""
    emitted = [token for round_ in rounds for token in round_.emitted]
    complete = [token for token in emitted if None not in (token.tv, token.tv_to_draft, token.disagreement)]
    known = [token for token in emitted if token.kl is not None]
    if not known:
        return None
    kls = [token.kl or 0.0 for token in known]
    kept = [token for round_ in rounds for token in round_.drafted if token.accepted]
    tested = all(token.exact is not None for token in kept)
    regrets = [token.regret for round_ in rounds for token in round_.emitted if token.event == "accepted"]
    return Distances(
        positions=len(complete),
        tv_to_target=_sum(token.tv for token in complete),
        tv_to_draft=_sum(token.tv_to_draft for token in complete),
        disagreement=_sum(token.disagreement for token in complete),
        tokens=len(known),
        kl=math.fsum(kl for kl in kls if math.isfinite(kl)),
        infinite=sum(math.isinf(kl) for kl in kls),
        max_tv=max(token.tv or 0.0 for token in known),
        overshoot=max(token.overshoot or 0.0 for token in known),
        regret=_sum(token.regret for token in known),
        kept_drafts=len(kept) if tested else None,
        out_of_head=sum(map(_out_of_head, kept, regrets)) if tested else None,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None if there are no values, or one is unknown."""
    known = list(values)
    return math.fsum(value for value in known if value is not None) if known and None not in known else None


def _out_of_head(token: Drafted, regret: float | None) -> bool:
    return not token.exact and regret is not None and math.exp(-regret) < HEAD_SHARE


def total(parts: Iterable[Distances | None]) -> Distances | None:
    """Combine the distances of several runs; None if one of them has none."""
    several = list(parts)
    known = [each for each in several if each is not None]
    if not known or len(known) < len(several):
        return None
    complete = [each for each in known if each.positions]  # others add nothing to sums over such positions
    parts_by_field = dict.fromkeys(Distances.model_fields, known) | dict.fromkeys(THREE_WAY_SUMS, complete)
    sums = {name: _sum(getattr(each, name) for each in some) for name, some in parts_by_field.items()}
    most = {name: max(getattr(each, name) for each in known) for name in ("max_tv", "overshoot")}
    return Distances.model_validate(sums | most)


def waste(d: Distances) -> float | None:
    """Return the mean of TV(pi, q) + TV(pi, p) - TV(p, q): rejections and changes beyond what the trade requires."""
    if d.tv_to_target is None or d.tv_to_draft is None or d.disagreement is None:
        return None
    return (d.tv_to_draft + d.tv_to_target - d.disagreement) / d.positions if d.positions else None


def efficiency(d: Distances) -> float | None:
    """Return rejections saved over TV(pi, p) spent, at most 1; None if nothing is spent beyond rounding."""
    if d.tv_to_target is None or d.tv_to_draft is None or d.disagreement is None:
        return None
    spends = d.tv_to_target > LOSSLESS_TOLERANCE * d.positions
    return (d.disagreement - d.tv_to_draft) / d.tv_to_target if spends else None


def nats_per_answer(d: Distances, answers: int, *, greedy: bool) -> float | None:
    """Return nats per answer: the KL, or at temperature 0 (where the KL is 0 or infinite) the regret."""
    if greedy:
        return None if d.regret is None else d.regret / answers
    return math.inf if d.infinite else d.kl / answers


def out_of_head_rate(d: Distances) -> float | None:
    """Return drafts outside the head of the target's distribution per 1,000 tokens.

    None with `verify=block`, and if no draft was kept, as by a strategy that does not draft.
    """
    return 1000 * d.out_of_head / d.tokens if d.kept_drafts and d.out_of_head is not None else None
