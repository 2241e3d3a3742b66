"""Small pairs with random weights for tests."""

from __future__ import annotations

from typing import Any

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
}


def model(seed: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {"source": {"random": SHAPE | {"vocab_size": vocab} | more, "seed": seed}}


def pair(vocab: int = 300, draft_vocab: int | None = None, **more: Any) -> dict[str, Any]:
    """A pair as a mapping; `more` changes the config of both models."""
    draft = model(1, draft_vocab or vocab, **more)
    return {"name": "test", "draft": draft, "target": model(2, vocab, **more)}
