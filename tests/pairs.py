"""Small pairs with random weights for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cascli import Pair, Run, generate, load_pair
from cascli.analysis.profile import Profile, timing
from cascli.jobs.synthetic import Synthetic
from cascli.prompts import Prompt

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
    """A pair as a mapping; `more` changes both models' configs."""
    draft = model(1, draft_vocab or vocab, **more)
    return {"name": "test", "draft": draft, "target": model(2, vocab, **more)}


def of_ids(vocab: int, **more: Any) -> dict[str, Any]:
    """A pair without a tokenizer: otherwise a pair of more than 257 tokens has one of bytes, and masks all others."""
    config = pair(vocab, **more)
    for role in ("draft", "target"):
        config[role]["source"]["tokenizer"] = False
    return config


def near(vocab: int = 300, **more: Any) -> Pair:
    """Two models that often agree: the draft is the target with some noise in its weights."""
    loaded = load_pair(pair(vocab, initializer_range=0.2, **more))
    assert loaded.draft is not None
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ours, theirs in zip(loaded.draft.model.parameters(), loaded.target.model.parameters(), strict=True):
            ours.copy_(theirs + 0.12 * theirs.std() * torch.randn(theirs.shape, generator=noise))
    return loaded


def prompts(*texts: str) -> list[Prompt]:
    """Prompts of one turn, as from a file."""
    return [Prompt((text,), str(place)) for place, text in enumerate(texts, 1)]


GEMMA = {"head_dim": 16, "sliding_window": 9, "num_hidden_layers": 4, "query_pre_attn_scalar": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 9, "head_dim": 16},
    "gemma2": {"model_type": "gemma2", **GEMMA},
    "gemma3_text": {"model_type": "gemma3_text", **GEMMA},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "initializer_factor": 1.5,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": T5,  # v1.0: the head is the embeddings, and its input is scaled
    "t5_v1_1": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
UNEVEN = {"num_layers": 1, "num_hidden_layers": 1}
"""An encoder with fewer layers than the decoder, for which transformers' own `generate` makes no cache."""
EVERY_ARCHITECTURE = ARCHITECTURES | ENCODER_DECODERS


@torch.inference_mode()
def logits_along(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Logits `[m + 1, V]` after a prompt and after each of an answer's m tokens: one pass, without a cache."""
    given = {"input_ids": torch.tensor([[*prompt, *answer]])}
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *answer]])}
    return model(**given, use_cache=False).logits[0, -len(answer) - 1 :]


def torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def float32_by_rows() -> bool:
    """Whether a row of a float32 product is bit-identical in any block; with only AVX2, not before torch 2.13."""
    return torch_version() >= (2, 13) or torch.backends.cpu.get_cpu_capability() != "AVX2"


def answers_of_many_kinds(loaded: Pair) -> list[list[int]]:
    """Texts that outgrow what was recorded before, and more settings than are kept recorded."""
    lengths = [9, 300, 9, 700, 40]
    asked = [(n, {"temperature": 0.0}) for n in lengths] + [(9, {"temperature": 0.5 + i / 20}) for i in range(20)]
    return [
        generate(
            loaded, prompt_ids=[5, 6, 7] * (n // 3), strategy="speculative:k=3", max_new_tokens=12, **how
        ).token_ids
        for n, how in asked
    ]


def profile_of(c: float, v: dict[int, float], context: int = 10) -> Profile:
    """Step times in units of a target step: c of a draft step, and v of a target call over n tokens."""
    target = {n: timing([value]) for n, value in {1: 1.0, **v}.items()}
    return Profile(context=context, draft={1: timing([c])}, target=target)


def synthetic(text_pair: Pair, acceptance: float, k: int, tokens: int, other: float, speed: float) -> Iterator[Run]:
    """A run of `target`, and one with chosen acceptance, overhead and speed relative to it (after the prompt)."""
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=tokens)
    run = generate(text_pair, "hello", strategy=Synthetic(acceptance=acceptance, k=k), max_new_tokens=tokens)
    for total, share, each in ((1.0, 0.0, target), (1 / speed, other, run)):
        seconds = each.metrics.seconds.model_copy(update={"total": total, "prefill": 0.0, "other": share * total})
        yield each.model_copy(update={"metrics": each.metrics.model_copy(update={"seconds": seconds})})


def with_seconds(run: Run, **seconds: float) -> Run:
    """The run with a total of one second, none of it before the first token."""
    told = run.metrics.seconds.model_copy(update={"total": 1.0, "prefill": 0.0, **seconds})
    return run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": told})})


def stored_alone(folder: Path) -> dict[str, Any]:
    """A target alone, with its weights and tokenizer in a folder."""
    made = load_pair(pair(257, **ARCHITECTURES["qwen2"]))
    AutoModelForCausalLM.from_config(made.target.model.config, dtype=torch.bfloat16).save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return {"target": {"source": {"path": str(folder)}}}
