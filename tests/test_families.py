"""Model families whose layers, weights or caches are not those of a Llama."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from cascli import Pair, generate, generate_many, load_pair
from cascli.cli.init import pair_file
from cascli.config import load_config, pair_of_models
from cascli.errors import RunError
from cascli.models.cache import _OWN_POSITIONS, check_supported
from cascli.models.choose_runner import why_eager
from cascli.models.cpu.batch_reader import why_alone
from cascli.models.cpu.int8_linear import can_int8
from cascli.models.gpu.decode_attention import can_decode
from cascli.models.memory import token_bytes
from cascli.models.size import has_experts
from cascli.models.survey import survey
from tests.pairs import model

GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 5,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "tie_word_embeddings": False,
    "initializer_range": 1.0,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "head_dim": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmo": {"model_type": "olmo"},  # its norms have no weights
    "gemma4": GEMMA4,  # heads of full layers are wider
    "diffllama": {"model_type": "diffllama", "num_key_value_heads": 2},  # splits the values that its cache returns
    # Cache latents, of which keys and values are computed.
    "minicpm3": {"model_type": "minicpm3", "dim_model_base": 16, "scale_emb": 1, "scale_depth": 3} | LATENT,
    "youtu": {"model_type": "youtu"} | LATENT,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "aria": {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
}
DBRX: dict[str, Any] = {
    "random": {
        "model_type": "dbrx",
        "vocab_size": 64,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "seed": 1,
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [7], [2, 7, 1, 8]]


def loaded(name: str) -> Pair:
    if FAMILIES[name]["model_type"] not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    return load_pair({role: model(seed, 64, **FAMILIES[name]) for role, seed in (("draft", 1), ("target", 2))})


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_transformers_own_alone_and_in_a_batch(name: str) -> None:
    two, how = loaded(name), {"max_new_tokens": 20, "temperature": 0.0}
    texts = []
    for ids in PROMPTS:
        prompt = torch.tensor([ids])
        own = two.target.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, pad_token_id=0
        )
        texts.append(own[0, len(ids) :].tolist())
    assert len(set(texts[0])) > 5
    for strategy in ("target", "speculative:k=4"):
        assert [generate(two, prompt_ids=ids, strategy=strategy, **how).token_ids for ids in PROMPTS] == texts
        many = generate_many(two, prompt_ids=PROMPTS, strategy=strategy, batch_size=3, **how)
        assert [run.token_ids for run in many] == texts


@pytest.mark.parametrize("name", ["minicpm3", "youtu"])
def test_texts_of_models_that_cache_latents_share_no_pass(name: str) -> None:
    module = loaded(name).target.model
    assert "cannot keep texts apart" in str(why_alone(module)) and not can_decode(module)


@pytest.mark.parametrize("name", ["llama", "minicpm3", "youtu"])
def test_memory_of_a_token_is_what_its_cache_holds(name: str) -> None:
    target = loaded(name).target if name in FAMILIES else load_pair({"target": model(1, 64)}).target
    target.runner.forward(torch.tensor([1, 2, 3]), 1)
    states = [each for layer in target.runner.cache.layers for each in (layer.states.keys, layer.states.values)]
    assert token_bytes(target.model) == sum(each[0, :, 0].numel() * each.itemsize for each in states)


@pytest.mark.parametrize("name", ["minicpm3", "youtu"])
def test_operations_of_models_that_cache_latents_are_not_estimated(name: str) -> None:
    """Each pass expands all latents in the cache, for which the estimate has no place."""
    run = generate(loaded(name), prompt_ids=[1, 2], strategy="speculative:k=2", max_new_tokens=4)
    assert run.metrics.total_flops is None and run.metrics.weight_bytes_read > 0
    assert run.pair.target.attention_width is None


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        {"model_type": "whisper", "d_model": 32, "max_target_positions": 64, "is_encoder_decoder": False}
        | {f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")},
    ],
)
def test_a_context_may_be_named_otherwise(shape: dict[str, Any]) -> None:
    """Beyond it, these models end with an error of torch."""
    values = {"vocab_size": 64, "pad_token_id": 1, "eos_token_id": None, "bos_token_id": 0} | shape
    two = load_pair({"target": {"source": {"random": values}}})
    assert two.context == 64
    run = generate(two, prompt_ids=list(range(2, 60)), strategy="target", max_new_tokens=20, temperature=0.0)
    assert len(run.token_ids) == 64 - 58


@pytest.mark.skipif(not hasattr(PreTrainedConfig, "per_layer_config"), reason="this transformers has one width for all")
def test_widths_are_those_of_each_layer() -> None:
    target = loaded("gemma4").target
    assert target.info.attention_width == 4 * 8 + 4 * 16
    assert token_bytes(target.model) == 2 * (2 * 8 + 2 * 16) * 4


@pytest.mark.parametrize("name", [*EXPERTS, "dbrx"])
def test_models_with_experts_read_texts_one_by_one(name: str) -> None:
    target = {"source": DBRX} if name == "dbrx" else model(1, 64, **EXPERTS[name])
    module = load_pair({"target": target}).target.model
    assert "experts" in str(why_alone(module))
    assert "experts" in str(why_eager(module))


def test_a_model_whose_head_is_called_decoder_exits_early() -> None:
    """Its layers were looked for inside its head."""
    shape = {"model_type": "modernbert-decoder", "local_attention": 16, "num_hidden_layers": 3, "pad_token_id": 0}
    if "modernbert-decoder" not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    shape |= dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 63)
    two = load_pair({"target": model(1, 64, **shape)})
    how = {"prompt_ids": PROMPTS[0], "max_new_tokens": 20, "temperature": 0.0}
    early = generate(two, strategy="speculative:k=3,draft=early-exit,layers=1", **how)
    assert early.token_ids == generate(two, strategy="target", **how).token_ids and early.metrics.num_draft_tokens > 0


@pytest.mark.skipif(not can_int8(), reason="this torch has no int8 kernels")
def test_models_with_experts_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their experts, nearly all their weights, would stay in float32."""
    mixed = {"draft": model(1, 64, **EXPERTS["mixtral"]), "target": model(2, 64)}
    with pytest.raises(RunError, match=r"experts of models of type 'mixtral'; use --dtype bfloat16 or float32"):
        load_pair(mixed, dtype="int8")
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    assert load_pair({"draft": mixed["target"], "target": mixed["draft"]}).info.draft.dtype == "int8"
    assert load_pair(mixed).info.draft.dtype == "float32"
    assert not has_experts(AutoConfig.for_model("doge"))


