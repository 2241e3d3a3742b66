"""Recording a computation once, and repeating it without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

Result = TypeVar("Result")
_WARM_UPS = 2


class Capture(Protocol):
    """Records a function without arguments that reads and writes tensors at fixed addresses."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """A function that repeats the kernels of `compute`; its result is valid until the next of any such call."""


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

    Sampling and verification are some dozen small kernels each, which take longer to ask for than to run.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
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
            places = [each.clone() for each in inputs]
            self._made[whole] = places, self._capture(lambda: function(*places))
        places, replay = self._made[whole]
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        return cast(Result, replay())
