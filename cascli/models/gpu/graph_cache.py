"""Functions of tensors and their captured graphs: what a round computes besides the two models' forwards.

Sampling and verification are some dozen small kernels each, which take longer to ask for than to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cascli.models.gpu.capture import Capture

Result = TypeVar("Result")


class GraphCache:
    """Calls functions by the graphs that were captured of them, and as they are where there is none.

    Inputs and results lie outside the graphs' shared memory, which any of them may overwrite: a result stands until
    the next call with its key, whatever else is replayed meanwhile.
    """

    def __init__(self, capture: Capture | None = None, most: int = 64) -> None:
        """Keep `most` graphs: a sweep has as many rules as alphas, and each keeps a round's distributions.

        Without a `capture` nothing is ever captured, and every function is called as it is.
        """
        self._capture = capture
        self._most = most
        self.seconds = 0.0
        """Time spent on capturing so far."""
        self._graphs: dict[Hashable, tuple[list[Tensor], Callable[[], Any]]] = {}

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @property
    def captures(self) -> bool:
        """Whether it captures at all."""
        return self._capture is not None

    def run(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """What `function(*inputs)` returns: valid until the next call with this key.

        Args:
            key: everything but the tensors that the result depends on.
            function: computes on the device alone; called as it is for a key or shapes that were not captured.
            inputs: copied to where the graph reads them.
        """
        graph = self._graphs.get(_whole(key, inputs))
        if graph is None:
            return function(*inputs)
        places, replay = graph
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        return cast(Result, replay())

    def capture(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Capture a call of which these are examples. Returns whether there is a new graph."""
        whole = _whole(key, inputs)
        if self._capture is None or whole in self._graphs:
            return False
        if len(self._graphs) >= self._most:
            self.clear()
        start = time.perf_counter()
        self._graphs[whole] = _captured(self._capture, function, inputs)
        self.seconds += time.perf_counter() - start
        return True

    def clear(self) -> None:
        """Drop all graphs: what they read or wrote besides their inputs has moved, or there are too many."""
        self._graphs.clear()
        if self._capture is not None:
            self._capture.renew()


def _captured(
    capture: Capture, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[], Any]]:
    """The tensors that a new graph reads its inputs from, and what replays it."""
    places = [each.clone() for each in inputs]
    results = tree_map(torch.clone, function(*places))

    def compute() -> Any:
        for place, value in zip(tree_leaves(results), tree_leaves(function(*places)), strict=True):
            place.copy_(value)
        return results

    return places, capture(compute)


def _whole(key: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (key, *((each.shape, each.dtype) for each in inputs))
