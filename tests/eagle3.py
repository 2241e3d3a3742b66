"""Small random EAGLE-3 heads in the real format, with a random target."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.pairs import SHAPE

WIDTH, HEADS, SHARED, INNER = 32, 2, 1, 48
LAYER: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "mlp_bias": False,
}
TAPS = [1, 2, 4]


def target(vocab: int, **more: Any) -> dict[str, Any]:
    """A target of five layers."""
    return {"source": {"random": SHAPE | {"vocab_size": vocab, "num_hidden_layers": 5} | more, "seed": 2}}


def tensors(
    layer: dict[str, Any], ids: Sequence[int], vocab: int, flags: dict[str, Any], *, taps: int, taken: int, seed: int
) -> dict[str, Tensor]:
    """All tensors of a head, under the names of the format."""
    generator = torch.Generator().manual_seed(seed)
    width = layer["hidden_size"]

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    def norm(n: int) -> Tensor:
        return 1 + 0.3 * torch.randn(n, generator=generator)

    rows = torch.tensor(ids)
    found = {
        "fc.weight": matrix(width, taps * taken),
        "norm.weight": norm(width),
        "lm_head.weight": matrix(len(ids), width),
        "embed_tokens.weight": torch.randn(vocab, width, generator=generator),
        "d2t": rows - torch.arange(len(ids)),
        "t2d": torch.zeros(vocab, dtype=torch.bool).index_fill_(0, rows, True),
    }
    if flags.get("norm_before_fc"):
        found["input_norm.weight"] = norm(taps * taken)
    if flags.get("fc_norm"):
        found |= {f"fc_norm.{place}.weight": norm(taken) for place in range(taps)}
    for place in range(layer["num_hidden_layers"]):
        found |= of_layer(layer, place, matrix, norm)
    return found


def of_layer(
    layer: dict[str, Any], place: int, matrix: Callable[..., Tensor], norm: Callable[[int], Tensor]
) -> dict[str, Tensor]:
    """The tensors of one layer."""
    at, width, inner = f"layers.{place}", layer["hidden_size"], layer["intermediate_size"]
    own, shared = (layer[name] * layer["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    wide = 2 * width if place == 0 else width
    names = ["input_layernorm", "post_attention_layernorm", *(["hidden_norm"] if place == 0 else [])]
    found = {f"{at}.{name}.weight": norm(width) for name in names}
    if layer["model_type"] == "qwen3":
        found |= {f"{at}.self_attn.{name}_norm.weight": norm(layer["head_dim"]) for name in "qk"}
    attention = {"q": (own, wide), "k": (shared, wide), "v": (shared, wide), "o": (width, own)}
    mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    for part, shapes in {"self_attn": attention, "mlp": mlp}.items():
        for name, shape in shapes.items():
            found[f"{at}.{part}.{name}_proj.weight"] = matrix(*shape)
            if layer["attention_bias" if part == "self_attn" else "mlp_bias"]:
                found[f"{at}.{part}.{name}_proj.bias"] = 0.1 * norm(shape[0])
    return found


def write_head(
    folder: Path,
    vocab: int,
    ids: Sequence[int],
    *,
    taps: list[int] | None = TAPS,
    seed: int = 7,
    own_embedding: bool = True,
    layer: dict[str, Any] | None = None,
    taken: int = WIDTH,
    scale: float = 1.0,
    **flags: Any,
) -> dict[str, Tensor]:
    """Write a head in the speculators format, and return what was written.

    `taken` is the target's width, `scale` sharpens its distributions, `flags` are keys of its config.
    """
    of_layer = LAYER | {"vocab_size": vocab} | (layer or {})
    count = 3 if taps is None else len(taps)
    found = tensors(of_layer, ids, vocab, flags, taps=count, taken=taken, seed=seed)
    found["lm_head.weight"] *= scale
    if not own_embedding:
        del found["embed_tokens.weight"]
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "transformer_layer_config": of_layer,
        "draft_vocab_size": len(ids),
        **({} if taps is None else {"eagle_aux_hidden_state_layer_ids": taps}),
        **flags,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(found, folder / "model.safetensors")
    return found


def pair_with_head(folder: Path, vocab: int, **more: Any) -> dict[str, Any]:
    """A pair whose head is in a folder; `more` changes the target's config."""
    return {"name": "head", "draft": {"eagle3": str(folder)}, "target": target(vocab, **more)}
