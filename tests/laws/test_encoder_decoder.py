"""Exact laws of encoder-decoder pairs by enumeration: tiny T5 models in the real engine, and planted bugs.

The reference is the product of pi along the text, from full forwards without a cache: encoder, start token, answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.t5 import modeling_t5

from cascli import Pair, generate, load_pair
from cascli.models.cache import cache_name
from cascli.models.encoder_decoder import EncoderDecoderRunner
from tests.laws.integration import exact_law
from tests.laws.tables import target
from tests.pairs import T5, UNEVEN, logits_along
from tests.reference import process
from tests.reference.distributions import softmax, total_variation, warp
from tests.reference.process import Law, Target, Tokens, distance

EXACT = 1e-12
VISIBLE = 1e-4
PROMPT = (1, 3, 2, 1)
OTHER_PROMPT = (2, 2, 0)
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
VOCAB = 4


class DoubleNorm(nn.Module):
    """T5's norm in float64; the original rounds to float32 internally."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon)


@cache
def tiny_t5() -> Pair:
    """Two random T5s that disagree, in float64: v1.0 drafts for v1.1. Their texts never end."""
    shape = T5 | UNEVEN | {"vocab_size": VOCAB, "eos_token_id": None}
    kinds = {"draft": {}, "target": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}
    seeds = {"draft": 5, "target": 6}
    loaded = load_pair({role: {"source": {"random": shape | kinds[role], "seed": seeds[role]}} for role in kinds})
    for role, each in loaded.models.items():
        each.model.double()
        for module in list(each.model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is modeling_t5.T5LayerNorm:
                    setattr(module, name, DoubleNorm(child))
        each.model.lm_head.weight.mul_(SCALES[role])
        each.model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(POSITIONS)
    return loaded


POSITIONS = 8.0
"""Factor of the decoder's position bias, which barely affects a random model."""
SCALES = {"draft": 0.5, "target": 0.1}
"""Factors of the heads, so that no distribution is flat or certain."""


@cache
def logits(prompt: Tokens, prefix: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Draft and target logits after a prefix of the answer."""
    x, y = (logits_along(each.model, prompt, prefix)[-1].numpy() for each in tiny_t5().models.values())
    return x, y


def tables_of(prompt: Tokens = PROMPT, **sampling: Any) -> process.Tables:
    @cache
    def tables(prefix: Tokens) -> process.Pair:
        x, y = logits(prompt, prefix)
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    return tables


def engine_law(strategy: str, length: int, *, before: Tokens | None = None, **sampling: Any) -> Law:
    """The exact joint law of an answer; if `before` is given, both models read that prompt before each run."""

    def run(uniforms: Any) -> Tokens:
        if before is not None:
            for each in tiny_t5().models.values():
                each.runner.begin(torch.tensor(before))
        result = generate(
            tiny_t5(), prompt_ids=PROMPT, strategy=strategy, max_new_tokens=length, uniforms=uniforms, **sampling
        )
        return tuple(result.token_ids)

    return exact_law(run)


def assert_law(strategy: str, rule: Target, length: int, sampling: dict[str, Any]) -> None:
    law = engine_law(strategy, length, **sampling)
    assert len(law) > 3 and sum(law.values()) == pytest.approx(1.0, abs=EXACT)
    assert {len(text) for text in law} == {length}
    assert distance(law, process.sequential_law(tables_of(**sampling), rule, length)) < EXACT


def test_the_models_are_worth_testing() -> None:
    """The models disagree partly, depend on the prompt and on more than the last token; no law is flat or certain."""
    tables, others = tables_of(**PLAIN), tables_of(OTHER_PROMPT, **PLAIN)
    prefixes = [(), *((a,) for a in range(VOCAB)), *((a, b) for a in range(VOCAB) for b in range(VOCAB))]
    apart = [total_variation(tables(prefix).q, tables(prefix).p) for prefix in prefixes]
    assert 0.15 < np.mean(apart) < 0.7
    for model in ("q", "p"):
        laws = {prefix: getattr(tables(prefix), model) for prefix in prefixes}
        assert np.mean([law.max() for law in laws.values()]) < 0.9
        assert np.mean([law.max() - law.min() for law in laws.values()]) > 0.15
        assert max(np.abs(laws[0, b] - laws[a, b]).max() for a in range(1, VOCAB) for b in range(VOCAB)) > 0.01
        assert max(np.abs(getattr(others(prefix), model) - laws[prefix]).max() for prefix in prefixes) > 0.01


@pytest.mark.parametrize(
    ("strategy", "rule", "length"),
    [
        ("draft", lambda pair: pair.q, 3),
        ("target", target("exact"), 3),
        ("token-cascade:rule=opt,alpha=0.3", target("opt", 0.3), 2),
        ("token-cascade:rule=token-v3,alpha=0.3", target("token-v3", 0.3), 2),
        ("speculative:k=1", target("exact"), 2),
        ("speculative:k=2", target("exact"), 3),
        ("speculative:k=4", target("exact"), 3),
        ("speculative:k=2,verify=block", target("exact"), 2),
        ("speculative:draft=prompt-lookup,k=2", target("exact"), 2),
        ("speculative:draft=suffix,k=2", target("exact"), 2),
        ("speculative-cascade:rule=opt,alpha=0.3,k=2", target("opt", 0.3), 2),
        ("speculative-cascade:rule=token-v3,alpha=0.3,k=2", target("token-v3", 0.3), 3),
        ("speculative-cascade:rule=chow,alpha=0.5,k=2,stop=max-q", target("chow", 0.5), 2),
    ],
)
def test_laws(strategy: str, rule: Target, length: int) -> None:
    assert_law(strategy, rule, length, PLAIN)


@pytest.mark.parametrize("strategy", ["target", "speculative:k=2", "token-cascade:rule=token-v3,alpha=0.3"])
def test_laws_of_truncated_distributions(strategy: str) -> None:
    assert_law(strategy, target("token-v3", 0.3) if "token-v3" in strategy else target("exact"), 2, WARPED)


@pytest.mark.parametrize("threshold", [-1.0])
def test_sequence_cascade(threshold: float) -> None:
    """The draft's answer if its score is high enough, otherwise the target's, from its own start."""
    tables = tables_of(**PLAIN)
    drafts, answers = (process.sequential_law(tables, rule, 2) for rule in (lambda p: p.q, lambda p: p.p))
    scores = {text: np.mean([np.log(tables(text[:i]).q1[x]) for i, x in enumerate(text)]) for text in drafts}
    kept = {text: weight for text, weight in drafts.items() if scores[text] >= threshold}
    handed_over = 1 - sum(kept.values())
    assert 0.01 < handed_over < 0.99
    expected = {text: kept.get(text, 0.0) + handed_over * weight for text, weight in answers.items()}
    assert distance(engine_law(f"cascade:threshold={threshold}", 2, **PLAIN), expected) < EXACT


@pytest.mark.parametrize("k", [1, 3, 8])
def test_greedy_answers_equal_those_of_the_target(k: int) -> None:
    runs = [
        generate(tiny_t5(), prompt_ids=PROMPT, strategy=strategy, max_new_tokens=60, **GREEDY).token_ids
        for strategy in ("target", f"speculative:k={k}", f"speculative:k={k},draft=prompt-lookup")
    ]
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 60


def test_lookups_search_the_encoder_prompt() -> None:
    """A repetition within the prompt is drafted in the first round."""
    prompt = [1, 2, 0] * 4
    run = generate(
        tiny_t5(), prompt_ids=prompt, strategy="speculative:draft=prompt-lookup,k=3", max_new_tokens=1 + 3, **GREEDY
    )
    assert [token.id for token in run.rounds[0].drafted] == [1, 2, 0]


# ---------------------------------------------------------------- planted bugs


def cross_attention_rewound(patch: pytest.MonkeyPatch) -> None:
    """Rewinding a rejected draft also truncates the encoder's keys and values."""
    right = EncoderDecoderRunner.truncate

    def truncate(self: EncoderDecoderRunner, length: int) -> None:
        off = self.length - length
        right(self, length)
        for layer in self._caches.cross_attention_cache.layers if length and off > 0 else []:
            layer.keys, layer.values = (
                each[:, :, : max(each.shape[2] - off, 1)] for each in (layer.keys, layer.values)
            )

    patch.setattr(EncoderDecoderRunner, "truncate", truncate)


def cross_attention_of_an_earlier_prompt(patch: pytest.MonkeyPatch) -> None:
    """Keys and values that exist are never recomputed, even for another prompt."""
    right, first = EncoderDecoderRunner._set_states, dict[int, Tensor]()

    def look_at(self: EncoderDecoderRunner, states: Tensor) -> None:
        right(self, first.setdefault(id(self), states))

    patch.setattr(EncoderDecoderRunner, "_set_states", look_at)


def cross_attention_of_the_answer(patch: pytest.MonkeyPatch) -> None:
    """Cross-attention is recomputed in each call, from the states that the decoder reads."""
    right = modeling_t5.T5LayerCrossAttention.forward

    def forward(self: nn.Module, hidden: Tensor, key_value_states: Tensor, **more: Any) -> Any:
        more[cache_name(inspect.signature(right).parameters)] = None
        return right(self, hidden, key_value_states=hidden, **more)

    patch.setattr(modeling_t5.T5LayerCrossAttention, "forward", forward)


def positions_from_the_blocks_start(patch: pytest.MonkeyPatch) -> None:
    """Positions count from the block's first token instead of the text's."""
    right = modeling_t5.T5Attention.compute_bias

    def compute_bias(self: nn.Module, query: int, key: int, device: Any = None, past_seen_tokens: int = 0) -> Tensor:
        return right(self, query, key, device=device, past_seen_tokens=0)

    patch.setattr(modeling_t5.T5Attention, "compute_bias", compute_bias)


def start_token_read_twice(patch: pytest.MonkeyPatch) -> None:
    """The start token is read with the prompt, and again as the answer's first input."""
    right = EncoderDecoderRunner.begin

    def begin(self: EncoderDecoderRunner, prompt_ids: Tensor) -> Tensor:
        start = right(self, prompt_ids)
        self.forward(start, 1)
        return start

    patch.setattr(EncoderDecoderRunner, "begin", begin)


def start_token_counted_as_answer(patch: pytest.MonkeyPatch) -> None:
    """An answer is rewound to one token too many (the start token), so a rejected draft stays."""
    right = EncoderDecoderRunner.truncate

    def truncate(self: EncoderDecoderRunner, length: int) -> None:
        right(self, min(length + 1, self.length) if length else 0)

    patch.setattr(EncoderDecoderRunner, "truncate", truncate)


def prompt_for_the_decoder(patch: pytest.MonkeyPatch) -> None:
    """The answer starts from the prompt's last token, as in a decoder-only model."""
    right = EncoderDecoderRunner.begin

    def begin(self: EncoderDecoderRunner, prompt_ids: Tensor) -> Tensor:
        right(self, prompt_ids)
        return prompt_ids[-1:]

    patch.setattr(EncoderDecoderRunner, "begin", begin)


@pytest.mark.parametrize(
    "bug",
    [
        cross_attention_rewound,
        cross_attention_of_an_earlier_prompt,
        cross_attention_of_the_answer,
        positions_from_the_blocks_start,
        start_token_read_twice,
        prompt_for_the_decoder,
    ],
)
def test_planted_bugs_are_detected(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bugs, laws like this one are exact by `test_laws`."""
    wanted = process.sequential_law(tables_of(**PLAIN), target("exact"), 2)
    bug(monkeypatch)
    before = OTHER_PROMPT if bug is cross_attention_of_an_earlier_prompt else None
    assert distance(engine_law("speculative:k=2", 2, before=before, **PLAIN), wanted) > VISIBLE


def test_counting_the_start_token_as_answer_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor notices that more tokens were read than exist."""
    start_token_counted_as_answer(monkeypatch)
    with pytest.raises(ValueError, match="tokens are unread"):
        engine_law("speculative:k=2", 3, **PLAIN)


def test_a_decoder_drafts_for_an_encoder_decoder() -> None:
    """Each model reads the prompt in its own way; for any q, the law is the target's."""
    from tests.pairs import SHAPE

    mixed = load_pair(
        {
            "draft": {"source": {"random": SHAPE | {"vocab_size": VOCAB}, "seed": 1}},
            "target": {"source": {"random": T5 | {"vocab_size": VOCAB, "eos_token_id": None}, "seed": 2}},
        }
    )
    runs = [
        generate(mixed, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=30, **GREEDY).token_ids
        for strategy in ("target", "speculative:k=3")
    ]
    assert runs[0] == runs[1]
