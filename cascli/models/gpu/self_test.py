"""The self-test of kernels and captured steps, made while a model is loaded on a GPU and before it decodes anything.

Kernels are compiled where they run, by that machine's Triton for that machine's card, and a fused step computes what
one version of transformers did for a family of models. Here draws and rounds are compared with torch's own operations,
and steps with the model's own layers. What fails is not used, and the user is told why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli import kernels
from cascli.errors import CascliError, RunError, first_line, raised
from cascli.kernels.layout import RoundFacts
from cascli.models.cache import forward_parameters
from cascli.models.calls import Calls
from cascli.models.description import context_of
from cascli.models.eager_runner import EagerRunner
from cascli.models.rounding import difference
from cascli.models.runner import Runner
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from cascli.sampling.rejection import residual, verify_block
from cascli.sampling.uniforms import Uniforms

PROMPT, BLOCK = 80, 5
"""Tokens of the self-test's prompt, which is longer than any block of a round, and of its block."""
TIMES_OWN = 3
"""How often the rounding of the model's own layers may be exceeded.

Sound steps of the embedded models in bfloat16, on a CPU, exceeded it up to 1.2 times.
"""
LEAST = {torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.06}
"""Relative differences that always pass, by precision."""
SAMPLINGS = (Sampling(1.0), Sampling(0.9, top_k=20, top_p=0.9))
"""Few tokens, so that rounding hardly ever decides which is the last one that top-p keeps."""
SEEDS = 8
SLACK = 1e-4
"""Share of the mass by which two sums over a vocabulary may differ."""


def check_kernels(device: torch.device, vocab: int, dtype: torch.dtype) -> str | None:
    """Test draws and rounds over a vocabulary; no kernels are used on the device from then on if they fail.

    Returns:
        Why there are no kernels, worded for the user; None if they passed.

    Raises:
        RunError: the GPU cannot be used any more.
    """
    why = kernels.missing(device)
    if why is None:
        why = _failure(device, lambda: _wrong_rounds(device, vocab, dtype))
        if why is not None:
            kernels.withdraw(device, f"their self-test failed: {why}")
    return kernels.missing(device)


class StepTest:
    """Compares the steps of a model's runners with its own layers, which it must meet before they are replaced."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, vocab: int, device: torch.device) -> None:
        """Read a text with the model's own layers, in one pass without a cache."""
        generator = torch.Generator().manual_seed(0)
        room = context_of(model.config) or PROMPT + BLOCK + 1
        self._device, self._prompt, rows = device, max(1, min(PROMPT, room - BLOCK - 1)), BLOCK + 2
        self._text = torch.randint(0, vocab, (self._prompt + BLOCK + 1,), generator=generator).to(device)
        keep = {"logits_to_keep": rows} if "logits_to_keep" in forward_parameters(model.config) else {}
        logits: Tensor = model(input_ids=self._text.unsqueeze(0), use_cache=False, **keep).logits
        self._expected = logits[0, -rows:, :vocab]
        own = self._difference(self._read(EagerRunner(model, vocab, device)))
        self._largest = max(TIMES_OWN * own, LEAST[self._expected.dtype])

    def failure(self, runner: Runner) -> str | None:
        """What is wrong with a runner's prompts, blocks, steps or rewinds, worded for the user; None if nothing is.

        Raises:
            RunError: the GPU cannot be used any more.
        """
        return _failure(self._device, lambda: self._wrong_steps(runner))

    @torch.inference_mode()
    def _wrong_steps(self, runner: Runner) -> str | None:
        if not math.isfinite(self._largest):
            return None  # the model's own layers overflow: there is nothing to compare with
        off = self._difference(self._read(runner))
        if off <= self._largest:
            return None
        if math.isnan(off):
            return "their logits are not numbers"
        return f"their logits differ from those of the model's own layers by {off:.1%}, {self._largest:.1%} at most"

    def _read(self, runner: Runner) -> Tensor:
        text, prompt = self._text, self._prompt
        runner.prepare(prompt, BLOCK + 1, Calls(reads=[(BLOCK, BLOCK), (1, 1)]))
        # A captured step's logits are overwritten by the next step.
        found = [runner.forward(text[:prompt], 1).clone(), runner.forward(text[prompt:-1], BLOCK).clone()]
        found.append(runner.forward(text[-1:], 1).clone())
        runner.truncate(prompt + 1)
        found.append(runner.forward(text[prompt + 1 : prompt + 2], 1).clone())
        runner.reset()
        return torch.cat(found)

    def _difference(self, found: Tensor) -> float:
        expected = torch.cat([self._expected, self._expected[2:3]])
        return difference(found, expected)


