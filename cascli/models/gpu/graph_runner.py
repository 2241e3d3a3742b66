"""A runner whose short forwards are captured once and replayed as CUDA graphs.

A decoding step of a model of 1.5 billion weights takes a GPU half a millisecond, and Python ten times as long to
launch. The calls announced to `prepare` are captured per number of tokens and of logit rows (and per bucket of the
cache, if attention does not read the length itself), as a fused step where the model has one. Everything else, prompts
above all, goes through the model's own layers without a graph. A whole draft, forwards and draws, is a single graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.models.cache import cache_name, forward_parameters
from cascli.models.calls import Calls, Write
from cascli.models.gpu.capture import Capture
from cascli.models.gpu.compiled import Compiled
from cascli.models.gpu.decode_attention import use_decode_attention
from cascli.models.gpu.fused_step import FusedStep
from cascli.models.gpu.grouped_attention import use_grouped_attention
from cascli.models.gpu.merged import Merged
from cascli.models.gpu.self_test import StepTest
from cascli.models.gpu.static_cache import SMALLEST_BUCKET, StaticCache, bucket_for
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler, Written, write_by_steps
from cascli.sampling.parameters import MOST_DRAFTED

Result = TypeVar("Result")

LONGEST = MOST_DRAFTED + 1
"""The longest block of a round: 64 drafted tokens and one more."""
MOST_SAMPLERS = 16
"""Number of samplers whose captured drafts are kept; a sweep may have many."""
PREFILL = 1024
"""Prompt tokens per call; the call's mask has as many rows."""


