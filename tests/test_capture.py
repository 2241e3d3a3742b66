"""What CudaCapture asks of CUDA, and in which order; whether CUDA then does it, only a GPU can show."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cascli.models.gpu.capture import CudaCapture

DEVICE = torch.device("cuda", 1)


class Cuda:
    """Logs calls in place of `torch.cuda`; streams and pools are numbered."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.pools = self.streams = 0
        self.now: str = "current"
        """The stream that work is launched on."""

    def new_stream(self, device: torch.device) -> Stream:
        assert device == DEVICE
        self.streams += 1
        return Stream(self, f"stream {self.streams}")

    def new_pool(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        assert device == DEVICE
        self.log.append(("device",))
        yield

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream.name
        yield
        self.now = before

    @contextmanager
    def capturing(self, graph: Graph, *, pool: str, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, f"graph of {stream.name} in {pool}"
        yield
        self.now = before


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append((self.name, "waits for", other.name))


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.log.append(("replay",))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    for name, fake in (
        ("Stream", made.new_stream),
        ("graph_pool_handle", made.new_pool),
        ("device", made.on_device),
        ("current_stream", lambda: Stream(made, "current")),
        ("stream", made.on_stream),
        ("graph", made.capturing),
        ("CUDAGraph", lambda: Graph(made)),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def test_a_capture_warms_up_on_its_own_stream(cuda: Cuda) -> None:
    """Both streams wait for each other: warm-up reads what was written before, and later work what it wrote."""
    capture = CudaCapture(DEVICE)

    def compute() -> int:
        cuda.log.append(("compute", cuda.now))
        assert not gc.isenabled()
        return len(cuda.log)

    replay = capture(compute)
    assert gc.isenabled() and cuda.log == [
        ("device",),
        ("stream 1", "waits for", "current"),
        ("compute", "stream 1"),
        ("compute", "stream 1"),
        ("current", "waits for", "stream 1"),
        ("compute", "graph of stream 1 in pool 1"),
    ]
    assert replay() == 6 and cuda.log[-1] == ("replay",)


def test_renewed_captures_use_another_pool_and_fresh_ones_another_stream(cuda: Cuda) -> None:
    capture = CudaCapture(DEVICE)
    graphs = []
    for each in (capture, capture.fresh(), capture):
        each(lambda: graphs.append(cuda.now))
        each.renew()
    assert [each for each in graphs if "graph" in each] == [
        "graph of stream 1 in pool 1",
        "graph of stream 2 in pool 2",
        "graph of stream 1 in pool 3",
    ]


@pytest.mark.parametrize("ended", [True, False], ids=["by us", "by torch"])
def test_after_a_failed_capture_nothing_more_goes_to_its_pool(
    ended: bool, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is the current one again, and the allocator is told; that torch has told it already is no error."""

    def end(*which: Any) -> None:
        cuda.log.append(("end", *which))
        if not ended:
            raise RuntimeError("not recording to this pool")

    def compute() -> None:
        if "graph" in cuda.now:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: cuda.log.append(("set", stream.name)))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaCapture(DEVICE)(compute)
    assert gc.isenabled() and cuda.log[-2:] == [("set", "current"), ("end", 1, "pool 1")]
