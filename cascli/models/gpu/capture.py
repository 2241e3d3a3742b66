"""CUDA graphs: capturing a computation once and replaying it without Python."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
_WARM_UPS = 2


class Capture(Protocol):
    """Captures functions without arguments that read and write tensors at fixed addresses."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Return a function that replays `compute`'s kernels; its result is valid until any such function is called."""

    def renew(self) -> None:
        """Start over, after every graph captured so far has been dropped."""

    def fresh(self) -> Capture:
        """Another capture, whose graphs have a lifetime independent of this one's."""


class Uncaptured:
    """A `Capture` that captures nothing, for compiled steps without graphs; runs a function once to warm it up."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Run the function once, and return it as it is."""
        compute()
        return compute

    def renew(self) -> None:
        """Do nothing: there are no graphs."""

    def fresh(self) -> Uncaptured:
        """Itself: it has no state."""
        return self


class CudaCapture:
    """Captures CUDA graphs that share one memory pool, on a stream of its own.

    Warm-up runs on the stream that is captured, so that matrix products allocate their workspace there before a graph
    can claim it. As of torch 2.12, that workspace is freed when any graph of the stream is destroyed, even if other
    graphs still use it; and a pool whose graphs are all gone takes no new ones. Graphs are therefore dropped all
    together, followed by `renew`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def fresh(self) -> CudaCapture:
        """Another capture, with its own pool and stream."""
        return CudaCapture(self._device)

    def renew(self) -> None:
        """Switch to a new memory pool."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Capture `compute`, after warm-up runs in which libraries choose their algorithms."""
        with torch.cuda.device(self._device), _no_collection():
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    compute()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    result = compute()
            except BaseException:
                torch.cuda.set_stream(current)  # torch leaves its stream the current one if a capture fails
                self._end_allocations()
                raise

        def replay() -> Result:
            graph.replay()
            return result

        return replay

    def _end_allocations(self) -> None:
        """Stop sending allocations to the pool after a failed capture.

        Until torch 2.12 nothing does, if CUDA's own end of the capture fails too, and the allocator then believes for
        good that a capture is under way: it frees no cached blocks where memory runs out. Raises where there is nothing
        to end.
        """
        index = self._device.index if self._device.index is not None else torch.cuda.current_device()
        with suppress(Exception):
            torch._C._cuda_endAllocateToPool(index, self._pool)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from destroying other graphs during a capture, which would abort it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
