"""A runner whose short forwards are recorded once and repeated as CUDA graphs.

A decoding step of a model of 1.5 billion weights takes a GPU half a millisecond, and Python ten times as long to ask
for. What `prepare` was told of, and steps of a `FEW` tokens, are recorded per number of tokens, number of logit rows,
and bucket of the cache; everything else, prompts above all, is read by the same forward without a recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.models.cache import forward_parameters
from cascli.models.capture import Capture
from cascli.models.grouped_attention import use_grouped_attention
from cascli.models.static_cache import StaticCache, bucket_for

Step = Callable[[], Tensor]

LONGEST = 65
"""The longest block of a round: 64 drafted tokens and one."""
FEW = 4
"""The longest other step: tokens that a model catches up with, of which only the last needs logits."""
PREFILL = 1024
"""Tokens of a prompt that are read at once: the mask of a call has this many rows."""


class GraphRunner:
    """As `cascli.models.runner.Runner`; logits are valid until the next call, and are to be used before it."""

    def __init__(self, model: PreTrainedModel, vocab: int, device: torch.device, capture: Capture) -> None:
        self.model = model
        self.vocab = vocab
        self.device = device
        self.length = 0
        """How many tokens of the text the model has read."""
        self.capture_seconds = 0.0
        """Time spent on recordings so far."""
        use_grouped_attention(model)
        self._capture = capture
        self._takes = forward_parameters(model.config)
        self._cache = StaticCache(model.config.get_text_config(), device)
        self._ids = torch.zeros(LONGEST, dtype=torch.long, device=device)
        self._blocks: set[tuple[int, int]] = set()
        self._recorded: dict[tuple[int, int, int], Step] = {}

    @property
    def graphs(self) -> int:
        """How many recordings there are."""
        return len(self._recorded)

    def prepare(self, start: int, end: int, blocks: Sequence[tuple[int, int]]) -> None:
        """Make room for a text, and record what its decoding will need.

        Args:
            start: length of the prompt.
            end: length of the text in the end, drafted tokens included.
            blocks: tokens and logit rows of the calls to come; the largest first share memory best.
        """
        self.reset()
        self._reserve(end)
        self._blocks.update(blocks)
        bucket = bucket_for(end)
        while True:
            for n, rows in blocks:
                self._recording(n, rows, bucket)
            if bucket == bucket_for(start):
                return
            bucket //= 2

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` after what was read before; return the logits `[rows, vocab]` of the last rows.

        Issues no host synchronisation of its own.
        """
        n = ids.shape[0]
        self._reserve(self.length + n)
        if (n, rows) in self._blocks or (n <= FEW and rows == 1):
            return self._step(ids, rows)
        for start in range(0, n, PREFILL):
            logits = self._eager(ids[start : start + PREFILL], rows)
        return logits

    def _eager(self, ids: Tensor, rows: int) -> Tensor:
        self._cache.bucket = bucket_for(self.length + ids.shape[0])
        self._cache.at.fill_(self.length)
        logits = self._logits(ids.to(self.device), rows)
        self.length += ids.shape[0]
        return logits

    def _step(self, ids: Tensor, rows: int) -> Tensor:
        n = ids.shape[0]
        self._ids[:n].copy_(ids)
        self._cache.at.fill_(self.length)
        logits = self._recording(n, rows, bucket_for(self.length + n))()
        self.length += n
        return logits

    def _recording(self, n: int, rows: int, bucket: int) -> Step:
        """The recorded forward over n tokens; made at its first use in a bucket that `prepare` did not foresee."""
        key = (n, rows, bucket)
        if key not in self._recorded:
            start = time.perf_counter()

            def compute() -> Tensor:
                self._cache.bucket = bucket
                return self._logits(self._ids[:n], rows)

            with torch.inference_mode():
                self._recorded[key] = self._capture(compute)
            self.capture_seconds += time.perf_counter() - start
        return self._recorded[key]

    def _logits(self, ids: Tensor, rows: int) -> Tensor:
        more: dict[str, Any] = {}
        if "position_ids" in self._takes:
            more["position_ids"] = self._cache.positions(ids.shape[0]).unsqueeze(0)
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = rows
        output = self.model(input_ids=ids.unsqueeze(0), past_key_values=self._cache, use_cache=True, **more)
        return output.logits[0, -rows:, : self.vocab]

    def _reserve(self, length: int) -> None:
        """Room for `length` tokens; buffers that move take the recordings with them."""
        if length <= self._cache.capacity:
            return
        self._recorded.clear()
        self._cache.grow(bucket_for(length))

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens; costs nothing."""
        self.length = min(self.length, length)

    def reset(self) -> None:
        """Forget everything; buffers and recordings are kept for the next text."""
        self.length = 0

    @torch.inference_mode()
    def pretend(self, length: int) -> None:
        """Act as if `length` tokens had been read, so that the speed after them can be measured."""
        self.reset()
        self._reserve(length + LONGEST)
        self.forward(self._ids[:1], 1)
        self._cache.pretend(length)
        self.length = length
