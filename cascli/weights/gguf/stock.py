"""The GGUF loading that comes with transformers: slow, but correct for every family that it supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cascli.errors import RunError
from cascli.weights import untrusted
from cascli.weights.gguf.file import GgufFile


def save_model(file: GgufFile, folder: Path) -> None:
    """Load the model of `file` and save it to `folder` in bfloat16.

    Raises:
        RunError: transformers cannot load it.
    """
    import torch

    with _refusals(file):
        model = untrusted.any_model(file.path.parent, gguf_file=file.path.name, dtype=torch.bfloat16, **_dequantised())
    _require_scaling(file, model.config)
    model.save_pretrained(folder)


def _require_scaling(file: GgufFile, config: Any) -> None:
    """Reject a file whose rotary scaling transformers has left out, as it does for most families.

    Raises:
        RunError: the file scales positions, and the config does not.
    """
    scaling = file.setting("rope.scaling.type", "none")
    divisors = [name for name in file.tensors if name.startswith(("rope_freqs", "rope_factors"))]
    loaded = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if (scaling != "none" or divisors) and loaded.get("rope_type", "default") == "default":
        what = divisors[0] if divisors else f"rope.scaling.type {scaling}"
        raise RunError(
            f"{file.path}: transformers leaves out how positions are scaled ({what}) in GGUF files of"
            f" {file.architecture}.\nUse the model's safetensors instead, as a folder or from the hub."
        )


def save_tokenizer(file: GgufFile, folder: Path) -> None:
    """Load the tokenizer of `file` and save it to `folder`.

    Raises:
        RunError: transformers cannot load it.
    """
    with _refusals(file):
        untrusted.any_tokenizer(file.path.parent, gguf_file=file.path.name).save_pretrained(folder)


def _dequantised() -> dict[str, Any]:
    """Arguments that make transformers return plain weights: newer versions keep the quantised blocks by default."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _refusals(file: GgufFile) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        if "ignore_mismatched_sizes" in reason:
            reason = "its tensors have other shapes than transformers takes from its settings"
        raise RunError(
            f"{file.path}: transformers cannot load this GGUF file ({file.architecture}): {reason}\n"
            "Use the model's safetensors instead, as a folder or from the hub."
        ) from error
