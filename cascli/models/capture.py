"""Recording a computation once, and repeating it without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Result = TypeVar("Result")
_WARM_UPS = 2


class Capture(Protocol):
    """Records a function without arguments that reads and writes tensors at fixed addresses."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """A function that repeats the kernels of `compute`; its result is valid until the next of any such call."""


def uncaptured(compute: Callable[[], Result]) -> Callable[[], Result]:
    """A `Capture` that records nothing: try it out, then compute again; for compiled steps without graphs."""
    compute()
    return compute


class CudaCapture:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Record `compute`, after running it so that libraries have made their choices."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


class Recorded:
    """Calls functions of tensors by recordings, one for each key and shapes; a session's `compute` on a GPU.

    Sampling and verification are some dozen small kernels each, which take longer to ask for than to run. Inputs and
    results lie outside the recordings' shared memory, which any of them may overwrite: a result stands until the next
    call with its key, whatever else is repeated meanwhile.
    """

    def __init__(self, capture: Capture, most: int = 128) -> None:
        self._capture = capture
        self._most = most
        self._made: dict[Hashable, tuple[list[Tensor], Callable[[], Any]]] = {}

    def __call__(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """What `function(*inputs)` returns: valid until the next call with this key.

        Args:
            key: everything but the tensors that the result depends on.
            function: computes on the device alone.
            inputs: copied to where the recording reads them.
        """
        whole = (key, *((each.shape, each.dtype) for each in inputs))
        if whole not in self._made:
            while len(self._made) >= self._most:
                del self._made[next(iter(self._made))]  # the oldest: a sweep has as many rules as alphas
            self._made[whole] = self._record(function, inputs)
        places, replay = self._made[whole]
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        return cast(Result, replay())

    def _record(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], Any]]:
        places = [each.clone() for each in inputs]
        results = tree_map(torch.clone, function(*places))

        def compute() -> Any:
            for place, found in zip(tree_leaves(results), tree_leaves(function(*places)), strict=True):
                place.copy_(found)
            return results

        return places, self._capture(compute)
