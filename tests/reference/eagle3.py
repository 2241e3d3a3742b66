"""An EAGLE-3 head token by token in NumPy: loops over the published description, in float64.

Position j of a text reads token j together with a state of position j - 1: the target's if the target has read that
position, otherwise the head's own. The first position is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray


def norm(x: Array, weight: Array, eps: float) -> Array:
    """Root mean square normalisation."""
    return weight * x / np.sqrt(np.mean(x * x) + eps)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rotated(x: Array, place: int, frequencies: Array) -> Array:
    """Rotate each pair (i, i + d / 2) of a vector by its angle."""
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        cos, sin = np.cos(place * frequencies[i]), np.sin(place * frequencies[i])
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


class Head:
    """A head given by its weights `{name: array}`, its config's layer settings and its flags."""

    def __init__(
        self, weights: Mapping[str, Any], layer: Mapping[str, Any], embedding: Array | None = None, **flags: Any
    ):
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.layer, self.flags = layer, flags
        self.embedding = self.w["embed_tokens.weight"] if embedding is None else embedding
        self.ids = [row + int(offset) for row, offset in enumerate(weights["d2t"])]
        self.eps = layer["rms_norm_eps"]
        width, theta = layer["head_dim"], layer["rope_parameters"]["rope_theta"]
        power = torch.arange(0, width, 2, dtype=torch.int64).float() / width
        # In single precision, as in every implementation: their last digit matters.
        self.frequencies = (1.0 / theta**power).double().numpy()

    def logits(self, tokens: Sequence[int], states: Array, vocab: int) -> Array:
        """Logits `[len(tokens) - 1, vocab]` after each token but the first.

        `states` `[m, taps, width]` are the target's states at the first m tokens.
        """
        self.keys = [[] for _ in range(self.layer["num_hidden_layers"])]
        self.values = [[] for _ in self.keys]
        rows, own = [], np.zeros(0)
        for place in range(1, len(tokens)):
            state = self.fused(states[place - 1]) if place - 1 < len(states) else own
            for number in range(len(self.keys)):
                state = self.through(number, self.embedding[tokens[place]], state, place)
            normed = norm(state, self.w["norm.weight"], self.eps)
            own = normed if self.flags.get("norm_output") else state
            row = np.full(vocab, -np.inf)
            for index, token in enumerate(self.ids):
                row[token] = self.w["lm_head.weight"][index] @ normed
            rows.append(row)
        return np.array(rows)

    def fused(self, taps: Array) -> Array:
        """Project `[taps, width]` to the head's width."""
        if self.flags.get("fc_norm"):
            taps = np.array([norm(tap, self.w[f"fc_norm.{i}.weight"], self.eps) for i, tap in enumerate(taps)])
        flat = taps.reshape(-1)
        if self.flags.get("norm_before_fc"):
            flat = norm(flat, self.w["input_norm.weight"], self.eps)
        return self.w["fc.weight"] @ flat

    def through(self, number: int, embedding: Array, state: Array, place: int) -> Array:
        """One layer."""
        at = f"layers.{number}"
        if number == 0:
            seen = norm(state, self.w[f"{at}.hidden_norm.weight"], self.eps)
            base = seen if self.flags.get("norm_before_residual") else state
            x = np.concatenate([norm(embedding, self.w[f"{at}.input_layernorm.weight"], self.eps), seen])
        else:
            base, x = state, norm(state, self.w[f"{at}.input_layernorm.weight"], self.eps)
        state = base + self.attention(number, x, place)
        x = norm(state, self.w[f"{at}.post_attention_layernorm.weight"], self.eps)
        inner = silu(self.times(f"{at}.mlp.gate_proj", x)) * self.times(f"{at}.mlp.up_proj", x)
        return state + self.times(f"{at}.mlp.down_proj", inner)

    def times(self, name: str, x: Array) -> Array:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def attention(self, number: int, x: Array, place: int) -> Array:
        at, width = f"layers.{number}.self_attn", self.layer["head_dim"]
        heads, shared = self.layer["num_attention_heads"], self.layer["num_key_value_heads"]

        def split(kind: str, count: int) -> list[Array]:
            parts = list(self.times(f"{at}.{kind}_proj", x).reshape(count, width))
            weight = self.w.get(f"{at}.{kind}_norm.weight")
            return parts if weight is None else [norm(part, weight, self.eps) for part in parts]

        self.keys[number].append([rotated(key, place, self.frequencies) for key in split("k", shared)])
        self.values[number].append(split("v", shared))
        out = []
        for head, query in enumerate(split("q", heads)):
            query, group = rotated(query, place, self.frequencies), head * shared // heads
            scores = np.array([keys[group] @ query for keys in self.keys[number]]) / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed = sum(w * values[group] for w, values in zip(weights, self.values[number], strict=True))
            out.append(mixed / weights.sum())
        return self.times(f"{at}.o_proj", np.concatenate(out))
