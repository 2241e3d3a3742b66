"""Are drafts drawn from the distributions reported for them, and are those the model's own?

Drafting several tokens in one call (a single captured graph, where graphs are used) is compared with the same steps run
one at a time: with the distributions of their logits in float64, and with draws by torch's own operations, over the
whole vocabulary. Greedy parity cannot see an error here, because the target corrects whatever is drafted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from cascli.audit.report import Check, check_of, worst
from cascli.models.calls import Calls, Write
from cascli.models.pair import LoadedModel, Pair
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import Uniforms

BOUND = 1e-3
"""Largest TV between a draw's reported distribution and its logits'; float32 errs by 1e-5 over 150,000 tokens."""
ROUNDS = [
    (Write(unread=1, drawn=3), Sampling(1.0)),
    (Write(unread=2, drawn=3, read_last=True), Sampling(0.8, top_k=200, top_p=0.9)),
]
"""After a round that rejected a draft, and after one that kept all, for a rule that reads q one position further."""


def draws(pair: Pair) -> Iterator[Check]:
    """One check per model."""
    for role, model in pair.models.items():
        distance = worst(_worst(model, pair.vocab, write, sampling) for write, sampling in ROUNDS)
        graphs = ", captured" if model.runner.draws else ""
        detail = f"{len(ROUNDS)} drafts of 3 tokens, one of them truncated, over {pair.vocab} tokens{graphs}"
        yield check_of("draw", f"{role} ({model.dtype})", distance, BOUND, 0.0, detail)


@torch.inference_mode()
def _worst(model: LoadedModel, vocab: int, write: Write, sampling: Sampling) -> float:
    """The largest TV over the steps of a draft; 1 if a token is not the one that its random number draws."""
    rng, runner, sampler = random.Random(2), model.runner, Sampler(sampling, reads_base=True)
    text = torch.tensor([rng.randrange(vocab) for _ in range(12 + write.unread)], device=model.device)
    prompt, unread = text[:12], text[12:]
    runner.prepare(12, write.tokens, Calls([(write.unread, 1), (1, 1)], [write]), sampler)
    runner.forward(runner.begin(prompt), 1)
    before = runner.length
    u = Uniforms(0, write.drawn, model.device).draw(0, write.drawn)
    tokens, probs, base = (each.clone() for each in runner.write(unread, sampler, u, read_last=write.read_last)[:3])
    runner.truncate(before)
    reads = [unread, *(tokens[i : i + 1] for i in range(write.steps - 1))]
    logits = torch.cat([runner.forward(ids, 1).double() for ids in reads])
    runner.reset()
    if not torch.equal(tokens, distributions.sample(probs[: write.drawn], u)):
        return 1.0
    expected = distributions.warp(logits, sampling), distributions.base(logits)
    distances = [
        distributions.total_variation(a, b.double()).max() for a, b in zip(expected, (probs, base), strict=True)
    ]
    return float(torch.stack(distances).max())
