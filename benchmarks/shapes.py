"""Pairs with random weights in the shapes of real models."""

from __future__ import annotations

from typing import Any, NamedTuple

QWEN = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 4096, "tie_word_embeddings": True}
GEMMA = {"model_type": "gemma2", "vocab_size": 256000, "max_position_embeddings": 4096, "head_dim": 256}


def _shape(base: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, shared: int, **more: Any) -> Any:
    return base | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        **more,
    }


SHAPES = {
    "qwen2.5-0.5b": _shape(QWEN, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _shape(QWEN, 1536, 8960, 28, 12, 2),
    "qwen2.5-7b": _shape(QWEN, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
    "qwen2.5-32b": _shape(QWEN, 5120, 27648, 64, 40, 8, tie_word_embeddings=False),
    "gemma2-2b": _shape(GEMMA, 2304, 9216, 26, 8, 4),
    "gemma2-9b": _shape(GEMMA, 3584, 14336, 42, 16, 8),
    "gemma2-27b": _shape(GEMMA, 4608, 36864, 46, 32, 16, head_dim=128),
}


class Chosen(NamedTuple):
    """A pair to measure, and the seconds that `benchmarks.gpu` should take for it on an H100."""

    draft: str
    target: str
    seconds: float
    compiled_seconds: float


PAIRS = [
    Chosen("qwen2.5-0.5b", "qwen2.5-1.5b", 55, 220),  # the first row also waits for a cold disk
    Chosen("qwen2.5-0.5b", "qwen2.5-7b", 45, 190),  # torch has compiled this draft model before and cached it
    Chosen("gemma2-2b", "gemma2-9b", 65, 280),
    Chosen("qwen2.5-0.5b", "qwen2.5-32b", 75, 330),
    Chosen("gemma2-2b", "gemma2-27b", 75, 300),
]


def pair_config(draft: str, target: str, shrink: int = 1) -> dict[str, Any]:
    """Return a pair in these shapes, with widths and depths divided by `shrink`."""
    found: dict[str, Any] = {"name": f"{draft} with {target}"}
    for role, name, seed in (("draft", draft, 1), ("target", target, 2)):
        shape = dict(SHAPES[name])
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size") if shrink > 1 else ():
            shape[key] = max(shape[key] // shrink, 2)
        if shrink > 1:
            shape["hidden_size"] = shape["num_attention_heads"] * 16
            shape["head_dim"] = 16
        found[role] = {"source": {"random": shape, "seed": seed, "tokenizer": False}}
    return found
