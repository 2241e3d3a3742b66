"""Functions of tensors and their captured graphs, for what a round computes in addition to the two models' forwards.

Sampling and verification are a dozen or more small kernels each, which take longer to launch than to run.
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
    """Replays captured graphs of functions, and calls functions directly where no graph was captured.

    Inputs and results are kept outside the graphs' shared memory, which any graph may overwrite. A result is therefore
    valid until the next call with its key, even if other graphs are replayed in the meantime.
    """

    def __init__(self, capture: Capture | None = None, most: int = 64, *, compiles: bool = False) -> None:
        """Keep at most `most` graphs: a sweep has a rule per alpha, and each graph keeps a round's distributions.

        Without a `capture`, nothing is ever captured, and every function is called directly. With `compiles`, what
        would have been captured is called once then, because the kernels of functions are compiled at their first call.
        """
        self._capture = capture
        self._most = most
        self._compiles = compiles
        self._called: set[Hashable] = set()
        self.seconds = 0.0
        """Time spent on capturing so far."""
        self._graphs: dict[Hashable, tuple[list[Tensor], Callable[[], Any]]] = {}

    @property
    def count(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    @property
    def captures(self) -> bool:
        """Whether this cache captures graphs at all."""
        return self._capture is not None

    @property
    def prepares(self) -> bool:
        """Whether `capture` does anything, so that it is worth the example inputs."""
        return self.captures or self._compiles

    def run(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """Return the result of `function(*inputs)`, valid until the next call with this key.

        Args:
            key: everything that the result depends on, apart from the tensors.
            function: computes on the device only; called directly for a key or shapes that were not captured.
            inputs: copied to where the graph reads them.
        """
        graph = self._graphs.get(_full_key(key, inputs))
        if graph is None:
            return function(*inputs)
        places, replay = graph
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        return cast(Result, replay())

    def capture(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Capture a call, or only make it; `inputs` are examples. Returns whether it had not been done before."""
        full_key = _full_key(key, inputs)
        if self._capture is None:
            return self._call(full_key, function, *inputs)
        if full_key in self._graphs:
            return False
        if len(self._graphs) >= self._most:
            self.clear()
        start = time.perf_counter()
        self._graphs[full_key] = _captured(self._capture, function, inputs)
        self.seconds += time.perf_counter() - start
        return True

    def _call(self, full_key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        if not self._compiles or full_key in self._called:
            return False
        self._called.add(full_key)
        function(*inputs)
        return True

    def clear(self) -> None:
        """Drop all graphs, because there are too many or the memory that they use beyond their inputs has moved."""
        self._graphs.clear()
        if self._capture is not None:
            self._capture.renew()


def _captured(
    capture: Capture, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[], Any]]:
    """Capture a graph; return the tensors that it reads its inputs from, and the function that replays it."""
    places = [each.clone() for each in inputs]
    results = tree_map(torch.clone, function(*places))

    def compute() -> Any:
        for place, value in zip(tree_leaves(results), tree_leaves(function(*places)), strict=True):
            place.copy_(value)
        return results

    return places, capture(compute)


def _full_key(key: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (key, *((each.shape, each.dtype) for each in inputs))
