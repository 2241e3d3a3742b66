"""What a precision costs: how far each model in int8 (or bfloat16) is from float32, along float32's own answers.

`python -m benchmarks.accuracy -o FILE.json`. Both models answer the built-in prompts greedily in float32; every
precision then reads the same texts. Reported: how often the likeliest token is the same, the ratio of perplexities,
and the mean total variation and KL divergence between the next-token distributions.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import facts
from cascli import generate, load_pair
from cascli.chat import Conversation, encode
from cascli.prompts import builtin

ROLES = ("target", "draft")
REFERENCE = "float32"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"], help="precisions to compare with float32")
    parser.add_argument("--limit", type=int, default=30, help="how many built-in prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON document."""
    options = arguments(argv)
    texts, reference = reference_of(options)
    found = {}
    for dtype in options.dtypes:
        pair = load_pair(options.config, dtype=dtype, device="cpu")
        for role in ROLES:
            model = getattr(pair, role)
            each = compared(texts[role], reference[role], (read(model, text) for text in texts[role]))
            found[f"{role} {dtype}"] = each
            print(f"{role} {dtype}: {each}", file=sys.stderr)
        del pair, model
        gc.collect()
    document = {
        "schema": "cascli.accuracy/1",
        **facts(),
        "pair": options.config,
        "prompts": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "rows": found,
    }
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def reference_of(options: argparse.Namespace) -> tuple[dict[str, list[tuple[int, list[int]]]], dict[str, list[Tensor]]]:
    """Each model's own greedy answers in float32, as prompt length and ids, and its logits along them."""
    pair = load_pair(options.config, dtype=REFERENCE, device="cpu")
    strategies = {"target": "speculative:k=4", "draft": "draft"}  # speculation gives the target's answers, faster
    texts: dict[str, list[tuple[int, list[int]]]] = {role: [] for role in ROLES}
    logits: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    for prompt in builtin()[: options.limit]:
        ids = encode(pair, prompt.turns[0], Conversation(None), raw=False)
        for role in ROLES:
            run = generate(
                pair, prompt_ids=ids, strategy=strategies[role], temperature=0.0, max_new_tokens=options.max_new_tokens
            )
            whole = [*ids, *run.token_ids]
            texts[role].append((len(ids), whole))
            logits[role].append(read(getattr(pair, role), (len(ids), whole)))
    return texts, logits


def read(model: Any, text: tuple[int, list[int]]) -> Tensor:
    """Return the logits `[n, V]` that predict the n tokens of the answer."""
    start, ids = text
    model.runner.reset()
    model.runner.forward(torch.tensor(ids[: start - 1]), 1)
    return model.runner.forward(torch.tensor(ids[start - 1 : -1]), len(ids) - start).float()


def compared(
    texts: Sequence[tuple[int, list[int]]], wanted: Sequence[Tensor], given: Iterable[Tensor]
) -> dict[str, float]:
    """Return agreement, perplexities and distances over all answers."""
    same = count = 0
    losses = torch.zeros(2, dtype=torch.float64)
    tv = kl = 0.0
    for (start, ids), reference, other in zip(texts, wanted, given, strict=True):
        answer = torch.tensor(ids[start:])
        logs = [torch.log_softmax(each.double(), dim=-1) for each in (reference, other)]
        same += int((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
        count += len(answer)
        losses -= torch.stack([each.gather(-1, answer.unsqueeze(-1)).sum() for each in logs])
        tv += float(0.5 * (logs[0].exp() - logs[1].exp()).abs().sum())
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
    perplexities = (losses / count).exp()
    return {
        "tokens": count,
        "top1_agreement": same / count,
        "perplexity_ratio": float(perplexities[1] / perplexities[0]),
        "perplexity": float(perplexities[1]),
        "mean_tv": tv / count,
        "mean_kl": kl / count,
    }


if __name__ == "__main__":
    main()
