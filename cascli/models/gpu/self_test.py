"""The self-test of kernels and captured steps, made while a model is loaded on a GPU and before it decodes anything.

Kernels are compiled where they run, by that machine's Triton for that machine's card, and a fused step computes what
one version of transformers did for a family of models. Here draws and rounds are compared with torch's own operations,
and steps, drafts and passes over several texts with the model's own layers. What fails is not used, and the user is
told why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli import kernels
from cascli.errors import CascliError, RunError, first_line, raised
from cascli.kernels.layout import RoundFacts
from cascli.models.batch.reader import DraftRequest, Reader, ReadRequest
from cascli.models.cache import forward_parameters
from cascli.models.calls import Calls, Write
from cascli.models.description import context_of
from cascli.models.eager_runner import EagerRunner
from cascli.models.rounding import difference
from cascli.models.runner import Runner
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Sampler, Written
from cascli.sampling.parameters import Sampling
from cascli.sampling.rejection import residual, verify_block
from cascli.sampling.uniforms import Uniforms

PROMPT, BLOCK = 80, 5
"""Tokens of the self-test's prompt, which is longer than any block of a round, and of its block."""
LONG = 2200
"""Tokens of its long prompt, more than the 32 parts of attention's sum have keys in their first blocks (64 each)."""
WIDEST, BEYOND = 4096, 100
"""The widest window whose end the long prompt reaches, and its tokens beyond that window."""
PIECE = 1024
"""Tokens of a long prompt that are read at once: the mask of a pass has a row for each."""
TIMES_OWN = 3
"""How often the rounding of the model's own layers may be exceeded.

Sound steps of the embedded models in bfloat16, on a CPU, exceeded it up to 1.2 times, after 2,200 tokens too.
"""
LEAST = {torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.06}
"""Relative differences that always pass, by precision."""
SAMPLINGS = (Sampling(1.0), Sampling(0.9, top_k=20, top_p=0.9), Sampling(0.0))
"""Few tokens, so that rounding hardly ever decides which is the last one that top-p keeps."""
UNREAD = 2
"""Tokens that a draft reads first, as after a round whose drafts were all kept."""
DRAFTS = (0.7, 0.2), (0.1, 0.9)
"""The uniforms of two drafts: numbers that a captured draft keeps from the first one do not fit the second."""
WEIGHTLESS = 60.0
"""How far below the largest a logit's probability may be lost: e^-60 of a sum is nothing, and e^-90 is 0 in float32."""
SEEDS = 8
SLACK = 1e-4
"""Share of the mass by which two sums over a vocabulary may differ."""


def check_kernels(device: torch.device, vocab: int, dtype: torch.dtype, rows: int | None = None) -> str | None:
    """Test draws and rounds over a vocabulary; no kernels are used on the device from then on if they fail.

    Args:
        device: a GPU.
        vocab: number of logits per row that stand for tokens.
        dtype: of the logits.
        rows: number of logits per row that the output matrix computes; those beyond `vocab` are not read.

    Returns:
        Why there are no kernels, worded for the user; None if they passed.

    Raises:
        RunError: the GPU cannot be used any more.
    """
    why = kernels.missing(device)
    if why is None:
        why = _failure(device, lambda: _wrong_rounds(device, vocab, dtype, rows or vocab))
        if why is not None:
            kernels.withdraw(device, f"their self-test failed: {why}")
    return kernels.missing(device)


class _Text(NamedTuple):
    """A prompt and `BLOCK + 1` more tokens."""

    ids: Tensor
    """`[prompt + BLOCK + 1]`."""
    prompt: int
    expected: Tensor
    """Logits `[BLOCK + 2, V]` of the model's own layers after the prompt and after each token that follows."""
    rounding: float = 0.0
    """How far these layers' own readings with a cache, in other blocks, are from that; see `_with_rounding`."""

    @property
    def readings(self) -> Tensor:
        """What `_read` returns, by the model's own layers, `[BLOCK + 3, V]`."""
        return torch.cat([self.expected, self.expected[2:3]])

    @property
    def largest(self) -> float:
        """The largest difference that passes; not finite if these layers overflow, with which nothing compares."""
        return max(TIMES_OWN * self.rounding, LEAST[self.expected.dtype])


