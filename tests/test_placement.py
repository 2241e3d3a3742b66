"""Choosing a device, with torch's answers faked as on a machine with GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from cascli import kernels
from cascli.errors import PairWarning, RunError
from cascli.models.load import _test_kernels
from cascli.models.placement import choose_device


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Fake two GPUs; the list holds the index of the current one."""
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[0])
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda index: chosen.__setitem__(0, index), raising=False)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield chosen
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_has_a_number_and_becomes_the_current_one(name: str, index: int, current: list[int]) -> None:
    assert choose_device(name) == torch.device("cuda", index) and current == [index]


def test_no_step_waits_for_a_plan_of_its_length(current: list[int]) -> None:
    """cuDNN plans its attention for every length anew, and a step of a text without a graph has a length of its own."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    choose_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


def test_a_missing_gpu_is_an_error(current: list[int]) -> None:
    with pytest.raises(RunError, match=r"'cuda:2'.* sees 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(RunError, match="sees 0 CUDA devices; use --device cpu"):
        choose_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_torch_operations_replace_triton_where_it_cannot_work() -> None:
    assert not kernels.serve(torch.device("cuda"))
    why = kernels.missing(torch.device("cuda"))
    with pytest.warns(PairWarning, match=f"no Triton kernels, so torch's own .*{re.escape(why or 'a reason')}"):
        _test_kernels(torch.device("cuda"), 300, torch.bfloat16, 304)
