"""The random numbers of a run, keyed by what they decide and by the position of the token in the text.

Keying by position lets all strategies of a comparison share their random numbers, so that columns
differ by their rules and not by luck. It is lawful: a position is drafted again only after everything
drawn there before was thrown away by decisions that looked at earlier positions alone.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


class Uniforms:
    """Three independent streams of uniforms in [0, 1) for positions 0 .. length - 1, float64.

    They are drawn on the CPU from a generator of their own and moved once: the same seed gives the
    same numbers on every device, and torch's global random state is neither read nor changed.
    """

    def __init__(self, seed: int, length: int, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        table = torch.rand(length, 3, generator=generator, dtype=torch.float64)
        # Each stream lies packed: kernels step through what they are given number by number.
        self._draw, self._accept, self._residual = table.T.contiguous().to(device).unbind(dim=0)

    def draw(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` that draw a token: drafted, bonus, or a baseline's own."""
        return self._draw[start : start + n]

    def accept(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` of the acceptance tests of drafted tokens."""
        return self._accept[start : start + n]

    def residual(self, start: int, n: int) -> Tensor:
        """Uniforms `[n]` that draw the token after a rejection at each position."""
        return self._residual[start : start + n]


def seed_of(seed: int, prompt_id: str, turn: int) -> int:
    """The seed of one prompt's turn: prompts have random numbers of their own, which strategies share within a prompt.

    With one set of numbers for all prompts their answers would err in the same direction, and no mean over prompts
    would get better with more of them: an interval over prompts would cover far less than it says.
    """
    key = json.dumps([seed, prompt_id, turn]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
