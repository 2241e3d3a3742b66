"""Greedy and sampled output compared with transformers' own generate and assisted generation.

Sampling: transformers' texts are compared with the exact joint law, and so are cascli's; each count must be
within 6 sigma + 5 of its expectation. By Chernoff's bound a correct count is outside with a probability below
1e-7, so each test's false-alarm rate is below 64 * 2 * 1e-7 < 2e-5; the seeds are fixed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
import transformers
from packaging.version import Version

from cascli import Pair, generate, load_pair
from tests.pairs import EVERY_ARCHITECTURE, logits_along, model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
GREEDY = ["target", "speculative:k=1", "speculative:k=4", "token-cascade:rule=diff,alpha=-1"]
SAMPLES, OURS = 2000, 400
WARPINGS = [(1.0, 0), (0.7, 5), (1.3, 6)]
WIDTH = 8


def theirs(pair: Pair, ids: list[int], *, assisted: bool, **more) -> list[list[int]]:
    """What transformers generates, with a constant schedule and no confidence threshold."""
    if assisted:
        pair.draft.model.generation_config.num_assistant_tokens = 3
        pair.draft.model.generation_config.num_assistant_tokens_schedule = "constant"
        pair.draft.model.generation_config.assistant_confidence_threshold = 0
        more["assistant_model"] = pair.draft.model
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    found = pair.target.model.generate(prompt, attention_mask=mask, pad_token_id=0, **more)
    start = 1 if pair.target.model.config.is_encoder_decoder else len(ids)
    return found[:, start:].tolist()


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("strategy", GREEDY)
def test_lossless_strategies_write_what_transformers_writes(name: str, strategy: str) -> None:
    shape = EVERY_ARCHITECTURE[name]
    pair = load_pair({"draft": model(1, 64, **shape), "target": model(2, 64, **shape)})
    [wanted] = theirs(pair, PROMPT, assisted=False, max_new_tokens=40, do_sample=False)
    run = generate(pair, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, temperature=0)
    assert run.token_ids == wanted
    assert run.metrics.lossless


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_assisted_generation_agrees(name: str) -> None:
    shape = EVERY_ARCHITECTURE[name]
    if "sliding_window" in shape and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before 5.23 transformers' own assisted generation fails beyond a sliding window (its #48280)")
    pair = load_pair({"draft": model(1, 64, **shape), "target": model(2, 64, **shape)})
    [wanted] = theirs(pair, PROMPT, assisted=True, max_new_tokens=40, do_sample=False)
    run = generate(pair, prompt_ids=PROMPT, strategy="speculative:k=3", max_new_tokens=40, temperature=0)
    assert run.token_ids == wanted


@pytest.mark.parametrize("paddings", [(64, 64), (64, 80), (96, 64)])
def test_padded_vocabularies_write_what_transformers_writes(paddings: tuple[int, int]) -> None:
    """The shorter head decides; transformers is configured to suppress the ids beyond it."""
    draft, target = paddings
    pair = load_pair({"draft": model(1, draft), "target": model(2, target)})
    assert pair.info.masked_rows == (draft - 64, target - 64)
    beyond = list(range(64, target)) or None
    [wanted] = theirs(pair, PROMPT, assisted=False, max_new_tokens=40, do_sample=False, suppress_tokens=beyond)
    for strategy in GREEDY:
        run = generate(pair, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, temperature=0)
        assert run.token_ids == wanted


def test_several_end_of_text_ids() -> None:
    free = load_pair({"draft": model(1, 64), "target": model(2, 64)})
    first = generate(free, prompt_ids=PROMPT, strategy="target", max_new_tokens=20, temperature=0).token_ids
    pair = load_pair({"draft": model(1, 64), "target": model(2, 64, eos_token_id=[first[3], 63])})
    reasons = []
    for start in range(1, 13):
        ids = PROMPT if start == 1 else [start, 3]
        [wanted] = theirs(pair, ids, assisted=False, max_new_tokens=30, do_sample=False)
        run = generate(pair, prompt_ids=ids, strategy="speculative:k=3", max_new_tokens=30, temperature=0)
        assert run.token_ids == wanted
        reasons.append(run.finish_reason)
    assert "eos" in reasons


@torch.inference_mode()
def joint_law(pair: Pair, temperature: float, top_k: int) -> dict[tuple[int, ...], float]:
    """The target's probability of every text of two tokens, from full forwards."""

    def after(ids: list[int]) -> list[float]:
        logits = logits_along(pair.target.model, PROMPT_SMALL, ids)[-1].double() / temperature
        cut = logits.topk(top_k).values[-1] if top_k else -math.inf
        return logits.masked_fill(logits < cut, -math.inf).softmax(dim=-1).tolist()

    first = after([])
    return {(a, b): first[a] * second for a in range(WIDTH) if first[a] > 0 for b, second in enumerate(after([a]))}


PROMPT_SMALL = [3, 1, 4, 1, 5]


def assert_follows(texts: Iterable[tuple[int, ...]], law: dict[tuple[int, ...], float], runs: int) -> None:
    counts = Counter(texts)
    assert counts.total() == runs
    for text in counts:
        assert law.get(text, 0) > 0, f"{text} is impossible"
    for text, mass in law.items():
        reach = 6 * math.sqrt(runs * mass * (1 - mass)) + 5
        assert abs(counts[text] - runs * mass) <= reach, (text, counts[text], runs * mass)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "t5"])  # every kind of cache
def test_sampled_texts_follow_one_law_here_and_there(name: str) -> None:
    shape = EVERY_ARCHITECTURE[name]
    temperature, top_k = WARPINGS[len(name) % 3]
    pair = load_pair({"draft": model(1, WIDTH, **shape), "target": model(2, WIDTH, **shape)})
    law = joint_law(pair, temperature, top_k)
    assert sum(law.values()) == pytest.approx(1)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": 1.0, "max_new_tokens": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = theirs(pair, PROMPT_SMALL, assisted=False, num_return_sequences=SAMPLES, **sampling)
    assert_follows((tuple(text) for text in batch), law, SAMPLES)
    for strategy in ("target", "speculative:k=2"):
        runs = (
            generate(
                pair,
                prompt_ids=PROMPT_SMALL,
                strategy=strategy,
                temperature=temperature,
                top_k=top_k,
                max_new_tokens=2,
                seed=seed,
            )
            for seed in range(OURS)
        )
        assert_follows((tuple(run.token_ids) for run in runs), law, OURS)


@pytest.mark.slow
def test_assisted_sampling_follows_the_same_law() -> None:
    pair = load_pair({"draft": model(1, WIDTH), "target": model(2, WIDTH)})
    law = joint_law(pair, 1.0, 0)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = [tuple(theirs(pair, PROMPT_SMALL, assisted=True, **sampling)[0]) for _ in range(500)]
    assert_follows(texts, law, 500)


@pytest.mark.parametrize("kind", ["mamba", "bart", "rwkv", "xlm"])
def test_unsupported_models_fail_at_load_with_a_reason(kind: str) -> None:
    from cascli.errors import CascliError

    with pytest.raises(CascliError, match=r"cannot be rewound|encoder-decoder|tells nothing"):
        load_pair({"draft": {"source": {"random": {"model_type": kind, "vocab_size": 8}}}, "target": model(1, 8)})
