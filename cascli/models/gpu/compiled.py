"""A model's decoding step by torch.compile: fewer and larger kernels, at the price of compilation time.

A step of a small model is dozens of kernels per layer, most of them over a few thousand numbers. On a fast GPU their
number, not the bytes of the weights, determines the cost of the step. The step is compiled once for a single token and
once for any number of tokens; torch caches the result on disk, so a second start is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from cascli.errors import RunError, first_line

Forward = Callable[[Tensor, int], Tensor]
"""From ids `[n]` to the logits `[rows, V]` of the last rows."""

_TUNING: dict[str, Any] = {"coordinate_descent_tuning": True}
"""What gpt-fast sets beyond torch's defaults: products with one row become reductions, whose shapes are then searched.

Passed as options, it applies to this compilation only and leaves the global configuration unchanged. With more rows,
products stay library calls, and the search would only take longer.
"""
_MOST_VERSIONS = 256
"""Number of compiled versions that torch may keep of the function, which all runners of a process share."""


class Compiled:
    """A forward that is compiled when first called."""

    def __init__(self, forward: Forward, backend: str = "inductor") -> None:
        self.seconds = 0.0
        """Time spent so far in calls that compiled something."""
        tuning = _TUNING if backend == "inductor" else None
        self._one = torch.compile(forward, fullgraph=True, backend=backend, options=tuning)
        self._many = torch.compile(forward, fullgraph=True, dynamic=True, backend=backend)
        self._seen: set[tuple[int, int]] = set()

    def __call__(self, ids: Tensor, rows: int) -> Tensor:
        """Return logits `[rows, V]`.

        Raises:
            RunError: torch cannot compile this model here.
        """
        call = (ids.shape[0], rows)
        start = time.perf_counter()
        try:
            with torch._dynamo.config.patch(recompile_limit=_MOST_VERSIONS):
                logits = (self._one if ids.shape[0] == 1 else self._many)(ids, rows)
        except TorchDynamoException as error:
            raise RunError(f"torch.compile cannot compile the model: {first_line(error)}\nUse --no-compile.") from None
        if call not in self._seen:
            self._seen.add(call)
            self.seconds += time.perf_counter() - start
        return logits
