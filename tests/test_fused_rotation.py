from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.utils.deprecation import deprecate_kwarg

from cascli import load_pair
from cascli.models.gpu import fused_rotation
from cascli.models.gpu.fused_rotation import fused, plain, use_fused_rotation
from tests.pairs import ARCHITECTURES, pair

LAYERS = {"gpt2": 0, "gemma2": 4, "gemma3_text": 4}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(20).unsqueeze(0), use_cache=False).logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_uses_the_fused_rotation_and_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (load_pair(pair(**ARCHITECTURES[name])).target.model for _ in range(2))
    before = logits(mine)
    used = []

    def counted(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used.append(len(given))
        return plain(*given)

    monkeypatch.setattr(fused_rotation, "fused", lambda _: counted)
    assert use_fused_rotation(mine) == LAYERS.get(name, 2)
    assert torch.equal(logits(mine), before)
    assert used == [4] * LAYERS.get(name, 2)
    assert torch.equal(logits(other), before) and len(used) == LAYERS.get(name, 2)  # the other model is unchanged


def test_the_stock_function_handles_what_the_kernel_does_not() -> None:
    def stock(*given: Any, **named: Any) -> Any:
        return len(given), named

    q, cos = torch.zeros(1, 2, 3, 8), torch.zeros(1, 3, 8)
    assert fused(stock)(q, q, cos, cos) == (4, {})
    assert fused(stock)(q, q, cos, cos, unsqueeze_dim=2) == (4, {"unsqueeze_dim": 2})


def apply_rotary_pos_emb(q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation of neighbouring pairs, as in other model families."""
    return q.flip(-1) * cos, k.flip(-1) * sin


class OddAttention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> Any:
        return apply_rotary_pos_emb(q, k, cos, sin)


def test_another_kind_of_rotation_is_left_alone() -> None:
    assert use_fused_rotation(nn.Sequential(OddAttention())) == 0


def test_a_layer_that_renames_a_deprecated_keyword_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all are from transformers 5.24 on."""
    renames = deprecate_kwarg("older_name", "99.0", new_name="newer_name")
    monkeypatch.setattr(LlamaAttention, "forward", renames(LlamaAttention.forward))
    assert use_fused_rotation(load_pair(pair()).target.model) == 2


def test_a_wrapped_layer_is_left_alone() -> None:
    model = load_pair(pair()).target.model
    for layer in model.model.layers:
        layer.self_attn.forward = layer.self_attn.forward
    assert use_fused_rotation(model) == 0
