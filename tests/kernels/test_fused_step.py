"""The fused step against transformers' module: every family, every block, after rewinds, in and out of windows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cascli import load_pair
from cascli.models.calls import Calls, Write
from cascli.models.choose_runner import choose_runner
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.gpu.merged import FAMILIES
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.pairs import ARCHITECTURES, pair
from tests.tape import TapeCapture

FUSED: dict[str, dict[str, Any]] = {name: shape for name, shape in ARCHITECTURES.items() if name in FAMILIES}
FUSED["gemma"] = {"model_type": "gemma", "head_dim": 16}
FUSED["llama with biases"] = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}
FUSED["llama of odd sizes"] = {"hidden_size": 48, "intermediate_size": 40, "head_dim": 24, "num_attention_heads": 3}


def model(name: str, where: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A model of torch's own layers, with norms and biases as trained ones have them: new ones are all alike."""
    made = load_pair({"target": pair(**FUSED[name])["target"]}, dtype="float32", device=where.type, cuda_graphs=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in made.target.model.parameters():
            if each.dim() == 1:
                each.add_(0.3 * torch.randn(each.shape, generator=generator).to(each))
    return made.target.model.to(torch.bfloat16).to(dtype)


def runners(name: str, where: torch.device, dtype: torch.dtype = torch.float32) -> tuple[EagerRunner, GraphRunner]:
    """Transformers' own steps, and the fused ones."""
    vocab, device = 300, torch.device(where.type, 0) if where.type == "cuda" else where
    capture = TapeCapture() if where.type == "cpu" else None
    fused, why = choose_runner(model(name, where, dtype), vocab, device, graphs=True, capture=capture)
    assert isinstance(fused, GraphRunner) and why is None and fused.unfused_because is None
    return EagerRunner(model(name, where, dtype), vocab, device), fused


@pytest.fixture(autouse=True)
def kernels(where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)


@pytest.mark.parametrize("name", FUSED)
def test_steps_are_those_of_transformers(name: str, where: torch.device) -> None:
    """Blocks of one to nine tokens, with all rows or the last, after rewinds; texts longer than windows."""
    plain, fused = runners(name, where)
    text = torch.randint(0, plain.vocab, (100,), generator=torch.Generator().manual_seed(0)).to(where)
    blocks = [(1, 1), (3, 3), (5, 5), (9, 9), (9, 1)]
    fused.prepare(20, 80, Calls(reads=blocks))
    plain.forward(text[:20], 1), fused.forward(text[:20], 1)
    rng = random.Random(0)
    for n, rows in blocks * 3:
        start = rng.randint(max(plain.length - 4, 20), plain.length)
        plain.truncate(start), fused.truncate(start)
        wanted, found = (runner.forward(text[start : start + n], rows) for runner in (plain, fused))
        assert found.shape == (rows, plain.vocab)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
