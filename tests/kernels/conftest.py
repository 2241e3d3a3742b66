"""Triton kernels run on the GPU if there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


def _can_interpret() -> bool:
    """Triton 3.6's interpreter cannot loop with NumPy 2.4."""
    try:
        triton, numpy = (tuple(int(part) for part in version(name).split(".")[:2]) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return False
    return triton >= (3, 7) or numpy < (2, 4)


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    """Search Triton's language for its operations once, not at every call of every function, a third of the time."""
    if torch.cuda.is_available() or not _can_interpret():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    @cache
    def operations(place: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(place) if tl.core.is_builtin(member)]

    def getmembers(place: Any) -> list[tuple[str, Any]]:
        return [(name, getattr(place, name)) for name in operations(place)]

    for place in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        operations(place)  # now, before any of them is replaced
    interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": getmembers})


@pytest.fixture(scope="session")
def where() -> torch.device:
    """The device on which the kernels run."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not _can_interpret():
        pytest.skip("no Triton whose interpreter works")
    return torch.device("cpu")


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of several blocks, which otherwise only vocabularies beyond 262,144 tokens have."""
    monkeypatch.setattr("cascli.kernels.rows.MOST_PARTS", 2)


@pytest.fixture(params=["float32", "half"])
def dtype(request: pytest.FixtureRequest, where: torch.device) -> torch.dtype:
    """The interpreter cannot multiply bfloat16; float16 is used instead."""
    half = torch.bfloat16 if where.type == "cuda" else torch.float16
    return torch.float32 if request.param == "float32" else half


@pytest.fixture
def sound_products(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the interpreter a GPU's products and bfloat16.

    On its own it truncates numbers where a GPU rounds them to bfloat16, multiplies the bits of such numbers, and sums
    in whatever order NumPy chooses for a shape.
    """
    if where.type == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        kinds = source.dtype.scalar, to.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(_wide(source.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            bits = source.data.view(np.uint32)
            return TensorHandle(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), tl.bfloat16)
        return cast(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, sums: Any, *more: Any) -> Any:
        del self, more
        left, right = (_wide(each.data) if each.dtype.scalar == tl.bfloat16 else each.data for each in (a, b))
        exact = np.matmul(left, right, dtype=np.float64)
        return TensorHandle(exact.astype(np.float32) + sums.data, sums.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def _wide(bits: np.ndarray) -> np.ndarray:
    """The numbers with these bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
