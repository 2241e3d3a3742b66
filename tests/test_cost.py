"""FLOPs, bytes and seconds: counted by hand, and all accounted for."""

from __future__ import annotations

import pytest

from cascli import Pair, generate, load_pair
from cascli.analysis.cost import Use, cost_of
from tests.pairs import pair


def test_flops_and_bytes_by_hand(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2, 3], strategy="target", max_new_tokens=4)
    model = id_pair.target.info
    # two layers of q, k, v, o, gate, up, down, and the head; the input embeddings are only looked up
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert model.parameters == 2 * layer + 8 * 32
    assert model.weight_bytes == 4 * model.parameters
    assert model.attention_width == 2 * 2 * 16
    tokens, attended = 6, 1 + 2 + 3 + 4 + 5 + 6
    assert run.metrics.target_tokens_read == tokens
    assert run.metrics.draft_tokens_read == 0
    assert model.output_parameters == 8 * 32
    rows = 1 + 4  # the prompt except its last token computes one row, which is discarded
    products = 2 * layer * tokens + 8 * 32 * rows
    assert run.metrics.total_flops == 2 * products + 4 * model.attention_width * attended
    assert run.metrics.weight_bytes_read == model.weight_bytes * 5  # the prompt's first two tokens, then four steps


def test_rejected_drafts_cost_too(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2, 3], strategy="speculative:k=3", max_new_tokens=8, seed=1)
    m = run.metrics
    assert m.target_tokens_read == 2 + m.num_draft_tokens + m.num_rounds
    assert m.num_accepted_draft_tokens < m.num_draft_tokens


def test_tied_heads_are_counted_once() -> None:
    tied = load_pair(pair(8, tie_word_embeddings=True))
    free = load_pair(pair(8))
    assert tied.target.info.parameters == free.target.info.parameters


def test_unknown_sizes_stay_unknown(id_pair: Pair) -> None:
    info = id_pair.info
    nameless = info.model_copy(update={"draft": info.draft.model_copy(update={"parameters": None})})
    use = Use(1, 1, 1, 1)
    assert cost_of(nameless, use, use).flops is None
    assert cost_of(nameless, use, use).weight_bytes is not None


@pytest.mark.parametrize("spec", ["target", "draft", "cascade", "token-cascade", "speculative:k=3"])
def test_every_second_is_accounted_for(text_pair: Pair, spec: str) -> None:
    run = generate(text_pair, "hello", strategy=spec, max_new_tokens=20)
    parts = run.metrics.seconds
    assert parts.total == pytest.approx(parts.prefill + parts.draft + parts.verify + parts.other)
    assert min(parts.prefill, parts.draft, parts.verify, parts.other) >= 0
    rounds = [step.seconds for step in run.rounds]
    assert sum(each.total for each in rounds) <= parts.total
    assert all(each.total >= each.draft + each.verify for each in rounds)
    assert sum(each.verify for each in rounds) <= parts.verify + 1e-9
    later = rounds[1:]
    tokens = sum(len(step.emitted) for step in run.rounds[1:])
    assert run.metrics.seconds_per_token == pytest.approx(sum(each.total for each in later) / tokens)