class StepTest:
    """Compares the steps of a model's runners with its own layers, which it must meet before they are replaced."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, vocab: int, device: torch.device) -> None:
        """Read two texts with the model's own layers, each in one pass without a cache, and a long one in pieces."""
        room = context_of(model.config) or PROMPT + BLOCK + 1
        prompt = max(1, min(PROMPT, room - BLOCK - 1))
        self._device, self._sampler = device, Sampler(SAMPLINGS[0], reads_base=False)
        text = _read_by(model, vocab, device, prompt, seed=0)
        self._text = _with_rounding(text, EagerRunner(model, vocab, device))
        self._shorter = _read_by(model, vocab, device, max(1, prompt // 2), seed=1)
        self._long = _long_text(model, vocab, device, room)
        self._of_texts: list[str | None] = []
        """What was found to be wrong with passes over several texts, once that was tested."""

    def failure(self, runner: Runner) -> str | None:
        """What is wrong with a runner's prompts, blocks, steps, rewinds or drafts, in words; None if nothing.

        Raises:
            RunError: the GPU cannot be used any more.
        """
        return _failure(
            self._device,
            lambda: self._wrong_steps(runner) or self._wrong_drafts(runner) or self._wrong_steps_of_long(runner),
        )

    def failure_of_texts(self, reader: Callable[[], Reader]) -> str | None:
        """What is wrong with passes over several texts; None if nothing is. Tested once.

        Args:
            reader: makes a reader for two texts, which draws.

        Raises:
            RunError: the GPU cannot be used any more.
        """
        if not self._of_texts:
            self._of_texts.append(_failure(self._device, lambda: self._wrong_texts(reader())))
        return self._of_texts[0]

    @property
    def tested_texts(self) -> bool:
        """Whether passes over several texts were tested."""
        return bool(self._of_texts)

    @torch.inference_mode()
    def _wrong_steps(self, runner: Runner) -> str | None:
        return _difference(_read(runner, self._text), self._text.readings, self._text.largest)

    @torch.inference_mode()
    def _wrong_steps_of_long(self, runner: Runner) -> str | None:
        """Compare steps far into a text; they are left out where its keys and values do not fit beside the model."""
        if self._long is None:
            return None
        try:
            found = _read(runner, self._long)
        except torch.OutOfMemoryError:
            runner.reset()
            return None
        text, whose = self._long, f"their logits after {self._long.prompt:,} tokens"
        return _difference(found, text.readings, text.largest, whose)

    @torch.inference_mode()
    def _wrong_drafts(self, runner: Runner) -> str | None:
        """Compare whole drafts, forwards and draws, with what the model's own layers say of the drawn tokens."""
        if not runner.draws:
            return None
        ids, prompt = self._text.ids, self._text.prompt
        runner.prepare(prompt, BLOCK + 1, Calls(writes=[Write(UNREAD, len(DRAFTS[0]))]), self._sampler)
        runner.forward(ids[:prompt], 1)
        for start, numbers in enumerate(DRAFTS, prompt):
            runner.truncate(start)
            unread = ids[start : start + UNREAD]
            u = torch.tensor(numbers, dtype=torch.float64, device=self._device)
            written = Written(*(each.clone() for each in runner.write(unread, self._sampler, u, read_last=False)))
            runner.truncate(start)
            # Not announced to `prepare`, so that the model's own layers read it.
            logits = runner.forward(torch.cat([unread, written.tokens[:-1]]), len(numbers))
            wrong = self._wrong_draft(written, logits, u)
            if wrong is not None:
                return wrong
        runner.reset()
        return None

    def _wrong_draft(self, written: Written, logits: Tensor, u: Tensor) -> str | None:
        """Compare a draft of n tokens with the logits `[n, V]` of its positions."""
        largest = self._text.largest
        if not math.isfinite(largest):
            return None
        expected = logits.double()
        weightless = expected < expected.amax(dim=-1, keepdim=True) - WEIGHTLESS
        found = written.probs.double().log() + expected.logsumexp(dim=-1, keepdim=True)
        wrong = _difference(found.where(~weightless, expected), expected, largest, "the logits of their drafts")
        if wrong is None and not all(map(_is_draw, written.probs.cpu(), written.tokens.tolist(), u.tolist())):
            return "their drafts are not drawn from their distributions"
        return wrong

    @torch.inference_mode()
    def _wrong_texts(self, reader: Reader) -> str | None:
        """Compare prompts, blocks and drafts of two texts, both of different lengths, with each text's own."""
        texts = self._shorter, self._text
        for place, text in enumerate(texts):
            reader.prepare(place, text.prompt, BLOCK + 1, Calls(), None)
        found = reader.read([ReadRequest(place, text.ids[: text.prompt], 1) for place, text in enumerate(texts)])
        blocks = [text.ids[text.prompt :][:n] for text, n in zip(texts, (2, BLOCK), strict=True)]
        found += reader.read([ReadRequest(place, ids, len(ids)) for place, ids in enumerate(blocks)])
        expected = [text.expected[:1] for text in texts]
        expected += [text.expected[1 : 1 + len(ids)] for text, ids in zip(texts, blocks, strict=True)]
        wrong = _difference(torch.cat(found), torch.cat(expected), self._text.largest)
        return wrong or self._wrong_drafts_of_texts(reader)

    def _wrong_drafts_of_texts(self, reader: Reader) -> str | None:
        """Compare a draft for two texts, of different lengths, with what the tested passes say of its tokens."""
        texts = self._shorter, self._text
        requests = []
        for place, (text, unread, numbers) in enumerate(
            zip(texts, (UNREAD, 1), (DRAFTS[0], DRAFTS[1][:1]), strict=True)
        ):
            reader.runners[place].truncate(text.prompt)
            u = torch.tensor(numbers, dtype=torch.float64, device=self._device)
            requests.append(DraftRequest(place, text.ids[text.prompt :][:unread], self._sampler, u, False))
        drafts = reader.write(requests)
        rereads = []
        for request, written in zip(requests, drafts, strict=True):
            reader.runners[request.place].truncate(texts[request.place].prompt)
            ids = torch.cat([request.ids, written.tokens[:-1]])
            rereads.append(ReadRequest(request.place, ids, len(written.tokens)))
        checks = map(self._wrong_draft, drafts, reader.read(rereads), [request.u for request in requests])
        return next((wrong for wrong in checks if wrong is not None), None)


def _difference(found: Tensor, expected: Tensor, largest: float, whose: str = "their logits") -> str | None:
    """How logits differ from those of the model's own layers; None if rounding explains it."""
    if not math.isfinite(largest):
        return None
    off = difference(found, expected)
    if off <= largest:
        return None
    if math.isnan(off):
        return f"{whose} are not numbers"
    return f"{whose} differ from those of the model's own layers by {off:.1%}, {largest:.1%} at most"


def _read(runner: Runner, text: _Text) -> Tensor:
    """Logits `[BLOCK + 3, V]` after a text's prompt, a block, a step and, after a rewind, a step again."""
    ids, prompt = text.ids, text.prompt
    runner.prepare(prompt, BLOCK + 1, Calls(reads=[(BLOCK, BLOCK), (1, 1)]))
    # A captured step's logits are overwritten by the next step.
    found = [[runner.forward(piece, 1).clone() for piece in ids[:prompt].split(PIECE)][-1]]
    found.append(runner.forward(ids[prompt:-1], BLOCK).clone())
    found.append(runner.forward(ids[-1:], 1).clone())
    runner.truncate(prompt + 1)
    found.append(runner.forward(ids[prompt + 1 : prompt + 2], 1).clone())
    runner.reset()
    return torch.cat(found)


def _read_by(model: PreTrainedModel, vocab: int, device: torch.device, prompt: int, seed: int) -> _Text:
    """A random text as the model's own layers read it, in one pass without a cache."""
    ids = _random_ids(vocab, device, prompt, seed)
    rows = BLOCK + 2
    keep = {"logits_to_keep": rows} if "logits_to_keep" in forward_parameters(model.config) else {}
    logits: Tensor = model(input_ids=ids.unsqueeze(0), use_cache=False, **keep).logits
    return _Text(ids, prompt, logits[0, -rows:, :vocab])


def _long_text(model: PreTrainedModel, vocab: int, device: torch.device, room: int) -> _Text | None:
    """A random text that is long for attention and its windows, as the model's own layers read it with their cache.

    None where the model's context ends before, or memory does not suffice.
    """
    own = EagerRunner(model, vocab, device)
    windows = [layer.window for layer in own.cache.layers if layer.window is not None and layer.window <= WIDEST]
    prompt = min(max([LONG, *(window + BEYOND for window in windows)]), room - BLOCK - 1)
    if prompt <= PROMPT:
        return None
    ids = _random_ids(vocab, device, prompt, seed=2)
    last = max(len(ids) // 8, BLOCK + 2)
    try:
        for piece in ids[:-last].split(PIECE):
            own.forward(piece, 1)
        text = _Text(ids, prompt, own.forward(ids[-last:], BLOCK + 2))
        own.reset()
        return _with_rounding(text, own)
    except torch.OutOfMemoryError:
        return None


def _with_rounding(text: _Text, own: EagerRunner) -> _Text:
    return text._replace(rounding=difference(_read(own, text), text.readings))


def _random_ids(vocab: int, device: torch.device, prompt: int, seed: int) -> Tensor:
    """The ids `[prompt + BLOCK + 1]` of a random text."""
    return torch.randint(0, vocab, (prompt + BLOCK + 1,), generator=torch.Generator().manual_seed(seed)).to(device)


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
            f"{kernels.VARIABLE}=0 runs without cascli's kernels, CASCLI_PDL=0 without launching them early, and"
            " --no-cuda-graphs without captured steps."
        ) from None


@torch.inference_mode()
def _wrong_rounds(device: torch.device, vocab: int, dtype: torch.dtype, rows: int) -> str | None:
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
            logits = _padded(draft.to(device), rows)
            tokens, ours, ours_at_1, _ = draws.draw(logits, u=u, with_base=True, **asdict(sampling))
            again, alone, _, _ = draws.draw(logits, u=u, with_base=False, **asdict(sampling))
            if tokens is None or again is None or _apart(ours, q) or _apart(ours_at_1, q1) or _apart(alone, q):
                return "drafts have other distributions than torch's operations compute"
            drafted = tokens.cpu()
            if not torch.equal(again, tokens) or not all(map(_is_draw, q, drafted.tolist(), u.tolist())):
                return "drafts are not drawn from their distributions"
            given = _padded(target.to(device), rows), tokens, ours, ours_at_1, u_accept, u_next
            numbers = verify(*given, rule=FusedRule(EXACT), **asdict(sampling))
            found = RoundFacts.of(numbers.flatten().tolist())
            kept = int(verify_block(p, q, drafted, u_accept.cpu(), u_next.cpu()).num_accepted)
            if found.num_accepted != kept:
                return f"of {BLOCK} drafts {found.num_accepted} are kept instead of {kept}"
            next_law = residual(p[:BLOCK], q)[kept] if kept < BLOCK else p[BLOCK]
            if not _is_draw(next_law, found.next_id, float(u_next[kept])):
                return "the token after the kept drafts is not drawn from its distribution"
    return None


def _padded(logits: Tensor, rows: int) -> Tensor:
    """Logits `[n, V]` as a view of rows of the output matrix's length, as a model returns them."""
    longer = logits.new_full((logits.shape[0], max(rows, logits.shape[1])), torch.nan)
    view = longer[:, : logits.shape[1]]
    view.copy_(logits)
    return view


def _apart(ours: Tensor, theirs: Tensor) -> bool:
    """Whether distributions `[n, V]` differ by more than rounding; NaN does."""
    return not bool((distributions.total_variation(ours.cpu(), theirs) <= SLACK).all())


def _is_draw(probs: Tensor, token: int, u: float) -> bool:
    """Whether a uniform falls into a token's interval of the cumulative probabilities `[V]`, or next to it."""
    before, own = float(probs[:token].double().sum()), float(probs[token])
    return own > 0 and before - SLACK <= u <= before + own + SLACK
