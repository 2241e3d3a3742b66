"""Numbers of weights, against those that model cards and checkpoints state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cascli import load_pair
from cascli.models.cpu.packed_linear import PackedLinear, can_pack
from cascli.models.size import LARGE, weights_of
from cascli.models.tokenizer import byte_tokenizer
from tests.pairs import SHAPE

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Qwen2.5-0.5B": (
        494_032_768,
        {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864}
        | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128}
        | {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    "SmolLM3-3B": (
        3_075_098_624,
        {"model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008}
        | {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "Qwen2.5-7B": (
        7_615_616_512,
        {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
        | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    ),
    "opt-125m": (125_239_296, {"model_type": "opt"}),
    "distilgpt2": (81_912_576, {"model_type": "gpt2", "n_layer": 6}),
    "t5-small": (60_506_624, {"model_type": "t5"}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_counted_once(name: str) -> None:
    """A head that shares the embeddings' weights is not counted again."""
    published, values = PUBLISHED[name]
    counted = weights_of(AutoConfig.for_model(**values))
    assert counted == published
    assert (counted >= LARGE) is (name not in ("distilgpt2", "t5-small")), "a small draft is not rounded to int8"


@pytest.mark.skipif(not can_pack(torch.float32), reason="this torch packs nothing")
def test_a_model_that_is_large_only_with_its_shared_head_twice_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model(**SHAPE | {"vocab_size": 300, "tie_word_embeddings": True})
    made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    weights = sum(each.numel() for each in made.parameters())
    pair = {"target": {"source": {"path": str(tmp_path)}}}
    for large, packed in ((weights, True), (weights + 1, False)):
        monkeypatch.setattr("cascli.models.size.LARGE", large)
        modules = load_pair(pair, dtype="float32").target.model.modules()
        assert any(isinstance(each, PackedLinear) for each in modules) is packed
