"""Capturing a computation once, and replaying it without Python: CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
_WARM_UPS = 2


class Capture(Protocol):
    """Captures functions without arguments that read and write tensors at fixed addresses."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """A function that replays the kernels of `compute`; its result is valid until the next of any such call."""

    def renew(self) -> None:
        """Begin anew: every graph captured so far has been dropped."""

    def fresh(self) -> Capture:
        """Another one, whose graphs live and go apart from those of this one."""


class Uncaptured:
    """A `Capture` that captures nothing: try it out, then compute again; for compiled steps without graphs."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """The function itself."""
        compute()
        return compute

    def renew(self) -> None:
        """Nothing to forget."""

    def fresh(self) -> Uncaptured:
        """Itself: it keeps nothing."""
        return self


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory, on a stream of its own.

    Warming up on the stream that is captured has matrix products find their workspace there before a graph could
    claim it. torch frees that workspace when a graph of the stream is destroyed (from 2.12 on), under those that live;
    and a pool whose graphs are all gone takes no new ones. So graphs are dropped all at once, and `renew` follows.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def fresh(self) -> CudaCapture:
        """With a pool and a stream of its own."""
        return CudaCapture(self._device)

    def renew(self) -> None:
        """Another pool of memory."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Capture `compute`, after running it so that libraries have made their choices."""
        with torch.cuda.device(self._device), _no_collection():
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    compute()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = compute()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from destroying other graphs in the middle of a capture, which would end it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
