"""Recording a computation once, and repeating it without Python: CUDA graphs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Result = TypeVar("Result")
_WARM_UPS = 2


class Capture(Protocol):
    """Records functions without arguments that read and write tensors at fixed addresses."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """A function that repeats the kernels of `compute`; its result is valid until the next of any such call."""

    def renew(self) -> None:
        """Begin anew: every recording made so far has been dropped."""


class Uncaptured:
    """A `Capture` that records nothing: try it out, then compute again; for compiled steps without graphs."""

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """The function itself."""
        compute()
        return compute

    def renew(self) -> None:
        """Nothing to forget."""


class CudaCapture:
    """Records CUDA graphs that share one pool of memory, on a stream of its own.

    Warming up on the stream that is captured has matrix products find their workspace there before a graph could
    claim it. torch frees that workspace when a graph of the stream is destroyed (from 2.12 on), under those that live;
    and a pool whose graphs are all gone takes no new ones. So recordings are dropped all at once, and `renew` follows.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def renew(self) -> None:
        """Another pool of memory."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """Record `compute`, after running it so that libraries have made their choices."""
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


class Recorded:
    """Calls functions of tensors by recordings of those that were prepared; a session's `compute` on a GPU.

    Sampling and verification are some dozen small kernels each, which take longer to ask for than to run. Inputs and
    results lie outside the recordings' shared memory, which any of them may overwrite: a result stands until the next
    call with its key, whatever else is repeated meanwhile.
    """

    def __init__(self, capture: Capture, most: int = 64) -> None:
        """Keep `most` recordings: a sweep has as many rules as alphas, and each keeps a round's distributions."""
        self._capture = capture
        self._most = most
        self.seconds = 0.0
        """Time spent on recordings so far."""
        self._made: dict[Hashable, tuple[list[Tensor], Callable[[], Any]]] = {}

    def __call__(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """What `function(*inputs)` returns: valid until the next call with this key.

        Args:
            key: everything but the tensors that the result depends on.
            function: computes on the device alone; called as it is for a key or shapes that were not prepared.
            inputs: copied to where the recording reads them.
        """
        made = self._made.get(_whole(key, inputs))
        if made is None:
            return function(*inputs)
        places, replay = made
        for place, given in zip(places, inputs, strict=True):
            place.copy_(given)
        return cast(Result, replay())

    def prepare(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Record a call of which these are examples; says whether it was not there already."""
        whole = _whole(key, inputs)
        if whole in self._made:
            return False
        if len(self._made) >= self._most:
            self._made.clear()
            self._capture.renew()
        start = time.perf_counter()
        self._made[whole] = self._record(function, inputs)
        self.seconds += time.perf_counter() - start
        return True

    def _record(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], Any]]:
        places = [each.clone() for each in inputs]
        results = tree_map(torch.clone, function(*places))

        def compute() -> Any:
            for place, found in zip(tree_leaves(results), tree_leaves(function(*places)), strict=True):
                place.copy_(found)
            return results

        return places, self._capture(compute)


def _whole(key: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (key, *((each.shape, each.dtype) for each in inputs))
