"""The header reader, compared with the gguf package's own and tried on damaged files."""

import contextlib

import gguf
import numpy as np
import pytest

from cascli.errors import RunError
from cascli.weights.gguf.file import GgufFile
from tests.weights.tiny import Kind, Tiny, vocabulary


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    settings = {"general.name": "Tiny — ✓", "x.flag": True, "x.number": -1.5}
    return Tiny(kind=Kind.Q4_K, settings=settings).write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_metadata_is_python_values(path):
    found = GgufFile(path).metadata
    assert found["general.architecture"] == "qwen2"
    assert found["general.name"] == "Tiny — ✓"
    assert found["x.flag"] is True
    assert found["x.number"] == -1.5
    assert (found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]) == vocabulary()


def test_tensors_equal_those_of_the_gguf_package(path):
    ours, stock = GgufFile(path).tensors, gguf.GGUFReader(path).tensors
    assert list(ours) == [tensor.name for tensor in stock]
    for tensor in stock:
        mine = ours[tensor.name]
        assert mine.kind == tensor.tensor_type
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert np.array_equal(mine.data.reshape(-1), np.asarray(tensor.data).reshape(-1).view(np.uint8))
        assert not mine.data.flags.writeable


def test_a_file_cut_short_anywhere_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(4, 3000, 97), 20_000, len(whole) // 2, len(whole) - 40]:
        cut.write_bytes(whole[:length])
        with pytest.raises(RunError, match="damaged or cut short"):
            GgufFile(cut)


@pytest.mark.parametrize("place", range(8, 400, 7))
def test_damaged_counts_and_lengths_never_crash(path, tmp_path, place):
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    with contextlib.suppress(RunError):  # damage to a number inside a value cannot be detected
        GgufFile(damaged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip", "not a GGUF file"),
        (b"", "not a GGUF file"),
        (b"GGUF\x01\x00\x00\x00" + bytes(16), "version 1 is not supported"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(content)
    with pytest.raises(RunError, match=message):
        GgufFile(other)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"absent\.gguf: cannot be read"):
        GgufFile(tmp_path / "absent.gguf")
