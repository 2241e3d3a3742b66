"""A token's logits must be bit-identical alone and in a block, so that greedy speculation equals the target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from cascli import Pair, generate, load_pair
from cascli.models.cpu.packed_linear import can_pack
from cascli.models.cpu.row_attention import MOST_ROWS, NAME
from tests.pairs import EVERY_ARCHITECTURE, float32_by_rows, pair

# Gemma 2 caps its attention logits and keeps transformers' own attention.
EXACT = [name for name in EVERY_ARCHITECTURE if name != "gemma2"]


KINDS = ("float32", "bfloat16", "int8", "float32-packed")


@pytest.fixture(scope="module", params=[f"{name}/{kind}" for name in EXACT for kind in KINDS])
def loaded(request: pytest.FixtureRequest) -> Iterator[Pair]:
    name, kind = request.param.split("/")
    dtype, _, packed = kind.partition("-")
    if dtype == "bfloat16" and not can_pack(torch.bfloat16):
        pytest.skip("this processor has no bfloat16 units")
    if dtype == "float32" and not float32_by_rows():
        pytest.skip("not promised for this processor with this torch")
    with pytest.MonkeyPatch.context() as patch:
        if packed:
            patch.setattr("cascli.models.size.LARGE", 1)
        yield load_pair(pair(300, **EVERY_ARCHITECTURE[name]), dtype=dtype)


@pytest.mark.parametrize("context", [1, 20, 63])
def test_logits_are_the_same_alone_and_in_a_block(loaded: Pair, context: int) -> None:
    runner = loaded.target.runner
    ids = (torch.arange(context + MOST_ROWS) * 37) % 250
    runner.forward(torch.cat([runner.begin(ids[: min(context, 7)]), ids[7:context]]), 1)
    read = runner.length
    alone = torch.cat([runner.forward(ids[i : i + 1], 1) for i in range(context, context + MOST_ROWS)])
    for n in range(2, MOST_ROWS + 1):
        runner.truncate(read)
        block = runner.forward(ids[context : context + n], n)
        assert torch.equal(block, alone[:n])
        runner.truncate(read)
        runner.forward(ids[context : context + 1], 1)
        rest = runner.forward(ids[context + 1 : context + n], n - 1)
        assert torch.equal(rest, alone[1:n])


def test_greedy_speculation_matches_the_target_with_equal_probabilities(loaded: Pair) -> None:
    settings = {"max_new_tokens": 24, "temperature": 0.0}
    alone = generate(loaded, "hello", strategy="target", **settings)
    for k in (1, 4, 7):
        ahead = generate(loaded, "hello", strategy=f"speculative:k={k}", **settings)
        assert ahead.token_ids == alone.token_ids


def test_models_with_nonstandard_attention_keep_their_own_implementation() -> None:
    assert load_pair(pair(300)).target.model.config._attn_implementation == NAME
    gemma = load_pair(pair(300, **EVERY_ARCHITECTURE["gemma2"]))
    assert gemma.target.model.config._attn_implementation != NAME


def test_an_encoder_decoder_uses_row_attention_in_every_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.17 switches only the model's own config, not the copies held by its encoder and decoder."""

    def its_own(model: PreTrainedModel, name: str) -> None:
        model.config._attn_implementation = name

    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", its_own)
    model = load_pair(pair(300, **EVERY_ARCHITECTURE["t5"])).target.model
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    assert len(configs) > 1 and {config._attn_implementation for config in configs.values()} == {NAME}
