"""Merged weights: where they are stored, and which models are not merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cascli import load_pair
from cascli.cli.app import app
from cascli.models.gpu.merged import FAMILIES, Merged, merge
from cascli.models.pair import LoadedModel
from tests.pairs import ARCHITECTURES, pair


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)


def model(**shape: Any) -> Any:
    return load_pair(pair(**shape), dtype="float32").target.model


def storages(tensors: Any) -> dict[int, int]:
    """Bytes of the storages behind some tensors, by address."""
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


@pytest.mark.parametrize("name", sorted(FAMILIES & set(ARCHITECTURES)))
@torch.inference_mode()
def test_merging_leaves_no_extra_copy_in_memory(name: str) -> None:
    """The module computes the same from views of the merged weights, which take as much memory as before."""
    whole = model(**ARCHITECTURES[name])
    ids = torch.arange(20).unsqueeze(0)
    before, size = whole(ids, use_cache=False).logits, sum(storages(whole.parameters()).values())
    names = {key: each.clone() for key, each in whole.state_dict().items()}
    merged = merge(whole)
    assert isinstance(merged, Merged)
    assert torch.equal(whole(ids, use_cache=False).logits, before)
    assert all(torch.equal(each, names[key]) for key, each in whole.state_dict().items())
    matrices = [each.weight for layer in merged.layers for each in (layer.states, layer.output, layer.gate_up)]
    assert set(storages(matrices)) < set(storages(whole.parameters()))
    assert sum(storages(whole.parameters()).values()) == size


def test_merging_needs_memory_for_only_one_extra_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever tensors are concatenated, all but the parts of the current layer are already in their final place."""
    whole = model(**ARCHITECTURES["qwen3"] | {"num_hidden_layers": 5})
    size, layer = (sum(storages(each.parameters()).values()) for each in (whole, whole.model.layers[0]))
    concatenate, alive = torch.cat, []

    def watched(parts: Any, *args: Any, **named: Any) -> torch.Tensor:
        together = concatenate(parts, *args, **named)
        kept.append(together)
        alive.append(sum(storages([*whole.parameters(), *kept]).values()))
        return together

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "cat", watched)
    merge(whole)
    assert len(alive) == 2 * 5 and size < max(alive) <= size + layer


class OtherLinear(nn.Linear):
    """A linear layer of another class, such as an adapter's."""


def test_the_reason_why_a_model_is_not_fused_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert merge(model(model_type="gpt_neox")) == "there are no fused layers for the 'gpt_neox' family"
    assert merge(model(hidden_act="relu")) == "the kernels do not cover its activation, ReLU"
    adapted, mixed, odd, narrow = model(), model(), model(), model()
    adapted.model.layers[1].mlp.up_proj.__class__ = OtherLinear
    mixed.model.norm.half()
    odd.config._attn_implementation = "flex_attention"
    narrow.config.v_head_dim = 8
    for each in (adapted, mixed):
        assert merge(each) == "its matrices are not plain linear layers of one precision"
    for each in (odd, narrow):
        assert merge(each) == "its attention is not of the kind that the kernel computes"
    monkeypatch.setattr("cascli.kernels.serve", lambda _: False)
    assert merge(model()) == "there are no Triton kernels here"


def test_the_cli_reports_why_steps_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        LoadedModel, "unfused_because", property(lambda _: "the kernels do not cover its activation, relu")
    )
    asked = ["generate", "hello", "-c", "tiny-random", "--max-new-tokens", "2"]
    said = " ".join(CliRunner().invoke(app, asked).stderr.split())
    for role in ("draft", "target"):
        assert f"the {role} model's steps are not fully fused: the kernels do not cover its activation, relu" in said