def test_init_counts_experts_as_they_run() -> None:
    config = load_config({"draft": model(1, 64, **EXPERTS["mixtral"]), "target": model(2, 64)})
    found = survey(config)
    draft = found.models["draft"]._replace(weights=10**9)
    assert found.precisions == ("float32", "bfloat16")
    assert "int8" not in pair_file(pair_of_models("a/b", "c/d"), found, Path("x.yaml")).partition("\nname:")[0]
    assert found._replace(models={"draft": draft}).auto_bytes() == 4 * 10**9
    assert found._replace(models={"draft": draft._replace(experts=False)}).auto_bytes() == 10**9


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cpmant", "tokens of its own"),
        ("dory", "in loops"),
        ("hrm_text", "in both directions"),
        ("moshi", "other texts with its cache"),
        ("prophetnet", "only one token at a time"),
        *((each, "positions from the id of its padding token") for each in _OWN_POSITIONS),
        ("llava", "reads more than text.*the 'llama' that it is built on"),
        ("qwen2_vl", "reads more than text"),
        ("emu3", "reads more than text"),
        ("albert", "not a causal language model"),
    ],
)
def test_models_that_cannot_be_decoded_are_refused_with_a_reason(kind: str, words: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    with pytest.raises(RunError, match=f"(?s){words}"):
        check_supported(AutoConfig.for_model(kind, is_encoder_decoder=False, is_decoder=True))


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "llama", "is_causal": False},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "gemma4_text", "use_bidirectional_attention": "all"},
    ],
)
def test_models_whose_tokens_see_those_after_them_are_refused(more: dict[str, Any]) -> None:
    """Their texts depended on the blocks that they were read in, and were called lossless."""
    if more["model_type"] not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    with pytest.raises(RunError, match="see those after them"):
        check_supported(AutoConfig.for_model(**more))
    check_supported(AutoConfig.for_model(more["model_type"]))


FALCON = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": None}
"""Without the number of heads of keys that other tests' models have: a published config does not say it."""


def test_every_matrix_of_a_falcon_is_rounded() -> None:
    """Its linear layers have a class of their own; int8 left them in float32, four times what was said."""
    loaded = load_pair({"target": model(1, 64, **FALCON)}, dtype="int8")
    left = [name for name, weight in loaded.target.model.named_parameters() if weight.dim() > 1]
    assert not [name for name in left if "embed" not in name], left


@pytest.mark.parametrize("grouped", [False, True])
def test_the_cache_of_a_falcon_is_counted_as_it_is_kept(grouped: bool) -> None:
    """One head of keys for all of queries, or in the newer architecture all of them."""
    target = load_pair({"target": model(1, 64, **FALCON, new_decoder_architecture=grouped)}).target
    assert target.model.config.multi_query
    target.runner.forward(torch.tensor([1, 2, 3]), 1)
    states = [each for layer in target.runner.cache.layers for each in (layer.states.keys, layer.states.values)]
    assert token_bytes(target.model) == sum(each[0, :, 0].numel() * each.itemsize for each in states)


def test_a_decoder_of_another_depth_than_its_cache_is_refused() -> None:
    """The cache that transformers makes for it has the encoder's depth; the first step ended with an IndexError."""
    shape = {"model_type": "bart", "vocab_size": 64, "d_model": 32, "is_encoder_decoder": False, "decoder_layers": 3}
    shape |= {"decoder_attention_heads": 4, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    with pytest.raises(RunError, match=r"(?s)3 decoder_layers, .* cache of 2, .*set encoder_layers to 3"):
        load_pair({"target": {"source": {"random": shape | {"encoder_layers": 2}}}})
    two = load_pair({"target": {"source": {"random": shape | {"encoder_layers": 3}}}})
    assert generate(two, prompt_ids=[5, 6], strategy="target", max_new_tokens=3, temperature=0.0).token_ids


def test_kin_of_roberta_are_known() -> None:
    """All that make positions of their own from the ids that they read, although they take others."""
    own = {
        config_class.model_type
        for config_class in MODEL_FOR_CAUSAL_LM_MAPPING
        if "create_position_ids_from_input_ids"
        in inspect.getsource(inspect.getmodule(model_class := MODEL_FOR_CAUSAL_LM_MAPPING[config_class]))
        and "position_ids" in inspect.signature(model_class.forward).parameters
    }
    assert own <= set(_OWN_POSITIONS)
