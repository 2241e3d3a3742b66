"""The cache never drifts: after any forwards and truncations, the logits equal those of a fresh forward."""

from __future__ import annotations

import inspect
import random
from typing import Any

import pytest
import torch

from cascli import load_pair
from cascli.audit import numerics
from cascli.errors import RunError
from cascli.models.cache import cache_name, check_supported
from cascli.models.cpu.batch_reader import PROMPT_BLOCK
from cascli.models.cpu.row_attention import attends_by_rows
from cascli.models.eager_runner import EagerRunner
from tests.pairs import ENCODER_DECODERS, EVERY_ARCHITECTURE, model

FALCON = {"model_type": "falcon", "alibi": False}
OWN_ATTENTION: dict[str, dict[str, Any]] = {
    # Chunks of 12 tokens, which only a mask knows of.
    "llama4_text": {
        "model_type": "llama4_text", "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
        "no_rope_layers": [1, 0], "attention_chunk_size": 12, "initializer_range": 0.1,
    },
    # Windows that only a mask knows of, and a mask that the model makes itself.
    "phimoe": {"model_type": "phimoe", "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 9},
    "doge": {"model_type": "doge", "initializer_range": 0.2},
    "falcon": FALCON,  # its code cannot call another attention
    "falcon, many keys": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
}  # fmt: skip
"""Models that keep the attention of transformers on a CPU."""


def runner(name: str) -> EagerRunner:
    shape = (EVERY_ARCHITECTURE | OWN_ATTENTION)[name]
    return load_pair({"draft": model(1, 40, **shape), "target": model(2, 40, **shape)}).target.runner


@torch.inference_mode()
def fresh(run: EagerRunner, ids: torch.Tensor) -> torch.Tensor:
    given = {"input_ids": ids.unsqueeze(0)}
    if run.model.config.is_encoder_decoder:
        given = {"input_ids": ENCODED.unsqueeze(0), "decoder_input_ids": ids.unsqueeze(0)}
    return run.model(**given, use_cache=False).logits[0]


ENCODED = torch.tensor([7, 3, 21, 3])
"""What an encoder reads; rewinding does not change it."""


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_models_that_hide_from_rows_what_they_see_keep_their_attention(name: str) -> None:
    """Doge's mask differs from the one it is given by weights that are zero before training."""
    assert attends_by_rows(runner("mistral").model) and not attends_by_rows(runner(name).model)


@pytest.mark.parametrize("name", [*EVERY_ARCHITECTURE, *OWN_ATTENTION])
def test_logits_after_random_truncations_equal_a_fresh_forward(name: str) -> None:
    run, rng = runner(name), random.Random(name)
    if name in ENCODER_DECODERS:
        run.begin(ENCODED)
    before = run.length
    text: list[int] = []
    for _ in range(60):
        n = rng.randint(1, 12)
        text += [rng.randrange(40) for _ in range(n)]
        got = run.forward(torch.tensor(text[-n:]), n)
        wanted = fresh(run, torch.tensor(text))[-n:]
        assert torch.allclose(got, wanted, atol=2e-4, rtol=1e-4), (got - wanted).abs().max()
        keep = rng.randint(max(len(text) - 10, 0), len(text))
        if len(text) > 100:
            keep = rng.randint(1, 8)
        run.truncate(before + keep)
        text = text[:keep]
        assert run.length == before + keep
    run.reset()
    assert run.length == 0


ALONE = ("gemma2", *ENCODER_DECODERS)
"""Architectures whose texts do not share passes on a CPU."""


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_reading_a_prompt_in_blocks_equals_reading_it_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks longer than a sliding window, and a last one of any length."""
    monkeypatch.setattr("cascli.models.choose_runner.PROMPT_BLOCK", 17)
    run = runner(name)
    assert run.prompt_block == (None if name in ALONE else 17)
    if name in ENCODER_DECODERS:
        return
    for length in (2, 17, 18, 19, 35, 60):
        text = torch.arange(length) * 7 % 40
        read = [block.shape[0] for block in run.prompt_blocks(text)]
        assert sum(read) == length - 1 and (name in ALONE or max(read) <= 17)
        got = run.forward(run.begin(text), 1)
        assert run.length == length
        assert torch.allclose(got, fresh(run, text)[-1:], atol=2e-4, rtol=1e-4)
    assert run.prompt_blocks(torch.tensor([3])) == ()


def test_prompts_are_read_in_blocks_unless_positions_depend_on_the_text() -> None:
    """A position encoding that depends on the longest text would read a block as if nothing followed."""
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    for more, blocks in (({}, PROMPT_BLOCK), (dynamic, None)):
        loaded = load_pair({"draft": model(1, 40, **more), "target": model(2, 40, **more)})
        assert loaded.target.runner.prompt_block == blocks == loaded.target.runner.fresh().prompt_block


def test_growing_buffers_keep_their_contents() -> None:
    run = runner("llama")
    ids = torch.arange(250) % 40
    run.forward(ids[:200], 1)
    first = run.cache.layers[0]
    before = first.states.keys[..., :200, :].clone()
    run.forward(ids[200:], 1)
    assert torch.equal(first.states.keys[..., :200, :], before)


def test_rewinding_copies_nothing() -> None:
    run = runner("llama")
    run.forward(torch.arange(10), 1)
    place = run.cache.layers[0].states.keys.data_ptr()
    run.truncate(3)
    run.forward(torch.arange(5), 2)
    assert run.cache.layers[0].states.keys.data_ptr() == place


def test_only_the_requested_rows_are_returned_without_padding() -> None:
    pair = load_pair({"draft": model(1, 300), "target": model(2, 280)})
    assert pair.target.runner.forward(torch.arange(6), 2).shape == (2, 257)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_model_gets_its_cache_under_the_name_that_its_forward_has(name: str) -> None:
    """transformers 5.24 renamed it."""
    stock = runner("llama")
    forward = stock.model.forward
    wanted, stocks_name = stock.forward(torch.arange(5), 1), cache_name(inspect.signature(forward).parameters)

    def new(input_ids: torch.Tensor, cache: Any = None, **more: Any) -> Any:
        return forward(input_ids, **{stocks_name: cache}, **more)

    def old(input_ids: torch.Tensor, past_key_values: Any = None, **more: Any) -> Any:
        return new(input_ids, past_key_values, **more)

    stock.model.forward = new if name == "cache" else old
    run = EagerRunner(stock.model, stock.vocab, stock.device)
    run.forward(torch.arange(4), 1)
    assert torch.allclose(run.forward(torch.tensor([4]), 1), wanted, atol=1e-5)
    assert run.length == 5


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_encoders_are_refused_unless_they_are_decoders(name: str) -> None:
    """transformers has causal classes for them, which read both ways: a cached answer is not what they would write."""
    shape = {"model_type": name, "pad_token_id": 0}
    with pytest.raises(RunError, match="is an encoder, whose tokens see those after them"):
        load_pair({"target": model(1, 40, **shape)})
    load_pair({"target": model(1, 40, **shape, is_decoder=True)})


def test_models_are_refused_if_their_forward_takes_no_cache_of_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = runner("llama").model.config
    for name in ("cache", "past_key_values"):
        monkeypatch.setattr("cascli.models.cache.forward_parameters", lambda _, name=name: {"input_ids", name})
        check_supported(config)
    monkeypatch.setattr("cascli.models.cache.forward_parameters", lambda _: {"input_ids", "cache_params"})
    with pytest.raises(RunError, match="no key-value cache"):
        check_supported(config)


def test_the_audit_reads_beyond_a_chunk() -> None:
    loaded = load_pair({"draft": model(1, 40, **OWN_ATTENTION["llama4_text"]), "target": model(2, 40)})
    assert numerics.window(loaded.draft) == 12 and numerics.window(loaded.target) is None
    check = numerics.cache("draft", loaded.draft, 40, 2)
    assert check.status == "pass" and check.detail.endswith("beyond its window of 12")
