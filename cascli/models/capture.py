"""Recording a computation once, and repeating it without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Compute = Callable[[], Tensor]
_WARM_UPS = 2


class Capture(Protocol):
    """Records a function without arguments that reads and writes tensors at fixed addresses."""

    def __call__(self, compute: Compute) -> Compute:
        """A function that repeats the kernels of `compute`; its result is valid until the next of any such call."""


class CudaCapture:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
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

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
