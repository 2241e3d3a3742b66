"""The weights of an EAGLE-3 head: third-party safetensors, checked name by name before any is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from cascli.errors import RunError
from cascli.models.checkpoint import files_of
from cascli.models.cpu.fit import Done, fit
from cascli.models.cpu.packed_linear import choose_rows
from cascli.models.cut_head import CutHead
from cascli.models.eagle3.head import Eagle3Head
from cascli.models.eagle3.layout import Layout
from cascli.models.placement import DTYPES
from cascli.weights import untrusted

_OLD, _NEW = "midlayer.", "layers.0."
_EMBEDDING = "embed_tokens.weight"
_MAPS = ("d2t", "t2d")
_UNUSED = ("verifier_lm_head.weight", "verifier_norm.weight")
"""The target's weights, which only training needs."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def weights_of_head(layout: Layout) -> int:
    """Number of weights of a head, without its embedding, which is looked up and not multiplied by."""
    return sum(each.numel() for each in _empty(layout, own_embedding=False).parameters())


def read_head(folder: Path, layout: Layout, dtype: str, device: torch.device, done: Done | None = None) -> Eagle3Head:
    """Load a head with its weights, in the kernels that it runs with.

    Args:
        folder: contains its files.
        layout: from its config.
        dtype: its precision, named as for a model.
        device: its target's.
        done: called for each layer as it is finished.

    Raises:
        RunError: a tensor is missing or unknown, a shape does not match the config, or the vocabulary map leads to
            no token or twice to the same one.
    """
    with untrusted.damaged(folder, "the head cannot be loaded:"):
        files = _files(folder)
        head = _empty(layout, own_embedding=_EMBEDDING in files)
        if layout.embed_requires_grad and head.embed_tokens is None:
            raise RunError(f"{folder}: its embedding was trained (embed_requires_grad), and '{_EMBEDDING}' is missing.")
        expected = {name: [*value.shape] for name, value in head.state_dict().items()}
        _check(folder, expected, files)
        state = {name: _floats(files[name], name) for name in expected}
        ids = _ids(folder, layout, files)
        order = ids.argsort()
        state["lm_head.weight"] = state["lm_head.weight"][order]
        head.load_state_dict(state, assign=True)
        head.lm_head = CutHead(head.lm_head, ids[order], layout.rows)
    head.eval().requires_grad_(False)
    if device.type == "cpu":
        fit(head, dtype, done=done)
        choose_rows(head)
        return head
    return head.to(device, DTYPES[dtype])


_Files = Mapping[str, tuple[Path, str]]
"""Tensors by their names in this format: the file of each, and its name there."""


def _files(folder: Path) -> _Files:
    """Where each tensor is stored, with older names mapped to current ones.

    Raises:
        RunError: there are no safetensors.
    """
    files = files_of(folder)
    if files is None:
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        why = f"{pickled.name} is a pickle, which can run code" if pickled else "there is no model.safetensors"
        raise RunError(f"{folder}: {why}.\nConvert the head with 'speculators convert', which writes safetensors.")
    return {
        name.replace(_OLD, _NEW, 1) if name.startswith(_OLD) else name: (file, name) for name, file in files.items()
    }


def _check(folder: Path, expected: Mapping[str, list[int]], files: _Files) -> None:
    """Compare names and shapes, from the files' headers alone."""
    missing = sorted(expected.keys() - files.keys())
    if missing:
        raise RunError(f"{folder}: '{missing[0]}' is missing{_and_more(missing)}.")
    unknown = sorted(files.keys() - expected.keys() - {*_MAPS, *_UNUSED})
    if unknown:
        raise RunError(
            f"{folder}: '{unknown[0]}'{_and_more(unknown)} is not part of the head that its config describes."
        )
    for name, shape in expected.items():
        _check_shape(folder, name, shape, files)


def _check_shape(folder: Path, name: str, shape: list[int], files: _Files) -> None:
    file, own_name = files[name]
    with safe_open(file, framework="pt") as opened:
        actual = [*opened.get_slice(own_name).get_shape()]
    if actual != shape:
        raise RunError(f"{folder}: '{name}' has shape {actual}, but its config and its target require {shape}.")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _tensor(location: tuple[Path, str]) -> Tensor:
    with safe_open(location[0], framework="pt") as file:
        tensor: Tensor = file.get_tensor(location[1])
        return tensor


def _floats(location: tuple[Path, str], name: str) -> Tensor:
    value = _tensor(location)
    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise RunError(f"{location[0]}: '{name}' is of {value.dtype}; weights must be floating-point.")
    return value


def _ids(folder: Path, layout: Layout, files: _Files) -> Tensor:
    """The target's token for each of the head's rows, `[draft_vocab]`: the row's number plus its entry in `d2t`."""
    places = torch.arange(layout.draft_vocab)
    if "d2t" not in files:
        if layout.draft_vocab < layout.rows:
            raise RunError(f"{folder}: 'd2t' is missing, which maps its {layout.draft_vocab:,} rows to tokens.")
        return places
    offsets = _vector(folder, "d2t", [layout.draft_vocab], files)
    ids = places + offsets.long()
    outside = ids[(ids < 0) | (ids >= layout.rows)]
    if outside.numel():
        raise RunError(f"{folder}: 'd2t' maps to token {int(outside[0])}, but the target has 0 to {layout.rows - 1}.")
    if ids.unique().numel() < ids.numel():
        raise RunError(f"{folder}: 'd2t' maps to one token twice.")
    if "t2d" in files:
        marked = _vector(folder, "t2d", [layout.rows], files).bool().nonzero().flatten()
        if not torch.equal(marked, ids.sort().values):
            raise RunError(f"{folder}: 'd2t' and 't2d' name different tokens.")
    return ids


def _vector(folder: Path, name: str, shape: list[int], files: _Files) -> Tensor:
    """Read a vector of integers or booleans."""
    _check_shape(folder, name, shape, files)
    value = _tensor(files[name])
    if value.dtype not in (*_INTEGERS, torch.bool):
        raise RunError(f"{folder}: '{name}' is of {value.dtype}; expected whole numbers.")
    return value


def _empty(layout: Layout, *, own_embedding: bool) -> Eagle3Head:
    """A head without weights."""
    with torch.device("meta"):
        return Eagle3Head(layout, own_embedding=own_embedding)
