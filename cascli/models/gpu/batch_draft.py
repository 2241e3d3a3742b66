"""A whole draft of several sequences, forward passes and draws, as one function of tensors that can be captured.

All sequences make as many passes as the longest draft. A sequence that needs fewer continues in a spare place of the
cache that belongs to no sequence. The spare place also pads a graph that is for more sequences than there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cascli.models.batch.reader import DraftRequest
from cascli.models.calls import Write
from cascli.sampling.autoregressive import Drawn, Sampler, Written

Logits = Callable[[Tensor, Tensor, Tensor, Tensor | slice], Tensor]
"""Reads ids `[n]` at places and positions `[n]`; returns the logits `[m, V]` of the rows `[m]`."""
ALL = slice(None)


class Shape(NamedTuple):
    """The largest draft that a captured graph can serve."""

    texts: int
    unread: int
    """Tokens that each sequence reads in the first pass."""
    steps: int
    """Number of passes."""

    @classmethod
    def around(cls, texts: int, writes: Sequence[Write]) -> Self:
        """The smallest shape that holds each of these drafts for `texts` sequences."""
        return cls(texts, max(each.unread for each in writes), max(each.steps for each in writes))

    def holds(self, other: Shape) -> bool:
        """Whether a draft of the other shape fits into this one."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))

    @property
    def rows(self) -> int:
        """Total number of tokens read."""
        return self.texts * (self.unread + self.steps - 1)


class Drafted(NamedTuple):
    """Drafts of L sequences, as one list entry per step."""

    tokens: list[Tensor]
    """`[L]` each."""
    probs: list[Tensor]
    """`[L, V]` each."""
    base: list[Tensor]
    """Distributions at temperature 1, `[L, V]` each; empty if they are not wanted."""
    max_logit: list[Tensor]
    """`[L]` each."""

    def of(self, i: int, request: DraftRequest) -> Written:
        """The draft that the i-th sequence requested, copied to its own memory."""
        drawn, steps = request.write.drawn, request.write.steps
        tokens, probs, *base, largest = (torch.stack([each[i] for each in column[:steps]]) for column in self if column)
        return Written(tokens[:drawn], probs, base[0] if base else probs, largest.abs().amax())


def draft(
    spare: int, shape: Shape, sampler: Sampler, logits_of: Logits, ids: Tensor, u: Tensor, table: Tensor
) -> Drafted:
    """Draft for several sequences; the last three arguments come from `inputs`."""
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
    spare: int, shape: Shape, requests: Sequence[DraftRequest], lengths: Sequence[int], device: torch.device
) -> list[Tensor]:
    """Build the tensor arguments of `draft`.

    Args:
        spare: the place that belongs to no sequence.
        shape: large enough for all of `requests`.
        requests: the drafts, one per sequence.
        lengths: lengths of these sequences.
        device: device of the results.

    Returns:
        The ids of the first pass; the uniforms; and one tensor with the place and position of each id, followed, for
        each sequence, by the row of its last id, its place, the position of its first drafted token, its number of
        passes, and the index of its uniform in each pass.
    """
    unused = shape.texts * shape.steps  # index of the uniform for draws that are not wanted
    rows, texts, drawn = [], [], 0
    for request, length in zip(requests, lengths, strict=True):
        unread, n, _ = request.write
        rows += [(request.place, length + i) for i in range(unread)]
        draws = [drawn + i if i < n else unused for i in range(shape.steps)]
        texts.append((len(rows) - 1, request.place, length + unread, request.write.steps, *draws))
        drawn += n
    more = shape.texts * shape.unread - len(rows)
    rows += [(spare, 0)] * more
    texts += [(0, spare, 0, 0, *[unused] * shape.steps)] * (shape.texts - len(requests))
    ids = torch.zeros(more, dtype=torch.long, device=device)
    u = torch.zeros(unused + 1 - drawn, dtype=torch.float64, device=device)
    numbers = on_device([*zip(*rows, strict=True), *zip(*texts, strict=True)], device)
    return [torch.cat([*(each.ids for each in requests), ids]), torch.cat([*(each.u for each in requests), u]), numbers]


def on_device(columns: Iterable[Sequence[int]], device: torch.device) -> Tensor:
    """Copy numbers to a device, column by column, in one asynchronous transfer."""
    numbers = [value for column in columns for value in column]
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
