"""Models that also read images: text passes through their decoders alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from cascli import Pair, generate, generate_many, load_pair
from cascli.models.choose_runner import why_eager
from cascli.models.cpu.batch_reader import why_alone
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.models.memory import token_bytes
from cascli.models.size import text_part
from cascli.models.tokenizer import byte_tokenizer

TEXT = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
HEAD = 32 * 257


def gemma3() -> PreTrainedModel:
    text = TEXT | {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=TOWER | {"num_attention_heads": 4},
        mm_tokens_per_image=4,
        image_token_index=256,
        tie_word_embeddings=False,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def got_ocr2() -> PreTrainedModel:
    tower = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 64, "patch_size": 16, "global_attn_indexes": [1], "mlp_dim": 32, "window_size": 2}
    config = transformers.GotOcr2Config(
        text_config=TEXT | {"model_type": "qwen2"}, vision_config=tower, image_token_index=256
    )
    return transformers.GotOcr2ForConditionalGeneration(config)


def mllama() -> PreTrainedModel:
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_global_layers": 1}
    tower |= {"attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 128}
    tower |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}
    text = TEXT | {"num_hidden_layers": 4, "cross_attention_layers": [2]}
    config = transformers.MllamaConfig(text_config=text, vision_config=tower, image_token_index=256)
    return transformers.MllamaForConditionalGeneration(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"gemma3": gemma3, "got_ocr2": got_ocr2, "mllama": mllama}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [7], [2, 7, 1, 8], [9] * 40]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 16}


def stored(name: str, folder: Path) -> tuple[PreTrainedModel, Path]:
    """A model with random weights, and its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model, folder


def loaded(folder: Path, dtype: str = "float32") -> Pair:
    return load_pair(draft=folder, target=folder, dtype=dtype, device="cpu")


# Mllama's tower is not part of the class that reads text.
@pytest.mark.filterwarnings("ignore:.*are not used")
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_transformers_own_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    model, folder = stored(name, tmp_path)
    two, texts = loaded(folder), []
    for ids in PROMPTS:
        prompt = torch.tensor([ids])
        given = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 256, "pad_token_id": 0}
        texts.append(model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **given)[0, len(ids) :])
    texts = [text.tolist() for text in texts]
    assert len(set(texts[0])) > 5
    assert why_alone(two.target.model) is None
    for strategy in ("target", "speculative:k=4", "speculative:draft=prompt-lookup,k=9"):
        assert [generate(two, prompt_ids=ids, strategy=strategy, **GREEDY).token_ids for ids in PROMPTS] == texts
        many = generate_many(two, prompt_ids=PROMPTS, strategy=strategy, batch_size=3, **GREEDY)
        assert [run.token_ids for run in many] == texts


@pytest.mark.filterwarnings("ignore:.*are not used")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_only_what_text_passes_through_is_counted(name: str, dtype: str, tmp_path: Path) -> None:
    target = loaded(stored(name, tmp_path)[1], dtype).target
    assert target.info.parameters == 3 * LAYER + HEAD
    assert target.info.attention_width == 3 * 32
    assert token_bytes(target.model) == 3 * 2 * 16 * 4


def test_int8_leaves_towers_as_they_are(tmp_path: Path) -> None:
    model = loaded(stored("gemma3", tmp_path)[1], "int8").target.model
    packed = {module for module in model.modules() if isinstance(module, Int8Linear)}
    assert len(packed) == 3 * 7 + 1
    assert packed <= text_part(model)


@pytest.mark.filterwarnings("ignore:.*are not used")
def test_states_of_skipped_layers_are_kept_and_filled_as_none(tmp_path: Path) -> None:
    """Of Mllama's layers, those that attend only to images hold no states of a text."""
    two = loaded(stored("mllama", tmp_path)[1])
    prompts = [[*range(3, 150), last] for last in (5, 6)]  # the first 128 tokens are read once
    many = generate_many(two, prompt_ids=prompts, strategy="speculative:k=4", batch_size=2, **GREEDY)
    alone = [generate(two, prompt_ids=ids, strategy="target", **GREEDY).token_ids for ids in prompts]
    assert [run.token_ids for run in many] == alone
    two.target.runner.fill_cache(300)
    assert two.target.runner.length == 300
    assert "skipped" in str(why_eager(two.target.model))
