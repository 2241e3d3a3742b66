"""Packed weights that are stored on disk, and used directly from the mapped file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cascli import load_pair
from cascli.models.cpu import mapped, packed_store
from cascli.models.cpu.int8_kernels import OneDnnWeights, int8_kernel
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.models.cpu.packed_linear import PackedLinear, can_pack
from tests.pairs import stored_alone

KINDS = [
    *(["float32"] if can_pack(torch.float32) else []),
    *(["int8"] if issubclass(int8_kernel() or object, OneDnnWeights) else []),
]
pytestmark = pytest.mark.skipif(not KINDS, reason="nothing that could be kept is packed here")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A target in a folder, and a separate cache that stores even small models."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    return stored_alone(tmp_path / "model")


def logits(stored: dict, dtype: str) -> torch.Tensor:
    return load_pair(stored, dtype=dtype).target.runner.forward(torch.arange(20), 20)


def kept(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "home" / "packed").iterdir()
    return file


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of each layer that was packed, unless its weights are all zero."""
    told: list[str] = []
    for kind, name in ((PackedLinear, "float32"), (OneDnnWeights, "int8")):

        def watched(weight: torch.Tensor, stock: Callable = kind.pack, name: str = name) -> torch.Tensor:
            told.extend([name] if weight.any() else [])
            return stock(weight)

        monkeypatch.setattr(kind, "pack", staticmethod(watched))
    return told


@pytest.mark.parametrize("dtype", KINDS)
def test_stored_layers_are_reused_bit_for_bit(dtype: str, stored: dict, tmp_path: Path, packings: list[str]) -> None:
    first = logits(stored, dtype)
    assert packings
    packings.clear()
    assert torch.equal(logits(stored, dtype), first)
    assert not packings and kept(tmp_path).is_file()


@pytest.mark.parametrize("dtype", KINDS)
def test_layers_are_mapped_from_the_file_without_a_copy(dtype: str, stored: dict) -> None:
    load_pair(stored, dtype=dtype)
    model = load_pair(stored, dtype=dtype).target.model
    layers = [each for each in model.modules() if isinstance(each, PackedLinear | Int8Linear)]
    assert layers
    for layer in layers:
        packed = layer.packed if isinstance(layer, PackedLinear) else layer.weights.packed
        assert torch.ops.mkldnn.data_ptr(packed) == packed.kept_bytes.data_ptr()
        assert packed.kept_bytes.data_ptr() % 64 == 0


@pytest.mark.parametrize("dtype", KINDS)
def test_without_torchs_function_the_bytes_are_copied(
    dtype: str, stored: dict, monkeypatch: pytest.MonkeyPatch, packings: list[str]
) -> None:
    first = logits(stored, dtype)
    packings.clear()
    monkeypatch.setattr(mapped, "_maker", lambda: None)
    assert torch.equal(logits(stored, dtype), first) and not packings


def test_a_torch_build_without_the_function_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise AttributeError("undefined symbol: aoti_torch_create_tensor_from_blob_v2")

    monkeypatch.setattr(mapped, "_make_from_c_interface", missing)
    mapped._maker.cache_clear()
    assert mapped._maker() is None
    monkeypatch.undo()
    mapped._maker.cache_clear()


def test_each_precision_has_its_own_file(stored: dict, tmp_path: Path, packings: list[str]) -> None:
    first = [logits(stored, dtype) for dtype in KINDS]
    assert len(list((tmp_path / "home" / "packed").iterdir())) == len(KINDS)
    packings.clear()
    again = [logits(stored, dtype) for dtype in KINDS]
    assert not packings and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def put(file: Path, data: bytes) -> None:
    """Replace the file instead of overwriting it, as the old one may still be mapped."""
    file.unlink()
    file.write_bytes(data)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    put(file, bytes(data))


def place_of(file: Path, suffix: str) -> int:
    """Byte offset of the last tensor whose name ends with `suffix`."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = [name for name in header if name.endswith(suffix)][-1]
    return 8 + size + header[name]["data_offsets"][0]


@pytest.mark.parametrize("compared", [0, 2**40])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_flipped_bit_in_a_layout_is_detected(
    dtype: str, compared: int, stored: dict, tmp_path: Path, packings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed by making the layout again (small layers) and by its digest (large ones)."""
    monkeypatch.setattr(packed_store, "_COMPARED", compared)
    first = logits(stored, dtype)
    for place in (0, 9, 40):
        flip(kept(tmp_path), place_of(kept(tmp_path), ".layout") + place)
        packings.clear()
        assert torch.equal(logits(stored, dtype), first) and packings


@pytest.mark.parametrize("dtype", KINDS)
def test_a_damaged_or_truncated_file_is_rebuilt(dtype: str, stored: dict, tmp_path: Path, packings: list[str]) -> None:
    first = logits(stored, dtype)
    whole = kept(tmp_path).read_bytes()
    for data in (whole[:-1], whole[:100], b"", whole[:8] + b"[" + whole[9:], whole.replace(b'"shapes"', b'"shapez"')):
        put(kept(tmp_path), data)
        packings.clear()
        assert torch.equal(logits(stored, dtype), first) and packings


@pytest.mark.parametrize("dtype", KINDS)
def test_layers_of_another_shape_are_not_reused(
    dtype: str, stored: dict, tmp_path: Path, packings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_store, "_COMPARED", 0)
    logits(stored, dtype)
    file = kept(tmp_path)
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata()
    shapes = {name: [shape[0] + 1, shape[1]] for name, shape in json.loads(told["shapes"]).items()}
    tensors = load_file(file)
    file.unlink()
    packed_store._write(file, tensors, told | {"shapes": json.dumps(shapes)})
    packings.clear()
    logits(stored, dtype)
    assert packings


@pytest.mark.skipif("int8" not in KINDS, reason="int8 is not kept here")
def test_files_of_earlier_releases_are_still_used(stored: dict, tmp_path: Path, packings: list[str]) -> None:
    first = logits(stored, "int8")
    tensors = {name: value.clone() for name, value in load_file(kept(tmp_path)).items()}
    file = kept(tmp_path)
    file.unlink()
    save_file(tensors, file)
    packings.clear()
    assert torch.equal(logits(stored, "int8"), first) and not packings


@pytest.mark.parametrize("dtype", KINDS)
def test_nothing_is_stored_that_would_use_half_of_the_free_space(
    dtype: str, stored: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert torch.isfinite(logits(stored, dtype)).all()
    assert not list((tmp_path / "home" / "packed").iterdir())


@pytest.mark.parametrize("dtype", KINDS)
def test_a_loaded_model_outlives_its_file(dtype: str, stored: dict, tmp_path: Path) -> None:
    first = logits(stored, dtype)
    loaded = load_pair(stored, dtype=dtype)
    kept(tmp_path).unlink()
    assert torch.equal(loaded.target.runner.forward(torch.arange(20), 20), first)


@pytest.mark.skipif("float32" not in KINDS, reason="float32 is not packed here")
def test_small_models_and_other_precisions_are_not_kept(stored: dict, tmp_path: Path, monkeypatch: Any) -> None:
    logits(stored, "bfloat16")
    monkeypatch.setattr("cascli.models.size.LARGE", 10**8)
    logits(stored, "float32")
    assert not (tmp_path / "home" / "packed").exists()
