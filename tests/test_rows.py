"""Models with different numbers of rows: cutting rows off the larger one is reported, or rejected."""

from __future__ import annotations

import warnings

import pytest

from cascli import generate, load_pair
from cascli.errors import ConfigError, PairWarning
from cascli.jobs.compare import compare
from cascli.prompts import Prompt
from cascli.strategies import parse
from tests.pairs import pair


def test_tokens_cut_off_by_a_smaller_draft_are_reported() -> None:
    with pytest.warns(
        PairWarning, match="draft model has 6 rows, so 4 tokens, from id 6 onwards, are cut off both models"
    ):
        loaded = load_pair(pair(10, draft_vocab=6))
    assert loaded.info.masked_rows == (0, 4)
    assert max(generate(loaded, prompt_ids=[1], strategy="target", max_new_tokens=30).token_ids) < 6


def test_padding_rows_are_not_tokens() -> None:
    """Rows beyond the tokenizer's 257 are not tokens, in either model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        assert load_pair(pair(320, draft_vocab=300)).vocab == 257


def test_cutting_off_the_end_of_text_token_is_refused() -> None:
    config = pair(10, draft_vocab=6)
    config["target"]["source"]["random"]["eos_token_id"] = 8
    with pytest.raises(ConfigError, match="among them 8, which ends the target's texts"):
        load_pair(config)


def test_later_turns_are_compared_only_where_the_texts_before_them_are_the_same() -> None:
    loaded = load_pair(pair(300))
    strategies = [parse(text) for text in ("target", "draft", "speculative:k=2")]
    found = compare(loaded, [Prompt(("a", "b"), "1")], strategies, max_new_tokens=6, temperature=0.0, measure=False)
    _, draft, speculative = found.summary
    prompts = {(run.spec, run.turn): run.prompt_token_ids for run in found.runs}
    assert prompts["target", 1] != prompts["draft", 1] and prompts["target", 1] == prompts["speculative:k=2", 1]
    assert (draft.same_as_target, speculative.same_as_target) == (False, True)
