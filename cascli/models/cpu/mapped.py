"""oneDNN packed tensors over the bytes of a mapped file, without a copy.

Fresh memory is the largest cost of loading (benchmarks/LOG.md); pages of a file that was read before are already in
memory. torch offers this to compiled models through its C interface, which is called here; where a build lacks it, the
bytes are copied instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_POPULATE_READ = 22
"""Linux's MADV_POPULATE_READ (5.14 and later), for which Python's mmap has no constant."""


def layout_of(packed: Tensor) -> Tensor:
    """The memory descriptor, in oneDNN's terms, of a packed tensor: several hundred bytes that describe its layout."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed)


def bytes_of(packed: Tensor) -> Tensor:
    """A view of a packed tensor's bytes, valid as long as the tensor is."""
    size = torch.ops.mkldnn._nbytes(packed)
    memory = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(memory, dtype=torch.uint8)


def around(saved: Tensor, layout: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """A packed tensor of a shape and precision whose bytes are `saved`; None where this build cannot make one.

    The layout must be one that `layout_of` returned for such a tensor: oneDNN does not check it.
    """
    make = _maker()
    if make is None:
        return None
    packed = make(saved.data_ptr(), layout, shape, dtype)
    packed.kept_bytes = saved  # type: ignore[attr-defined]  # must live as long as the tensor
    return packed


Make = Callable[[int, Tensor, tuple[int, int], torch.dtype], Tensor]


@cache
def _maker() -> Make | None:
    """torch's own function, if this build has it and it works."""
    try:
        make = _make_from_c_interface()
        small = torch.ops.mkldnn._reorder_linear_weight(torch.arange(32.0).view(4, 8), 2)
        again = make(torch.ops.mkldnn.data_ptr(small), layout_of(small), (4, 8), torch.float32)
        return make if torch.equal(again.to_dense(), small.to_dense()) else None
    except (OSError, AttributeError, StopIteration, RuntimeError):
        return None


def _make_from_c_interface() -> Make:
    """The function in torch's C interface.

    Raises:
        OSError, AttributeError, StopIteration: this build does not have it.
    """
    folder = Path(torch.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(file for file in folder.iterdir() if file.stem.endswith("torch_cpu"))))
    create, opaque = library.aoti_torch_create_tensor_from_blob_v2, library.aoti_torch_layout__mkldnn()
    device = library.aoti_torch_device_type_cpu()
    dtypes = {torch.float32: library.aoti_torch_dtype_float32(), torch.int8: library.aoti_torch_dtype_int8()}
    steal_tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    numbers = ctypes.c_int64 * 2

    def make(address: int, layout: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        handle, md = ctypes.c_void_p(), layout.numpy().tobytes()
        failed = create(
            ctypes.c_void_p(address),
            ctypes.c_int64(2),
            numbers(*shape),
            numbers(),  # an opaque tensor has no strides
            ctypes.c_int64(0),
            dtypes[dtype],
            device,
            0,
            ctypes.byref(handle),
            opaque,
            md,
            ctypes.c_int64(len(md)),
        )
        if failed:
            raise RuntimeError("torch cannot make a packed tensor of these bytes")
        return steal_tensor(capsule(handle.value, None, None))

    return make


def read_ahead(saved: Tensor) -> None:
    """Bring the pages of a mapped tensor into memory before they are used, where the system supports it."""
    if sys.platform != "linux":
        return
    start = saved.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = saved.data_ptr() + saved.numel() * saved.element_size()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _POPULATE_READ)