class GraphRunner(Runner):
    """Runs short forwards and whole drafts as captured graphs; logits are only valid until the next call."""

    draws: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: int,
        device: torch.device,
        capture: Capture,
        compiler: str | None = None,
        fused: Merged | str | None = None,
    ) -> None:
        """Wrap a model on its device.

        Args:
            model: reads prompts with its own layers.
            vocab: number of logits per row that stand for tokens.
            device: where the model is.
            capture: captures the graphs.
            compiler: a backend of torch.compile, if steps are to be compiled.
            fused: the weights of fused steps, or the reason why there are none.
        """
        self.model = model
        self.vocab = vocab
        self.device = device
        self._length = 0
        self._seconds = 0.0
        self._any_length = use_decode_attention(model)
        if not self._any_length:
            use_grouped_attention(model)
        self._capture, self._compiler, self._fused = capture, compiler, fused
        self._takes = forward_parameters(model.config)
        self._cache = StaticCache(model.config.get_text_config(), device)
        self._compiled = None if compiler is None else Compiled(self._logits, compiler)
        self._forward = self._compiled or self._logits
        if isinstance(fused, Merged):
            self._forward = FusedStep(fused, self._cache, vocab)
        with torch.inference_mode():  # as drawn ids are: compiled code distinguishes inference tensors from others
            self._ids = torch.zeros(LONGEST, dtype=torch.long, device=device)
        self._u = torch.zeros(LONGEST, dtype=torch.float64, device=device)
        self._reads: set[tuple[int, int]] = set()
        self._writes: set[Write] = set()
        self._read: dict[tuple[int, int, int], Callable[[], Tensor]] = {}
        self._written: dict[Sampler, dict[tuple[Write, int], Callable[[], Written]]] = {}
        self.test: StepTest | None = None
        """The test that it has passed, and that passes over several texts have to pass too."""

    def fresh(self) -> GraphRunner:
        """Another runner on the same module, with its own cache and graphs."""
        return GraphRunner(self.model, self.vocab, self.device, self._capture.fresh(), self._compiler, self._fused)

    @property
    def unfused_because(self) -> str | None:
        """Why steps use the model's own layers; None if they are fused, or fused steps were not requested."""
        return self._fused if isinstance(self._fused, str) else None

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return self._length

    @property
    def graphs(self) -> int:
        """Number of captured graphs."""
        return len(self._read) + sum(len(each) for each in self._written.values())

    @property
    def capture_seconds(self) -> float:
        """Time spent on capturing so far, including compilation."""
        return self._seconds

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling so far; None if steps are not compiled."""
        return None if self._compiled is None else self._compiled.seconds

    @property
    def capture(self) -> Capture:
        """The capture of this runner's steps."""
        return self._capture

    @property
    def reads_lengths(self) -> bool:
        """Whether attention reads the used length of the cache from the device."""
        return self._any_length

    @torch.inference_mode()
    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room for a sequence, and capture what its decoding will need."""
        self.reset()
        end = prompt + answer
        self._reserve(end)
        if calls.writes and sampler not in self._written and len(self._written) >= MOST_SAMPLERS:
            self._forget()
        self._reads, self._writes = set(calls.reads), set(calls.writes)
        bucket = self._bucket(end)
        while True:
            for n, rows in calls.reads:
                self._captured_read(n, rows, bucket)
            if sampler is not None:
                for write in calls.writes:
                    self._captured_write(write, sampler, bucket)
            if bucket == self._bucket(prompt):
                return
            bucket //= 2

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]`; return the logits `[rows, vocab]` of the last rows."""
        n = ids.shape[0]
        self._reserve(self.length + n)
        if (n, rows) in self._reads:
            return self._step(ids, rows)
        for start in range(0, n, PREFILL):
            logits = self._eager(ids[start : start + PREFILL], rows)
        return logits

    @property
    def in_parts(self) -> bool:
        """True: `read_at` is available."""
        return True

    @torch.inference_mode()
    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` as if `start` tokens had been read; logits `[rows, vocab]`, no head call for 0 rows."""
        self._reserve(start + ids.shape[0])
        self._length = start
        return self._eager(ids, rows)

    @torch.inference_mode()
    def write(self, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
        """Read `ids`, then write a token with each uniform of `u` `[n]`: a captured `write_by_steps`.

        Drafts that were not announced to `prepare` are written token by token. The result is valid until the next call.
        """
        whole = Write(ids.shape[0], u.shape[0], read_last)
        self._reserve(self.length + whole.tokens)
        if whole in self._writes:
            return self._write_captured(whole, ids, sampler, u)
        if whole.unread > 1 and Write(whole.unread, 1) not in self._writes:
            self._eager(ids[:-1], 1)
            ids = ids[-1:]
        return self._one_by_one(whole, ids, sampler, u)

    def _one_by_one(self, whole: Write, ids: Tensor, sampler: Sampler, u: Tensor) -> Written:
        u = torch.cat([u, u.new_zeros(1)])  # with `read_last`, the last step draws a token that is discarded
        parts = []
        for i in range(whole.steps):
            written = self._write_captured(Write(ids.shape[0], 1), ids, sampler, u[i : i + 1])
            parts.append(Written(*(each.clone() for each in written)))
            ids = parts[-1].tokens
        tokens, probs, base = (torch.cat(each) for each in list(zip(*parts, strict=True))[:3])
        return Written(tokens[: whole.drawn], probs, base, torch.stack([part.max_logit for part in parts]).abs().amax())

    def _write_captured(self, write: Write, ids: Tensor, sampler: Sampler, u: Tensor) -> Written:
        self._ids[: write.unread].copy_(ids)
        self._u[: write.drawn].copy_(u)
        self._cache.at.fill_(self.length)
        written = self._captured_write(write, sampler, self._bucket(self.length + write.tokens))()
        self._length += write.tokens
        return written

    def _eager(self, ids: Tensor, rows: int) -> Tensor:
        self._cache.bucket = bucket_for(self.length + ids.shape[0])
        self._cache.at.fill_(self.length)
        logits = self._logits(ids.to(self.device), rows)
        self._length += ids.shape[0]
        return logits

    def _step(self, ids: Tensor, rows: int) -> Tensor:
        n = ids.shape[0]
        self._ids[:n].copy_(ids)
        self._cache.at.fill_(self.length)
        logits = self._captured_read(n, rows, self._bucket(self.length + n))()
        self._length += n
        return logits

    def _captured_read(self, n: int, rows: int, bucket: int) -> Callable[[], Tensor]:
        """The captured forward over n tokens; captured on first use in a bucket that `prepare` did not cover."""
        key = (n, rows, bucket)
        if key not in self._read:

            def compute() -> Tensor:
                self._cache.bucket = bucket
                return self._forward(self._ids[:n], rows)

            self._read[key] = self._captured(compute)
        return self._read[key]

    def _captured_write(self, write: Write, sampler: Sampler, bucket: int) -> Callable[[], Written]:
        """The captured draft; captured on first use in a bucket that `prepare` did not cover."""
        graphs = self._written.setdefault(sampler, {})
        key = (write, bucket)
        if key not in graphs:

            def step(ids: Tensor) -> Tensor:
                logits = self._forward(ids, 1)
                self._cache.at.add_(ids.shape[0])
                return logits

            def compute() -> Written:
                self._cache.bucket = bucket
                start = self._cache.at.clone()
                ids, u = self._ids[: write.unread], self._u[: write.drawn]
                written = write_by_steps(step, ids, sampler, u, read_last=write.read_last)
                self._cache.at.copy_(start)  # warm-up runs before the capture must all start from the same length
                return written

            graphs[key] = self._captured(compute)
        return graphs[key]

    def _captured(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        start = time.perf_counter()
        self._cache.at.fill_(self.length)  # there is room here, and nothing that is still needed
        if not self._cache.in_use:
            self._cache.bucket = SMALLEST_BUCKET
            self._logits(self._ids[:1], 1)  # the first states allocate the buffers, which must not belong to a graph
        graph = self._capture(compute)
        self._seconds += time.perf_counter() - start
        return graph

    def _logits(self, ids: Tensor, rows: int) -> Tensor:
        more: dict[str, Any] = {"use_cache": True, cache_name(self._takes): self._cache}
        positions = self._cache.place(ids.shape[0])
        if "position_ids" in self._takes:
            more["position_ids"] = positions.unsqueeze(0)
        if rows == 0:
            self.model.base_model(input_ids=ids.unsqueeze(0), **more)
            return ids.new_empty((0, self.vocab), dtype=self.model.dtype)
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = rows
        output = self.model(input_ids=ids.unsqueeze(0), **more)
        return output.logits[0, -rows:, : self.vocab]

    def _bucket(self, length: int) -> int:
        """Number of positions that a graph passes to attention: all of them if attention reads the length itself."""
        return self._cache.capacity if self._any_length else bucket_for(length)

    def _reserve(self, length: int) -> None:
        """Make room for `length` tokens; if that moves the buffers, all graphs are dropped."""
        if length <= self._cache.capacity:
            return
        self._forget()
        self._cache.grow(bucket_for(length))

    def _forget(self) -> None:
        self._read.clear()
        self._written.clear()
        self._capture.renew()

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens; costs nothing."""
        self._length = min(self.length, length)

    def reset(self) -> None:
        """Forget everything; buffers and graphs are kept for the next sequence."""
        self._length = 0

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Act as if `length` tokens had been read, so that the speed after them can be measured."""
        self.reset()
        self._reserve(length + LONGEST)
        self.forward(self._ids[:1], 1)
        self._cache.fill(length)
        self._length = length
