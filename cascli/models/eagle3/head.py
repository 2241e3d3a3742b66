"""The layers of an EAGLE-3 head, named as in its files.

A step reads a token and a state, which belongs to the token before: the target's hidden states after some of its
layers, projected to the head's width by `fc`; or, where the target has not read that token yet, the head's own output
of the previous step. The first layer reads both, `[norm(embedding), norm(state)]`, and adds its output to the state
alone. (Li et al. 2025, EAGLE-3; `norm_output` and the norms before `fc`: EAGLE 3.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from cascli.models.cache import RewindLayer
from cascli.models.eagle3.layout import Layout


class Rotation(NamedTuple):
    """Cosines and sines of the angles at some positions, `[n, 1, head_dim]` each."""

    cos: Tensor
    sin: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """Rotate states `[n, heads, head_dim]`, pairing each element of the first half with one of the second."""
        first, second = states.chunk(2, dim=-1)
        return states * self.cos + torch.cat([-second, first], dim=-1) * self.sin


class Attention(nn.Module):
    """Causal attention over a cache, of inputs `[n, wide]`."""

    def __init__(self, config: PreTrainedConfig, wide: int) -> None:
        super().__init__()
        self.width = config.head_dim
        own, shared = (n * self.width for n in (config.num_attention_heads, config.num_key_value_heads))
        bias = bool(config.attention_bias)
        self.q_proj = nn.Linear(wide, own, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(wide, shared, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(own, config.hidden_size, bias=bias)
        qwen = config.model_type == "qwen3"
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.width, eps=config.rms_norm_eps) if qwen else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, rotation: Rotation, cache: RewindLayer) -> Tensor:
        """Attend with n tokens after those in the cache, adding them to it; returns `[n, hidden]`."""
        n = x.shape[0]
        query, key, value = (each(x).view(n, -1, self.width) for each in (self.q_proj, self.k_proj, self.v_proj))
        query, key = rotation(self.q_norm(query)), rotation(self.k_norm(key))
        keys, values = cache.update(*(each.transpose(0, 1).unsqueeze(0) for each in (key, value)))
        before, mask = keys.shape[-2] - n, None
        if before and n > 1:
            mask = torch.ones(n, before + n, dtype=torch.bool, device=x.device).tril(before)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0), keys, values, mask, is_causal=not before, enable_gqa=True
        )
        result: Tensor = self.o_proj(out[0].transpose(0, 1).reshape(n, -1))
        return result


class Mlp(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        bias = config.model_type == "llama" and bool(config.mlp_bias)
        self.gate_proj, self.up_proj = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=bias) for _ in range(2)
        )
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, hidden]` to `[n, hidden]`."""
        result: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):
    """A decoder layer; only the first one also reads the token's embedding and has a `hidden_norm`."""

    def __init__(self, config: PreTrainedConfig, *, first: bool, norm_before_residual: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = norm_before_residual
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, eps=eps) for _ in range(2))
        self.hidden_norm = nn.RMSNorm(width, eps=eps) if first else None
        self.self_attn = Attention(config, 2 * width if first else width)
        self.mlp = Mlp(config)

    def forward(self, hidden: Tensor, embedding: Tensor, rotation: Rotation, cache: RewindLayer) -> Tensor:
        """Map `[n, hidden]` to `[n, hidden]`."""
        residual = hidden
        if self.hidden_norm is None:
            x = self.input_layernorm(hidden)
        else:
            hidden = self.hidden_norm(hidden)
            residual = hidden if self.norm_before_residual else residual
            x = torch.cat([self.input_layernorm(embedding), hidden], dim=-1)
        hidden = residual + self.self_attn(x, rotation, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Step(NamedTuple):
    """The output for n tokens, `[n, hidden]` each."""

    state: Tensor
    """The next step's input where the target has not read yet."""
    normed: Tensor
    """The input of the output matrix."""


class Eagle3Head(nn.Module):
    """The network of a head; once loaded, its output matrix gives logits for all of the target's tokens (`CutHead`)."""

    def __init__(self, layout: Layout, *, own_embedding: bool) -> None:
        """Build the head with torch's default weights, on the default device."""
        super().__init__()
        config = layout.layer
        width, eps = config.hidden_size, config.rms_norm_eps
        self.config, self.layout = config, layout
        taken = len(layout.taps) * layout.target_width
        self.input_norm = nn.RMSNorm(taken, eps=eps) if layout.norm_before_fc else None
        norms = [nn.RMSNorm(layout.target_width, eps=eps) for _ in layout.taps] if layout.fc_norm else None
        self.fc_norm = None if norms is None else nn.ModuleList(norms)
        self.fc = nn.Linear(taken, width, bias=False)
        self.layers = nn.ModuleList(
            Layer(config, first=place == 0, norm_before_residual=layout.norm_before_residual)
            for place in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(width, eps=eps)
        self.lm_head: nn.Module = nn.Linear(width, layout.draft_vocab, bias=False)
        self.embed_tokens = nn.Embedding(layout.rows, width) if own_embedding else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the head computes in."""
        return self.norm.weight.dtype

    def get_output_embeddings(self) -> nn.Module:
        """The output matrix, as in a transformers model."""
        return self.lm_head

    def fused(self, taps: Tensor) -> Tensor:
        """The target's hidden states `[n, taps x width]`, projected to the head's width."""
        taps = taps.to(self.dtype)
        if self.input_norm is not None:
            taps = self.input_norm(taps)
        if self.fc_norm is not None:
            parts = taps.chunk(len(self.fc_norm), dim=-1)
            taps = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        result: Tensor = self.fc(taps)
        return result

    def forward(self, embedding: Tensor, state: Tensor, start: int, caches: Sequence[RewindLayer]) -> Step:
        """Read n tokens.

        Args:
            embedding: embeddings of the tokens, `[n, hidden]`.
            state: states of the token before each of them, `[n, hidden]`.
            start: the first token's position in the text.
            caches: one per layer.
        """
        embedding = embedding.to(state.dtype)
        rotation = self._rotation(start, state)
        for layer, cache in zip(self.layers, caches, strict=True):
            state = layer(state, embedding, rotation, cache)
        normed = self.norm(state)
        return Step(normed if self.layout.norm_output else state, normed)

    def _rotation(self, start: int, like: Tensor) -> Rotation:
        places = torch.arange(start, start + like.shape[0], dtype=torch.float64, device=like.device)
        frequencies, scaling = self.layout.angles
        angles = (places.unsqueeze(1) * frequencies.to(like.device)).repeat(1, 2).unsqueeze(1)
        return Rotation(*((each * scaling).to(like.dtype) for each in (angles.cos(), angles.sin())))


Network: TypeAlias = PreTrainedModel | Eagle3Head
"""The network of a model in a pair."""
