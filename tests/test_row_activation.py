"""Activations compute the same bits for a row alone and in any block, whatever the width and the number of threads."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS, ACT2FN

from cascli import load_pair
from cascli.models.cpu.row_activation import _EXACT, use_row_activations
from cascli.models.cpu.row_attention import MOST_ROWS
from tests.pairs import float32_by_rows, pair

WIDTHS = (48, 100, 6912, 8960, 18944, 33000)
"""Below a thread's share and above, multiples of the vector loops' pieces and not."""


@pytest.fixture(params=[1, 3, 4, 5, 16])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def differing(activation: nn.Module) -> list[int]:
    """The widths at which a row's result depends on the rows beside it."""
    generator = torch.Generator().manual_seed(0)
    blocks = {width: torch.randn(2, 5, width, generator=generator) * 3 for width in WIDTHS}

    def alone(block: Tensor) -> Tensor:
        return torch.stack([torch.cat([activation(row[None]) for row in text]) for text in block])

    return [width for width, block in blocks.items() if not torch.equal(activation(block), alone(block))]


@pytest.mark.parametrize("name", sorted(name for name in ACT2CLS if name != "prelu"))
def test_every_activation(threads: int, name: str) -> None:
    holder = nn.ModuleDict({"act": ACT2FN[name]})
    before, kind = ACT2FN[name](torch.linspace(-4, 4, 64)), type(holder["act"])
    use_row_activations(holder)
    assert differing(holder["act"]) == []
    assert torch.equal(holder["act"](torch.linspace(-4, 4, 64)), before) and isinstance(holder["act"], kind)


def test_torchs_own_activations_need_it() -> None:
    """If torch makes them all exact one day, this module can go."""
    assert differing(nn.SiLU()) or differing(ACT2FN["gelu_pytorch_tanh"]) or differing(nn.Sigmoid())
    for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh):
        assert kind.__name__ in _EXACT and differing(kind()) == []


def test_a_model_can_be_pickled_and_copied() -> None:
    model = load_pair(pair(300, num_hidden_layers=2)).target.model
    block, ids = io.BytesIO(), torch.tensor([[1, 2, 3]])
    torch.save(model, block)
    block.seek(0)
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
        for other in (torch.load(block, weights_only=False), copy.deepcopy(model)):
            assert torch.equal(other(input_ids=ids, use_cache=False).logits, wanted)
    first, second = (layer.mlp.act_fn for layer in model.model.layers)
    assert type(first) is type(second)


@pytest.mark.parametrize(
    "more",
    [
        {"intermediate_size": 100},
        {"intermediate_size": 8960, "initializer_range": 0.1},
        {"model_type": "gemma3_text", "intermediate_size": 100, "head_dim": 16, "query_pre_attn_scalar": 16},
        {"model_type": "gemma3_text", "intermediate_size": 6912, "head_dim": 16, "query_pre_attn_scalar": 16},
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "n_inner": 100},
    ],
    ids=lambda more: f"{more.get('model_type', 'llama')}-{more.get('intermediate_size', 100)}",
)
def test_logits_of_blocks(threads: int, more: dict[str, Any]) -> None:
    if not float32_by_rows():
        pytest.skip("not promised for this processor with this torch")
    runner = load_pair(pair(300, **more)).target.runner
    ids = (torch.arange(20 + MOST_ROWS) * 37) % 250
    runner.forward(ids[:20], 1)
    alone = torch.cat([runner.forward(ids[i : i + 1], 1) for i in range(20, 20 + MOST_ROWS)])
    for n in range(2, MOST_ROWS + 1):
        runner.truncate(20)
        assert torch.equal(runner.forward(ids[20 : 20 + n], n), alone[:n]), n
