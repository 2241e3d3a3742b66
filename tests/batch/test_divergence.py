from __future__ import annotations

import pytest

from cascli import generate, load_pair
from tests.batch.divergence import explained, first_divergence, margins
from tests.pairs import pair


def test_the_first_divergence() -> None:
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([1, 2, 3], [1, 4, 5]) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_beyond_the_rounding_margin_is_not_explained(dtype: str) -> None:
    loaded = load_pair(pair(300), dtype=dtype)
    prompt = [5, 6, 7]
    answer = generate(loaded, prompt_ids=prompt, strategy="target", temperature=0.0, max_new_tokens=12).token_ids
    model, vocab = loaded.target.model, loaded.vocab
    gaps = [margins(model, [*prompt, *answer[:i]], [answer[i]], vocab) for i in range(12)]
    assert all(gap <= rounding for gap, rounding in gaps)
    other = [*answer[:5], (answer[5] + 1) % vocab, *answer[6:]]
    assert explained(model, prompt, answer, answer, vocab) and not explained(model, prompt, answer, other, vocab)
