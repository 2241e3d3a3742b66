"""Greedy answers equal those of transformers' own generate, architecture by architecture."""

from __future__ import annotations

import pytest
import torch

from cascli import generate, load_pair
from tests.pairs import model

GEMMA = {"head_dim": 16, "sliding_window": 9, "num_hidden_layers": 4, "query_pre_attn_scalar": 16}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 9, "head_dim": 16},
    "gemma2": {"model_type": "gemma2", **GEMMA},
    "gemma3_text": {"model_type": "gemma3_text", **GEMMA},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "strategy", ["target", "speculative:k=1", "speculative:k=4", "token-cascade:rule=diff,alpha=-1"]
)
def test_lossless_strategies_write_what_transformers_writes(name: str, strategy: str) -> None:
    shape = ARCHITECTURES[name]
    pair = load_pair({"draft": model(1, 64, **shape), "target": model(2, 64, **shape)})
    theirs = pair.target.model.generate(
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    run = generate(pair, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, temperature=0)
    assert run.token_ids == theirs[0, len(PROMPT) :].tolist()
    assert run.metrics.lossless


def test_several_end_of_text_ids_are_those_of_transformers() -> None:
    free = load_pair({"draft": model(1, 64), "target": model(2, 64)})
    first = generate(free, prompt_ids=PROMPT, strategy="target", max_new_tokens=20, temperature=0).token_ids
    ends = {"eos_token_id": [first[3], 63]}
    pair = load_pair({"draft": model(1, 64), "target": model(2, 64, **ends)})
    reasons = []
    for start in range(1, 13):
        ids = PROMPT if start == 1 else [start, 3]
        theirs = pair.target.model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0)
        run = generate(pair, prompt_ids=ids, strategy="speculative:k=3", max_new_tokens=30, temperature=0)
        assert run.token_ids == theirs[0, len(ids) :].tolist()
        reasons.append(run.finish_reason)
    assert "eos" in reasons
