"""transformers on the weights of a loaded pair, without a second copy, but with its own modules and cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from types import MethodType
from typing import Any

from torch import nn

from benchmarks.engines import of_transformers
from cascli import Pair
from cascli.models.gpu.fused_norm import FusedNorm
from cascli.models.gpu.fused_rotation import own_forward

_WARM_UP_TOKENS = 8


def transformers_baseline(
    pair: Pair,
    prompt: Sequence[int],
    k: int,
    *,
    tokens: int,
    assisted_tokens: int,
    repeats: int = 3,
    late: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Time generate and assisted generation; the latter per round, since its acceptance cannot be chosen.

    Args:
        pair: a loaded pair.
        prompt: token ids to continue.
        k: drafted tokens per round.
        tokens: number of tokens that `generate` writes.
        assisted_tokens: number of tokens that assisted generation writes.
        repeats: of both, after a warm-up.
        late: returns True if no further repeat may start; at least one is always made.
    """
    target, draft = pair.target.model, pair.draft.model
    alone, assisted = (of_transformers(target, model, k, [], "") for model in (None, draft))
    times: list[float] = []
    rounds = 0
    with stock(target, draft), _Calls().of(target) as calls:
        for engine in (alone, assisted):
            engine.answer(prompt, min(_WARM_UP_TOKENS, tokens))
        while len(times) < repeats and not (times and late()):
            calls.count = 0
            found = assisted.answer(prompt, assisted_tokens)
            rounds = max(calls.count, 1)
            times.append(found.seconds / rounds)
            alone.take(prompt, tokens)
    return {
        "repeats": len(times),
        "assisted_rounds": rounds,
        "generate_tokens_per_second": median(len(each.token_ids) / each.seconds for each in alone.answers),
        "assisted_seconds_per_round": median(times),
    }


def static_cache_baseline(
    pair: Pair, prompt: Sequence[int], *, tokens: int, repeats: int = 3, late: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Time generate with a static cache; the arguments are those of `transformers_baseline`.

    The warm-up is as long as a run, since what is compiled depends on the length of the cache.
    """
    engine = of_transformers(pair.target.model, None, None, [], "", static=True)
    with stock(pair.target.model):
        start = time.perf_counter()
        engine.answer(prompt, tokens)
        first = time.perf_counter() - start
        while len(engine.answers) < repeats and not (engine.answers and late()):
            engine.take(prompt, tokens)
    return {
        "repeats": len(engine.answers),
        "static_first_seconds": first,
        "static_tokens_per_second": median(len(each.token_ids) / each.seconds for each in engine.answers),
    }


class _Calls:
    """Counts the forward calls of a model."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def of(self, model: Any) -> Iterator[_Calls]:
        """Count inside this context."""

        def more(*_: Any) -> None:
            self.count += 1

        hook = model.register_forward_pre_hook(more)
        try:
            yield self
        finally:
            hook.remove()


@contextmanager
def stock(*models: Any) -> Iterator[None]:
    """Turn models in place into what transformers makes for a GPU: undo cascli's attention, norms and rotations."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_stock_attention(model))
            for module in model.modules():
                stack.enter_context(_stock_module(module))
        yield


@contextmanager
def _stock_attention(model: Any) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    own = "eager" if capped else "sdpa"  # torch's kernel does not support soft-capping
    model.set_attn_implementation(own if before.startswith("cascli") else before)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _stock_module(module: nn.Module) -> Iterator[None]:
    """Restore the class of a norm, and the forward of an attention layer, that cascli replaced."""
    fused = module.stock if isinstance(module, FusedNorm) else None
    forward = vars(module).get("forward")
    ours = isinstance(forward, MethodType) and forward.__func__.__code__ is own_forward(type(module)).__code__
    if fused is not None:
        module.__class__ = fused
    if ours:  # the class's code with a different function in its globals: see `cascli.models.gpu.fused_rotation`
        del vars(module)["forward"]
    try:
        yield
    finally:
        if fused is not None:
            module.__class__ = FusedNorm
        if ours:
            vars(module)["forward"] = forward
