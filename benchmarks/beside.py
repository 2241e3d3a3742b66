"""transformers on a loaded pair's own weights: no second copy, and its own attention and cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.contestants import of_transformers
from cascli import Pair


def transformers_beside(pair: Pair, prompt: Sequence[int], k: int, tokens: int) -> dict[str, Any]:
    """Generate and assisted generation; the latter by the round, since its acceptance cannot be chosen."""
    target, draft = pair.target.model, pair.draft.model
    alone, assisted = (of_transformers(target, model, k, [], "") for model in (None, draft))
    calls = _Calls()
    with _stock_attention(target, draft), calls.of(target):
        for contestant in (alone, assisted):
            contestant.answer(prompt, 8)
        times = []
        for _ in range(3):
            calls.count = 0
            found = assisted.answer(prompt, tokens)
            times.append(found.seconds / max(calls.count, 1))
            alone.take(prompt, tokens)
    rates = sorted(len(each.token_ids) / each.seconds for each in alone.answers)
    return {
        "generate_tokens_per_second": rates[len(rates) // 2],
        "assisted_seconds_per_round": sorted(times)[len(times) // 2],
    }


class _Calls:
    """Counts the forwards of a model."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """Count while this lasts."""

        def more(*_: Any) -> None:
            self.count += 1

        hook = model.register_forward_pre_hook(more)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _stock_attention(*models: Any) -> Iterator[None]:
    """Transformers' own attention in place of cascli's."""
    before = [model.config.get_text_config()._attn_implementation for model in models]
    for model, name in zip(models, before, strict=True):
        capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
        stock = "eager" if capped else "sdpa"  # torch's kernel knows no soft-capping
        model.set_attn_implementation(stock if name.startswith("cascli") else name)
    try:
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)
