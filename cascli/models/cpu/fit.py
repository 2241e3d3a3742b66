"""Convert a model to the precision and the kernels that it runs with on a CPU, layer by layer.

Each layer's stored weights are dropped as soon as they are packed, so peak memory is one model plus one layer. Input
embeddings stay as stored and are widened on lookup: the same numbers in half the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cascli.models.checkpoint import Read
from cascli.models.cpu.int8_kernels import OneDnnWeights
from cascli.models.cpu.int8_linear import Int8Linear, SharedDigits, check_int8
from cascli.models.cpu.packed_linear import DenseLinear, PackedLinear, can_pack
from cascli.models.cpu.packed_store import PackedStore
from cascli.models.cpu.row_activation import use_row_activations
from cascli.models.cpu.row_attention import use_row_attention
from cascli.models.size import is_large, text_part

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same input, in the order in which they run."""
Make = Callable[[Tensor, Tensor | None], nn.Module]
Done = Callable[[str, int], None]
"""Called with weights that are ready: the name of their layer (empty if they have none) and their number."""


class WideEmbedding(nn.Embedding):
    """`nn.Embedding` that returns float32 whatever the dtype of its table."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids."""
        return F.embedding(input, self.weight).float()


def working_dtype(dtype: str) -> torch.dtype:
    """The dtype of activations for a precision of weights."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype, torch.float32)


def store_for(folder: Path | None, dtype: str, cut: str = "") -> PackedStore | None:
    """The store that keeps packed layers of a precision between starts, if any; `cut` as in `PackedStore`.

    Raises:
        RunError: int8, and this build of torch has no kernels for it.
    """
    if folder is None or not PackedStore.keeps(dtype):
        return None
    storable = issubclass(check_int8(), OneDnnWeights) if dtype == "int8" else can_pack(working_dtype(dtype))
    return PackedStore(folder, dtype, cut) if storable else None


def fit(
    model: nn.Module,
    dtype: str,
    read: Read | None = None,
    store: PackedStore | None = None,
    done: Done | None = None,
    large: bool | None = None,
) -> None:
    """Switch every linear layer, and attention where possible, to the kernels for `dtype`, in place.

    Args:
        model: on the CPU; its parameters may be empty if `read` is given.
        dtype: float32, bfloat16, int8, or float16, which keeps torch's own kernels.
        read: returns the stored value of a parameter by its name; the model's own by default.
        store: holds the packed layers of earlier starts.
        done: called for each layer as it is finished.
        large: whether packing is worth it in precisions other than int8; by default if it has `LARGE` weights, of which
            a head that is yet to be tied to the embeddings counts as more.

    Raises:
        RunError: int8, and this build of torch has no kernels for it.
    """
    if dtype == "int8":
        check_int8()
    work = working_dtype(dtype)
    packs = dtype == "int8" or can_pack(work)
    read, done = read or _reader_of(model), done or _ignore
    if packs:
        make = Int8Linear.of if dtype == "int8" else _Packer(work, is_large(model) if large is None else large)
        _switch(model, make, read, store, done)
    _fill(model, work, read, done)
    if packs:
        use_row_activations(model)
    if packs and isinstance(model, PreTrainedModel):
        use_row_attention(model)


class _Packer:
    """Makes packed layers, or plain ones for a small model.

    Widens through one buffer, because touching fresh memory costs more than the conversion.
    """

    def __init__(self, work: torch.dtype, large: bool) -> None:
        self._large = large
        self._buffer = torch.empty(0, dtype=work)

    def __call__(self, weight: Tensor, bias: Tensor | None) -> PackedLinear | DenseLinear:
        """A layer of weights `[out, in]` in the working precision."""
        if not self._large:
            return DenseLinear.of(weight.to(self._buffer.dtype), bias)
        if weight.dtype == self._buffer.dtype:
            return PackedLinear(weight, bias)
        if self._buffer.numel() < weight.numel():
            self._buffer = torch.empty(weight.numel(), dtype=self._buffer.dtype)
        return PackedLinear(self._buffer[: weight.numel()].view(weight.shape).copy_(weight), bias)


def _reader_of(model: nn.Module) -> Read:
    """Read from the model itself, so a value is freed once its layer drops it."""
    return lambda name: model.get_parameter(name).detach()


def _ignore(name: str, weights: int) -> None:
    """The default for `done`."""
    del name, weights


_PLAIN = ("FalconLinear",)
"""Classes of linear layers that compute what `nn.Linear` does, written out."""


def _switch(model: nn.Module, make: Make, read: Read, store: PackedStore | None, done: Done) -> None:
    """Replace every linear layer that text passes through with a packed one."""
    part = text_part(model)
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if child in part and (type(child) in (nn.Linear, Conv1D) or type(child).__name__ in _PLAIN):
                full = f"{path}.{name}" if path else name
                setattr(parent, name, _packed(full, child, make, read, store))
                done(full, child.get_parameter("weight").numel())
    _share_digits(model)


def _share_digits(model: nn.Module) -> None:
    """Let int8 layers that read the same input compute its digits once."""
    shared = SharedDigits()
    for parent in model.modules():
        for names in _SAME_INPUT:
            layers = [getattr(parent, name, None) for name in names]
            for layer in layers:
                if isinstance(layer, Int8Linear):
                    layer.shared, layer.is_first = shared, layer is layers[0]


def _packed(name: str, layer: nn.Module, make: Make, read: Read, store: PackedStore | None) -> nn.Module:
    """The packed form of one layer, from the store if it is there."""
    transposed = type(layer) is Conv1D  # GPT-2's, whose weights are transposed
    stored, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    if store is not None:
        packed = store.restore(name, (stored.T if transposed else stored).shape, bias is not None)
        if packed is not None:
            return packed
    weight = read(f"{name}.weight")
    return make(weight.T if transposed else weight, None if bias is None else read(f"{name}.bias"))


def _fill(model: nn.Module, work: torch.dtype, read: Read, done: Done) -> None:
    """Give everything outside packed layers its value in the working precision; embeddings are widened on lookup.

    Matrices that text does not pass through, such as a tower's for images, stay as stored.
    """
    part = text_part(model)
    for path, module in model.named_modules():
        if isinstance(module, DenseLinear):
            continue  # already has its values
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = read(f"{path}.{name}" if path else name)
            if type(module) is nn.Embedding and work == torch.float32 and value.dtype != work:
                module.__class__ = WideEmbedding
            elif parameter.is_floating_point() and (module in part or value.dim() < 2):
                value = value.to(work)
            # Cloned: a value that is still backed by its file would keep the whole file's pages in memory.
            value = value.clone() if parameter.is_meta else value
            setattr(module, name, nn.Parameter(value, requires_grad=False))
            done("", value.numel())
