"""Passes over several texts that attend, rotate and draw with the kernels, compared with torch's operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascli import load_pair
from cascli.kernels import attention
from cascli.models.batch.reader import DraftRequest, ReadRequest
from cascli.models.gpu import decode_attention
from cascli.models.gpu.batch_reader import GraphReader
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.fused_rotation import use_fused_rotation
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.sampling.autoregressive import Sampler, Written
from cascli.sampling.parameters import Sampling
from tests.pairs import ARCHITECTURES, pair

if torch.cuda.is_available():
    pytest.skip("on a GPU tests/gpu does this", allow_module_level=True)


def by_the_kernel(query: Any, key: Any, value: Any, places: Any, positions: Any, scale: float, *bounds: float) -> Any:
    window, cap = bounds
    return attention.attend(query, key, value, positions, places=places, scale=scale, window=int(window), cap=cap)


def read_and_written(config: dict[str, Any]) -> tuple[list[torch.Tensor], list[Written]]:
    """Read and draft with three texts, one of them longer than the windows."""
    loaded = load_pair(config, dtype="float32")
    model = loaded.target.model
    use_fused_rotation(model)
    reader = GraphReader(GraphRunner(model, loaded.vocab, loaded.device, Uncaptured()), 3)
    reader._graphs = GraphCache()
    ids, u = torch.arange(40), torch.rand(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reader.runners[1].forward(ids[:20], 1)
    logits = reader.read([ReadRequest(1, ids[20:22], 2), ReadRequest(0, ids[:1], 1)])
    law = Sampler(Sampling(0.8, top_k=50, top_p=0.9), reads_base=True)
    drafts = [DraftRequest(2, ids[5:7], law, u[:1], False), DraftRequest(1, ids[22:23], law, u, False)]
    return logits, reader.write(drafts)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt_neox"])
def test_passes_are_the_same_with_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tokens per text, windows and caps, and heads that are rotated in part."""
    config = pair(300, **ARCHITECTURES[name])
    plain, drafted = read_and_written(config)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr(decode_attention, "attend_texts", by_the_kernel)
    monkeypatch.setattr(attention, "_MOST_PARTS", 1)
    logits, written = read_and_written(config)
    for mine, theirs in zip([*logits, *sum(written, ())], [*plain, *sum(drafted, ())], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
