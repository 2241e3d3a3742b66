"""Convert a GGUF file to a Hugging Face model folder, once, so that every later start is fast.

Dense llama and qwen2 files, and their tokenizers where the recipe is known, take a fast path; anything
else goes through the stock GGUF loading of transformers, which takes minutes longer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascli.weights import untrusted
from cascli.weights.disk import require_space, writing
from cascli.weights.gguf import stock
from cascli.weights.gguf.config import end_ids, fast_config, special_ids
from cascli.weights.gguf.file import GgufFile
from cascli.weights.gguf.tensors import safetensors_bytes, write_safetensors
from cascli.weights.gguf.tokenizer import fast_tokenizer
from cascli.weights.manifest import replacing
from cascli.weights.report import Report, silent

_MARGIN = 64 << 20  # tokenizer, configuration, file system


def convert(gguf: Path, folder: Path, report: Report = silent, *, source: str = "", sha256: str | None = None) -> None:
    """Write the model in `gguf` to `folder` in bfloat16, whole or not at all, and record `source` and `sha256` there.

    Raises:
        RunError: a file that is damaged or not supported, or not enough disk space.

    """
    file = GgufFile(gguf)
    needed = safetensors_bytes(file) + _MARGIN
    about = {"source": source, "sha256": sha256, "architecture": file.architecture}
    report("convert", 0, 0)
    with writing(folder.parent, needed):
        folder.parent.mkdir(parents=True, exist_ok=True)
        require_space(folder.parent, needed)
        with replacing(folder, about) as scratch, untrusted.damaged(gguf):
            _write(file, scratch, report)


def _write(file: GgufFile, folder: Path, report: Report) -> None:
    config = fast_config(file)
    if config is None:
        untrusted.check_sizes(_counts(file), str(file.path))
        stock.save_model(file, folder)
    else:
        write_safetensors(file, config, folder / "model.safetensors", report)
        config.save_pretrained(folder)
    _write_generation_config(file, folder)
    _write_tokenizer(file, folder)


def _counts(file: GgufFile) -> dict[str, Any]:
    """A file's settings, from which stock loading builds a model."""
    start = f"{file.architecture}."
    return {f"num_{key.removeprefix(start)}": value for key, value in file.metadata.items() if key.startswith(start)}


def _write_generation_config(file: GgufFile, folder: Path) -> None:
    from transformers import GenerationConfig

    ends = end_ids(file.metadata)
    ids: dict[str, Any] = special_ids(file.metadata) | ({"eos_token_id": ends} if ends else {})
    GenerationConfig(**ids).save_pretrained(folder)


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    tokenizer = fast_tokenizer(file.metadata)
    if tokenizer is None:
        stock.save_tokenizer(file, folder)
    else:
        tokenizer.save_pretrained(folder)
