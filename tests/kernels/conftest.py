"""Triton kernels run on the GPU if there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import inspect
import math
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
    """Leave out what Triton's interpreter does again and again for the same result, more than half of its time."""
    if torch.cuda.is_available() or not _can_interpret():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    # Integer overflow is computed for an assertion, which is made only while debugging.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    _search_the_language_once(interpreter, tl)
    if hasattr(interpreter, "_LangPatchScope"):  # not before Triton 3.5
        _replace_operations_once_per_kernel(interpreter)
    _look_up_types(interpreter, tl)


def _search_the_language_once(interpreter: Any, tl: Any) -> None:
    """Not at every call of every function."""

    @cache
    def operations(place: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(place) if tl.core.is_builtin(member)]

    def getmembers(place: Any) -> list[tuple[str, Any]]:
        return [(name, getattr(place, name)) for name in operations(place)]

    for place in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        operations(place)  # now, before any of them is replaced
    interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": getmembers})


def _replace_operations_once_per_kernel(interpreter: Any) -> None:
    """Not at every call of a function in it, which finds them replaced."""
    patch, modules = interpreter._patch_lang, set[int]()

    def patch_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in modules:
            return None
        modules.add(module)
        scope = patch(function)
        restore = scope.restore  # called for a kernel, not for a function in it

        def start_again() -> None:
            modules.clear()
            restore()

        scope.restore = start_again
        return scope

    interpreter._patch_lang = patch_once


def _look_up_types(interpreter: Any, tl: Any) -> None:
    """NumPy's type of a Triton type without a new table of all types, and a tensor's shape without new constants."""
    plain, known = interpreter._get_np_dtype, dict[str, np.dtype]()

    def np_dtype(kind: Any) -> np.dtype:
        scalar = kind.scalar
        if scalar.is_ptr():
            return plain(scalar)
        if scalar.name not in known:
            known[scalar.name] = plain(scalar)
        return known[scalar.name]

    @cache
    def shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return tl.core.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))

    def init(self: Any, handle: Any, kind: Any) -> None:
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = shape(tuple(kind.shape) if kind.is_block() else ())

    interpreter._get_np_dtype, tl.tensor.__init__ = np_dtype, init


@pytest.fixture(scope="session")
def where() -> torch.device:
    """The device on which the kernels run."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not _can_interpret():
        pytest.skip("no Triton whose interpreter works")
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def short_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the long text out of self-tests: the interpreter takes milliseconds for a row of a kernel."""
    if not torch.cuda.is_available():
        monkeypatch.setattr("cascli.models.gpu.self_test.LONG", 0)
        monkeypatch.setattr("cascli.models.gpu.self_test.WIDEST", 0)


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
