from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cascli import load_pair
from cascli.models.gpu.fused_norm import FusedNorm, use_fused_norms
from tests.pairs import ARCHITECTURES, pair

NORMS = {"gpt_neox": 0, "gpt2": 0, "gemma2": 4 * 4 + 1, "gemma3_text": 6 * 4 + 1, "qwen3": 4 * 2 + 1}


def scattered(norm: nn.Module) -> None:
    """Perturb the weights as training does: at their initial 0 or 1, two kinds of norm compute the same."""
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn_like(norm.weight))


def stock(name: str, dtype: str) -> Any:
    """A model with torch's own layers, and weights that are the same in every precision."""
    torch.manual_seed(0)
    epsilon = {"rms_norm_eps": 0.5}  # large enough to exceed the rounding errors of half precision
    model = load_pair(pair(**ARCHITECTURES[name] | epsilon), dtype="float32").target.model
    for each in model.modules():
        if type(each).__name__.endswith("RMSNorm"):
            scattered(each)
    return model.to(torch.bfloat16).to(getattr(torch, dtype))


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(20).unsqueeze(0), use_cache=False).logits.double()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_norm_is_replaced_and_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    exact, half = stock(name, "float32"), stock(name, "bfloat16")
    before, names = (logits(exact), logits(half)), set(half.state_dict())
    for model in (exact, half):
        assert use_fused_norms(model) == NORMS.get(name, 2 * 2 + 1)
        assert not any(type(each).__name__.endswith("RMSNorm") for each in model.modules())
    after = (logits(exact), logits(half))
    assert (after[0] - before[0]).norm() < 1e-5 * before[0].norm()
    # Half precision has rounding errors anyway; the fused norms must not have larger ones.
    assert (after[1] - before[0]).norm() < 1.3 * (before[1] - before[0]).norm()
    assert set(half.state_dict()) == names


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_one_is_added_to_weights_before_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 + weight in half precision many numbers differ from the model's, each within the tolerance."""
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    model = stock(name, "bfloat16")
    norms = [each for each in model.modules() if type(each).__name__.endswith("RMSNorm")]
    inputs = [torch.randn(50, each.weight.shape[0], dtype=torch.bfloat16) for each in norms]
    wanted = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    assert use_fused_norms(model) == len(norms) > 0
    for norm, x, each in zip(norms, inputs, wanted, strict=True):
        assert (norm(x) != each).double().mean() < 0.02


class OddRMSNorm(nn.Module):
    """Not an RMS norm, despite its name."""

    def __init__(self, epsilon: float | None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(16)), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x - x.mean(dim=-1, keepdim=True))


@pytest.mark.parametrize("epsilon", [1e-6, None])
def test_a_norm_of_another_kind_is_left_alone(epsilon: float | None) -> None:
    model = nn.Sequential(OddRMSNorm(epsilon))
    assert use_fused_norms(model) == 0 and not isinstance(model[0], FusedNorm)


class WideRMSNorm(nn.Module):
    """Returns float32 for half-precision input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(16, dtype=torch.bfloat16)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x.float(), (16,), self.weight.float(), self.eps)


def test_a_norm_of_another_precision_is_left_alone() -> None:
    assert use_fused_norms(nn.Sequential(WideRMSNorm())) == 0
