"""GGUF metadata to a transformers config, for the two families that have a fast path.

`fast_config` returns None for every file that the fast path would not get right; the caller then uses
the stock path of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cascli.errors import RunError
from cascli.weights.gguf.file import GgufFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
# Control tokens with these names end a turn or a text; llama.cpp also recognises them by name.
_ENDS = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "</s>",
}
_CONTROL = 3
_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def fast_config(gguf: GgufFile) -> PretrainedConfig | None:
    """The config of a dense llama or qwen2 file, or None where the fast path does not apply.

    Raises:
        RunError: a setting that the family needs is missing, or the rotary scaling is not known.

    """
    from transformers import AutoConfig

    family = gguf.architecture
    if family not in FAMILIES or gguf.setting("expert_count", 0):
        return None
    missing = [key for key in _NAMES.values() if gguf.setting(key) is None]
    if missing or "token_embd.weight" not in gguf.tensors:
        what = ", ".join(f"{family}.{key}" for key in missing) or "token_embd.weight"
        raise RunError(f"{gguf.path}: the GGUF file has no {what}.\nFetch a complete file of this model.")
    values = {name: gguf.setting(key) for name, key in _NAMES.items()}
    if any(isinstance(value, list) for value in values.values()):
        return None  # settings that differ by layer
    _check_blocks(gguf)
    heads = values["num_attention_heads"]
    values |= {
        "num_key_value_heads": gguf.setting("attention.head_count_kv", heads),
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": _rope(gguf),
        "architectures": [FAMILIES[family]],
        "dtype": "bfloat16",
    }
    if family == "llama":
        values["head_dim"] = gguf.setting("attention.key_length", values["hidden_size"] // heads)
        values["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in gguf.tensors
    return AutoConfig.for_model(family, **values, **special_ids(gguf.metadata))


def _check_blocks(gguf: GgufFile) -> None:
    """Reject a file that declares more blocks than it holds: a model with that many would be built.

    Raises:
        RunError: it does, or the number of blocks is invalid.
    """
    blocks = {name.split(".")[1] for name in gguf.tensors if name.startswith("blk.") and name.count(".") > 1}
    declared = gguf.setting("block_count")
    if not isinstance(declared, int) or declared > len(blocks):
        raise RunError(
            f"{gguf.path}: {gguf.architecture}.block_count is {declared!r}, but it holds {len(blocks)} blocks."
        )


def special_ids(metadata: dict[str, Any]) -> dict[str, int | None]:
    """The ids of BOS, EOS and padding as the file states them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Every id that ends an answer: the stated EOS first, then control tokens known to end a turn or a text."""
    stated = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    tokens, kinds = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.token_type", [])
    known = [
        i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind == _CONTROL and token in _ENDS
    ]
    return list(dict.fromkeys(i for i in [*stated, *known] if i is not None))


def _rope(gguf: GgufFile) -> dict[str, Any]:
    base = float(gguf.setting("rope.freq_base", 10000.0))
    scaling = gguf.setting("rope.scaling.type", "none")
    rope: dict[str, Any] = {"rope_theta": base, "rope_type": "default"}
    if "rope_freqs.weight" in gguf.tensors:
        return rope | _llama3_scaling(gguf, base)
    if scaling == "none":
        return rope
    rope["factor"] = float(gguf.setting("rope.scaling.factor", 1.0))
    if scaling == "linear":
        return rope | {"rope_type": "linear"}
    if scaling == "yarn" and gguf.setting("rope.scaling.original_context_length"):
        original = gguf.setting("rope.scaling.original_context_length")
        return rope | {"rope_type": "yarn", "original_max_position_embeddings": original}
    raise RunError(f"{gguf.path}: rotary scaling '{scaling}' is not supported.\nUse the model's safetensors instead.")


def _llama3_scaling(gguf: GgufFile, base: float) -> dict[str, Any]:
    """Recognise Llama 3's scaling: the file holds divisors of frequencies, transformers takes parameters."""
    divisors = gguf.tensors["rope_freqs.weight"].data.reshape(-1).view(np.float32)
    factor = float(divisors.max())
    wavelength = 2 * np.pi * base ** (np.arange(len(divisors)) / len(divisors))
    low, high = _LLAMA3_BANDS["low_freq_factor"], _LLAMA3_BANDS["high_freq_factor"]
    smooth = np.clip((_LLAMA3_BANDS["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise RunError(
            f"{gguf.path}: rope_freqs.weight is not Llama 3's scaling.\nUse the model's safetensors instead."
        )
    return {"rope_type": "llama3", "factor": factor} | _LLAMA3_BANDS
