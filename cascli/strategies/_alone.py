"""One model writing token by token: the two baselines, and the halves of a sequence-level cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cascli.trace import Emitted, Event, Round

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.session import Lane, Session


def write(
    s: Session,
    lane: Lane,
    event: Event,
    *,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    tentative: bool = False,
) -> Iterator[Round]:
    """Let one model write until the session is finished.

    `watch` is shown the logits `[1, V]` and the drawn token `[1]` of each position. A `tentative` answer
    has random numbers of its own: whoever replaces it must not meet those that decided its fate.
    """
    by_target = event == "target"
    while not s.finished:
        logits = lane.read(s.length)
        probs = s.warp(logits)
        token = s.draw_again(probs) if tentative else s.draw(probs)
        if watch is not None:
            watch(logits, token)
        s.append(token)
        (ids, prob) = s.fetch(token, probs.gather(-1, token.unsqueeze(-1)))
        emitted = Emitted(
            id=int(ids[0]),
            text=s.spell(int(ids[0])),
            event=event,
            q=None if by_target else prob[0],
            p=prob[0] if by_target else None,
            tv=0.0 if by_target else None,
        )
        yield Round(emitted=[emitted], seconds=s.clock.lap())
