"""The random numbers of a run, keyed by what they decide and by the position of the token in the text.

Keying by position lets all strategies of a comparison share their random numbers, so that columns
differ by their rules and not by luck. This is valid: a position is drafted again only after everything
drawn there before was discarded by decisions that depend on earlier positions alone. Where decisions also depend on
later positions, as in block verification, `LookingAhead` gives a position new numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cascli.sampling.parameters import MOST_DRAFTED


class RandomNumbers(Protocol):
    """Uniforms in [0, 1) by what they decide and where: `[n]`, float64, on the models' device."""

    def draw(self, start: int, n: int) -> Tensor:
        """Uniforms from position `start` that draw a token: drafted, bonus, or a baseline's own."""

    def accept(self, start: int, n: int) -> Tensor:
        """Uniforms from position `start` for the acceptance tests of drafted tokens."""

    def residual(self, start: int, n: int) -> Tensor:
        """Uniforms from position `start` that draw the token after a rejection at each position."""

    def draw_again(self, start: int, n: int) -> Tensor:
        """Like `draw`, but with numbers that belong only to a round that begins at `start`."""

    def accept_again(self, start: int, n: int) -> Tensor:
        """Like `accept`, but with numbers that belong only to a round that begins at `start`."""


class Uniforms:
    """Three independent streams of uniforms in [0, 1) for positions 0 .. length - 1, float64.

    They are drawn on the CPU from their own generator and moved once: the same seed gives the
    same numbers on every device, and torch's global random state is neither read nor changed.
    """

    def __init__(self, seed: int, length: int, device: torch.device | str = "cpu") -> None:
        self._seed, self._length, self._device = seed, length, device
        generator = torch.Generator().manual_seed(seed)
        table = torch.rand(length, 3, generator=generator, dtype=torch.float64)
        # Each stream is contiguous: kernels read their input with stride 1.
        self._draw, self._accept, self._residual = table.T.contiguous().to(device).unbind(dim=0)

    def draw(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` that draw a token: drafted, bonus, or a baseline's own."""
        return self._draw[start : start + n]

    def accept(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` for the acceptance tests of drafted tokens."""
        return self._accept[start : start + n]

    def residual(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` that draw the token after a rejection at each position."""
        return self._residual[start : start + n]

    def draw_again(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` that draw what a round that begins at `start` drafts again."""
        return self._again[0, start, :n]

    def accept_again(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` for the tests of what a round that begins at `start` drafts again."""
        return self._again[1, start, :n]

    @cached_property
    def _again(self) -> Tensor:
        """`[2, length, MOST_DRAFTED]`: two more streams, indexed by a round's first position and the place in it."""
        generator = torch.Generator().manual_seed(_derived(self._seed, "again"))
        table = torch.rand(self._length, MOST_DRAFTED, 2, generator=generator, dtype=torch.float64)
        return table.permute(2, 0, 1).contiguous().to(self._device)


class LookingAhead:
    """Uniforms for rounds in which keeping a draft depends on all drafted tokens, including those after it.

    There, a rejected draft has influenced the decision: its numbers are known to have failed, and would fail again more
    often than they should. So a position whose numbers a decision has already used gets new ones, keyed by the round,
    when it is drafted again; a position that is drafted for the first time has its own, which other strategies share.
    """

    def __init__(self, numbers: RandomNumbers) -> None:
        self._numbers = numbers
        self._seen = 0

    def mark_used(self, end: int) -> None:
        """Record that a round's decision has used the numbers of the positions up to `end`."""
        self._seen = max(self._seen, end)

    def draw(self, start: int, n: int) -> Tensor:
        """See `RandomNumbers`; for a round that begins at `start`, or for the bonus there."""
        return self._unseen(self._numbers.draw_again, self._numbers.draw, start, n)

    def accept(self, start: int, n: int) -> Tensor:
        """See `RandomNumbers`; for a round that begins at `start`."""
        return self._unseen(self._numbers.accept_again, self._numbers.accept, start, n)

    def residual(self, start: int, n: int) -> Tensor:
        """See `RandomNumbers`; it decides its position for good and is never used twice."""
        return self._numbers.residual(start, n)

    def draw_again(self, start: int, n: int) -> Tensor:
        """See `RandomNumbers`."""
        return self._numbers.draw_again(start, n)

    def accept_again(self, start: int, n: int) -> Tensor:
        """See `RandomNumbers`."""
        return self._numbers.accept_again(start, n)

    def _unseen(
        self, again: Callable[[int, int], Tensor], own: Callable[[int, int], Tensor], start: int, n: int
    ) -> Tensor:
        seen = min(max(self._seen - start, 0), n)
        if seen == 0:
            return own(start, n)
        return torch.cat([again(start, seen), own(start + seen, n - seen)])


def seed_of(seed: int, prompt_id: str, turn: int) -> int:
    """The seed for one turn of a prompt: each prompt has its own random numbers, which all strategies share.

    With one set of numbers for all prompts, their answers would err in the same direction, and no mean over prompts
    would improve with more of them: an interval over prompts would cover far less than it claims.
    """
    return _derived(seed, prompt_id, turn)


def _derived(*key: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big") >> 1
