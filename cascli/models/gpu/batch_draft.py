"""A whole draft of several texts, passes and draws together, as one function of tensors that can be captured.

All texts make as many passes as the longest draft has. One that wants fewer goes on in a place that no text has, and
so do texts that are not there, where a graph is for more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cascli.models.batch.reader import WantedDraft
from cascli.models.calls import Write
from cascli.sampling.autoregressive import Drawn, Sampler, Written

Logits = Callable[[Tensor, Tensor, Tensor, Tensor | slice], Tensor]
"""Reads ids `[n]` at places and positions `[n]`; the logits `[m, V]` of the rows `[m]`."""
ALL = slice(None)


class Shape(NamedTuple):
    """What a captured draft is for, at most."""

    texts: int
    unread: int
    """Tokens that each text reads in the first pass."""
    steps: int
    """Passes."""

    @classmethod
    def around(cls, texts: int, writes: Sequence[Write]) -> Self:
        """The smallest for such drafts of so many texts."""
        return cls(texts, max(each.unread for each in writes), max(each.steps for each in writes))

    def holds(self, other: Shape) -> bool:
        """Whether a draft of the other shape fits in."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))

    @property
    def rows(self) -> int:
        """Tokens that are read in all."""
        return self.texts * (self.unread + self.steps - 1)


class Drafted(NamedTuple):
    """What L texts have drafted, step by step."""

    tokens: list[Tensor]
    """`[L]` each."""
    probs: list[Tensor]
    """`[L, V]` each."""
    base: list[Tensor]
    """Likewise; none where they are not wanted."""
    max_logit: list[Tensor]
    """`[L]` each."""

    def of(self, i: int, wanted: WantedDraft) -> Written:
        """What the i-th text has asked for, in memory of its own."""
        drawn, steps = wanted.write.drawn, wanted.write.steps
        tokens, probs, *base, largest = (torch.stack([each[i] for each in column[:steps]]) for column in self if column)
        return Written(tokens[:drawn], probs, base[0] if base else probs, largest.abs().amax())


def draft(
    spare: int, shape: Shape, sampler: Sampler, logits_of: Logits, ids: Tensor, u: Tensor, table: Tensor
) -> Drafted:
    """Let a model write for several texts; the last three are what `inputs` has made."""
    sizes = [shape.texts * shape.unread] * 2 + [shape.texts] * (4 + shape.steps)
    places, positions, last, place, at, steps, *draws = table.split(sizes)
    drawn: list[Drawn] = []
    logits = logits_of(ids, places, positions, last)
    for i, which in enumerate(draws, 1):
        drawn.append(sampler.draw(logits, u[which]))
        token = drawn[-1].token
        if i < shape.steps and token is not None:
            ended = i >= steps
            logits = logits_of(token, place.masked_fill(ended, spare), (at + (i - 1)).masked_fill(ended, 0), ALL)
    tokens, probs, base, largest = (list(column) for column in zip(*drawn, strict=True))
    return Drafted(tokens, probs, base if sampler.reads_base else [], largest)


def inputs(
    spare: int, shape: Shape, wanted: Sequence[WantedDraft], lengths: Sequence[int], device: torch.device
) -> list[Tensor]:
    """What `draft` reads.

    Args:
        spare: the place that no text has.
        shape: for at least as much as is wanted.
        wanted: of one text each.
        lengths: of these texts.
        device: where it is wanted.

    Returns:
        The ids of the first pass; uniforms; and in one tensor, of each id place and position, then of each text its
        last id, its place, where its first drafted token will stand, how many passes it has, and with which of the
        uniforms it draws in each.
    """
    nobody = shape.texts * shape.steps  # the uniform of draws that are not wanted
    rows, texts, drawn = [], [], 0
    for each, length in zip(wanted, lengths, strict=True):
        unread, n, _ = each.write
        rows += [(each.place, length + i) for i in range(unread)]
        draws = [drawn + i if i < n else nobody for i in range(shape.steps)]
        texts.append((len(rows) - 1, each.place, length + unread, each.write.steps, *draws))
        drawn += n
    more = shape.texts * shape.unread - len(rows)
    rows += [(spare, 0)] * more
    texts += [(0, spare, 0, 0, *[nobody] * shape.steps)] * (shape.texts - len(wanted))
    ids = torch.zeros(more, dtype=torch.long, device=device)
    u = torch.zeros(nobody + 1 - drawn, dtype=torch.float64, device=device)
    numbers = on_device([*zip(*rows, strict=True), *zip(*texts, strict=True)], device)
    return [torch.cat([*(each.ids for each in wanted), ids]), torch.cat([*(each.u for each in wanted), u]), numbers]


def on_device(columns: Iterable[Sequence[int]], device: torch.device) -> Tensor:
    """Numbers, one column after the other, in one transfer that waits for nothing."""
    numbers = [value for column in columns for value in column]
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
