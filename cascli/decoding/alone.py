"""One model writing token by token: the two baselines, and the halves of a sequence-level cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cascli.trace import Emitted, Event, Round

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.cursor import Cursor
    from cascli.decoding.session import Session


def write(
    s: Session,
    cursor: Cursor,
    event: Event,
    *,
    on_distributions: Callable[[Tensor, Tensor], None] | None = None,
    tentative: bool = False,
    conditional: bool = False,
) -> Iterator[Round]:
    """Let one model write until the session is finished.

    `on_distributions` gets the distribution at temperature 1 `[1, V]` and the drawn token `[1]` of each position; both
    are valid until the next position. A `tentative` answer uses separate random numbers: an answer that replaces it
    must not reuse those that led to its replacement. A `conditional` answer is written only if a random one before it
    failed a test, so the prompt's output distribution is not this model's, and its distance from the target's unknown.
    """
    from cascli.decoding import detail
    from cascli.sampling import distributions
    from cascli.sampling.autoregressive import Sampler

    by_target = event == "target"
    of_target = by_target and not conditional
    sampler = Sampler(s.sampling, reads_base=on_distributions is not None or s.top > 0)
    uniforms = s.uniforms.residual if tentative else s.uniforms.draw
    while not s.finished:
        written = cursor.write(s.length, sampler, uniforms(s.length, 1))
        s.append(written.tokens)
        if on_distributions is not None:
            on_distributions(written.base, written.tokens)
        views = detail.Views(p1=written.base) if by_target else detail.Views(q1=written.base)
        more = detail.of_one(s, written.tokens, views)
        ids, prob, *of_detail = s.fetch(written.tokens, distributions.at(written.probs, written.tokens), *more)
        emitted = Emitted(
            id=int(ids[0]),
            text=s.spell(int(ids[0])),
            event=event,
            q=None if by_target else prob[0],
            p=prob[0] if by_target else None,
            tv=0.0 if of_target else None,
            kl=0.0 if of_target else None,
            overshoot=1.0 if of_target else None,
            regret=0.0 if by_target and s.sampling.temperature == 0 else None,
            detail=detail.details(of_detail, 1, s.spell)[0],
        )
        yield Round(emitted=[emitted], seconds=s.clock.lap())