def _failure(device: torch.device, test: Callable[[], str | None]) -> str | None:
    """What a test found, or how it ended; memory that does not suffice is no failure of what is tested."""
    try:
        return test()
    except (CascliError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a compiler, a driver or a device may raise anything
        _require_working(device)
        return raised(error)


def _require_working(device: torch.device) -> None:
    """Raise a `RunError` if the device reports an error for whatever it is asked: CUDA keeps some for good."""
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:
        raise RunError(
            f"{device} stopped in cascli's self-test: {first_line(error)}\n"
            f"{kernels.VARIABLE}=0 runs without cascli's kernels, and --no-cuda-graphs without captured steps."
        ) from None


@torch.inference_mode()
def _wrong_rounds(device: torch.device, vocab: int, dtype: torch.dtype) -> str | None:
    from cascli.kernels import draws
    from cascli.kernels.verification import EXACT, FusedRule, verify

    generator = torch.Generator().manual_seed(0)
    draft = 2.5 * torch.randn(BLOCK, vocab, generator=generator)
    target = torch.cat([draft, draft[:1]]) + torch.randn(BLOCK + 1, vocab, generator=generator)
    draft, target = draft.to(dtype), target.to(dtype)
    for sampling in SAMPLINGS:
        sampler = Sampler(sampling, reads_base=True)
        (q, q1), (p, _) = sampler(draft), sampler(target)
        for seed in range(SEEDS):
            uniforms = Uniforms(seed, BLOCK + 2, device)
            u, u_accept, u_next = uniforms.draw(0, BLOCK), uniforms.accept(0, BLOCK), uniforms.residual(0, BLOCK + 1)
            tokens, ours, ours_at_1, _ = draws.draw(draft.to(device), u=u, with_base=True, **asdict(sampling))
            if tokens is None or _apart(ours, q) or _apart(ours_at_1, q1):
                return "drafts have other distributions than torch's operations compute"
            drafted = tokens.cpu()
            if not all(map(_is_draw, q, drafted.tolist(), u.tolist())):
                return "drafts are not drawn from their distributions"
            given = target.to(device), tokens, ours, ours_at_1, u_accept, u_next
            numbers = verify(*given, rule=FusedRule(EXACT), **asdict(sampling))
            found = RoundFacts.of(numbers.flatten().tolist())
            kept = int(verify_block(p, q, drafted, u_accept.cpu(), u_next.cpu()).num_accepted)
            if found.num_accepted != kept:
                return f"of {BLOCK} drafts {found.num_accepted} are kept instead of {kept}"
            next_law = residual(p[:BLOCK], q)[kept] if kept < BLOCK else p[BLOCK]
            if not _is_draw(next_law, found.next_id, float(u_next[kept])):
                return "the token after the kept drafts is not drawn from its distribution"
    return None


def _apart(ours: Tensor, theirs: Tensor) -> bool:
    """Whether distributions `[n, V]` differ by more than rounding; NaN does."""
    return not bool((distributions.total_variation(ours.cpu(), theirs) <= SLACK).all())


def _is_draw(probs: Tensor, token: int, u: float) -> bool:
    """Whether a uniform falls into a token's interval of the cumulative probabilities `[V]`, or next to it."""
    before, own = float(probs[:token].double().sum()), float(probs[token])
    return own > 0 and before - SLACK <= u <= before + own + SLACK
