"""Triton's kernels run on the GPU if there is one, and in Triton's interpreter if there is none."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


def _can_interpret() -> bool:
    """The interpreter of Triton 3.6 cannot loop with NumPy 2.4."""
    try:
        triton, numpy = (tuple(int(part) for part in version(name).split(".")[:2]) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return False
    return triton >= (3, 7) or numpy < (2, 4)


@pytest.fixture(scope="session")
def where() -> torch.device:
    """The device of the kernels."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not _can_interpret():
        pytest.skip("no Triton whose interpreter works")
    return torch.device("cpu")


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of several blocks, as only vocabularies beyond 262,144 tokens have them."""
    monkeypatch.setattr("cascli.kernels.rows.MOST_PARTS", 2)


@pytest.fixture(params=["float32", "half"])
def dtype(request: pytest.FixtureRequest, where: torch.device) -> torch.dtype:
    """The interpreter has no products of bfloat16; float16 stands in."""
    half = torch.bfloat16 if where.type == "cuda" else torch.float16
    return torch.float32 if request.param == "float32" else half
