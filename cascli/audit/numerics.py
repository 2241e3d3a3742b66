"""Does the cache drift, and do logits depend on the block that a token is verified in?

Differences are those of `cascli.models.rounding.difference`. In a mixture of experts, 16-bit rounding decides which of
two nearly equal experts a token passes through, and another choice moves its logits, and those of tokens after it, far
beyond any bound on rounding. This happens to a minority of rows, whereas a wrong cache moves all: the cache of such a
model is judged by its middle row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.audit.report import Check, check_of, skipped, worst
from cascli.models.calls import Calls
from cascli.models.eagle3.runners import Eagle3Runner
from cascli.models.pair import LoadedModel, Pair
from cascli.models.rounding import BOUNDS, difference
from cascli.models.size import has_experts

LOGIT_SCALE = 30.0
"""Approximate largest magnitude of a language model's logits; converts a relative difference into a margin."""
LONGEST_WINDOW = 512
BLOCK, PROMPT = 8, 8
READS = Calls(reads=[(n, n) for n in range(BLOCK, 0, -1)])
"""The reads made here, for runners that capture their steps."""


def numerics(pair: Pair, steps: int) -> Iterator[Check]:
    """Cache and block checks of both models; for an EAGLE-3 head, only those that make sense next to its target."""
    for role, model in pair.models.items():
        if isinstance(model.runner, Eagle3Runner):
            yield head_with_target(pair, model, model.runner, steps)
            yield skipped(
                "block", f"{role} ({model.dtype})", "a head reads one by one the tokens its target has not read"
            )
            continue
        vocab = pair.vocab if pair.translation is None or role == "target" else pair.translation.draft.size
        yield cache(role, model, vocab, steps)
        yield block(role, model, vocab)


def window(model: LoadedModel) -> int | None:
    """The model's sliding window in tokens, or the length of its chunks, if it has one."""
    config = model.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if "chunked_attention" in (kinds or []):
        return int(config.attention_chunk_size)
    size = getattr(config, "sliding_window", None)
    return int(size) if size and (kinds is None or "sliding_attention" in kinds) else None


@torch.inference_mode()
def cache(role: str, model: LoadedModel, vocab: int, steps: int) -> Check:
    """Read and rewind at random, and compare the logits with those of a fresh forward over the whole text."""
    rng, runner = random.Random(0), model.runner.own
    slides = window(model)
    reach = slides is not None and slides <= LONGEST_WINDOW
    routed = has_experts(model.model.config.get_text_config()) and model.dtype in ("bfloat16", "float16")
    text = [rng.randrange(vocab) for _ in range(slides + 8 if reach and slides else 24)]
    runner.prepare(len(text), (steps + 1) * BLOCK, READS)
    prompt, rest = _ids(text[:PROMPT], model), text[PROMPT:]
    # The text written, from what the answer starts from; rewinds never reach into the prompt before it.
    text = [*runner.begin(prompt).tolist(), *rest]
    before = runner.length
    runner.forward(_ids(text, model), 1)
    seen = []
    for _ in range(steps):
        keep = rng.randint(max(len(text) - 6, 1), len(text))
        runner.truncate(before + keep)
        fresh_tokens = [rng.randrange(vocab) for _ in range(rng.randint(1, BLOCK))]
        text = text[:keep] + fresh_tokens
        got = runner.forward(_ids(fresh_tokens, model), len(fresh_tokens))
        whole = without_cache(model.model, prompt, _ids(text, model))
        expected = whole[-len(fresh_tokens) :, :vocab].to(got.device)
        pairs = zip(got.split(1), expected.split(1), strict=True) if routed else [(got, expected)]
        seen += [difference(*each) for each in pairs]
    note = f"{steps} rewinds, up to {runner.length} tokens"
    runner.reset()
    if routed:
        beyond = sum(each > BOUNDS[model.dtype] for each in seen)
        note += f"; the middle of {len(seen)} rows, of which {beyond} are beyond the bound: rounding may choose experts"
    if slides is not None:
        note += f", {'beyond' if reach else 'not beyond'} its window of {slides}"
    found = median(seen) if routed and not any(map(math.isnan, seen)) else worst(seen)
    return check_of("cache", f"{role} ({model.dtype})", found, BOUNDS[model.dtype], 0.0, note)


@torch.inference_mode()
def head_with_target(pair: Pair, draft: LoadedModel, head: Eagle3Runner, steps: int) -> Check:
    """Let a head draft, its target read that and keep a part, and compare the head with a fresh one that rereads it."""
    rng, target = random.Random(0), pair.target.runner

    def random_tokens(n: int) -> list[int]:
        return [rng.randrange(pair.vocab) for _ in range(n)]

    text, seen = random_tokens(24), []
    head.reset()
    for _ in range(steps):
        drafted, kept = random_tokens(rng.randint(1, BLOCK)), rng.randint(0, BLOCK)
        head.forward(_ids([*text, *drafted][head.length :], draft), 1)
        target.forward(_ids([*text, *drafted][target.length :], draft), 1)
        text += drafted[:kept]
        for runner in (head, target):
            runner.truncate(len(text))
        text += random_tokens(1)
        fresh_head, fresh_target = head.fresh(), target.fresh()
        fresh_head.follow(fresh_target)
        got, whole = (each.forward(_ids(text[each.length :], draft), 1) for each in (head, fresh_head))
        seen.append(difference(got, whole))
    head.reset()
    bound = max(BOUNDS[model.dtype] for model in (draft, pair.target))
    note = f"{steps} drafts, up to {len(text)} tokens"
    return check_of("cache", f"draft ({draft.dtype})", worst(seen), bound, 0.0, note)


@torch.inference_mode()
def block(role: str, model: LoadedModel, vocab: int) -> Check:
    """Compare the same tokens read one by one, and in one block of each size."""
    rng, runner = random.Random(1), model.runner.own
    prompt = _ids([rng.randrange(vocab) for _ in range(16)], model)
    tokens = _ids([rng.randrange(vocab) for _ in range(BLOCK)], model)
    runner.prepare(len(prompt), BLOCK, READS)
    runner.forward(runner.begin(prompt), 1)
    before = runner.length
    # A captured step's logits are overwritten by the next step.
    alone = torch.cat([runner.forward(tokens[i : i + 1], 1).clone() for i in range(BLOCK)])
    seen, same = [], True
    for n in range(2, BLOCK + 1):
        runner.truncate(before)
        together = runner.forward(tokens[:n], n)
        seen.append(difference(together, alone[:n]))
        same = same and torch.equal(together, alone[:n])
    runner.reset()
    detail = f"blocks of 2 to {BLOCK} against single tokens" + (": bit-identical" if same else "")
    return check_of("block", f"{role} ({model.dtype})", worst(seen), BOUNDS[model.dtype], 0.0, detail)


def without_cache(model: PreTrainedModel, prompt: Tensor, text: Tensor) -> Tensor:
    """Logits `[m, rows]` after each token of a text `[m]` that begins with what `Runner.begin` returns for a prompt.

    Computed by the model alone, in one pass. The prompt is `[n]`.
    """
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": prompt.unsqueeze(0), "decoder_input_ids": text.unsqueeze(0)}
    else:
        inputs = {"input_ids": torch.cat([prompt[:-1], text]).unsqueeze(0)}
    logits: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits[-len(text) :]


def _ids(tokens: list[int], model: LoadedModel) -> Tensor:
    return torch.tensor(tokens, device=model.device)
