"""New tokens of several texts in one forward pass on a CPU, each bit-identical to its result alone.

All tokens are rows of one block: linear layers and norms work row by row, and each row attends on its own over the
states of its text (`row_attention`). The weights are read once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.models.batch.cache import TextsCache
from cascli.models.batch.reader import OneByOne, Reader, ReadRequest, check_room, in_parts
from cascli.models.cache import States, rounded_up
from cascli.models.calls import Calls
from cascli.models.cpu.packed_linear import PackedLinear, can_pack
from cascli.models.cpu.row_attention import MOST_ROWS, TextStates, attends_by_rows
from cascli.models.eager_runner import EagerRunner
from cascli.models.memory import state_dtype, token_bytes
from cascli.models.rotary import LENGTH_DEPENDENT, rope_types
from cascli.models.size import caches_latents, has_experts
from cascli.sampling.autoregressive import Sampler

PROMPT_BLOCK = 128
"""Prompt tokens per block, in a batch and alone: blocks that prompts have in common can be kept.

As fast per token as longer blocks; with shorter ones prompts would share more, but they are slower (benchmarks/LOG.md).
"""
SPLIT_STATES = {"diffllama"}
"""Model types that compute with the values of a text before they attend to them."""


def batch_reader(runner: EagerRunner, places: int) -> Reader:
    """The reader for several texts with the weights of a runner on a CPU."""
    states = [States(places) for _ in runner.cache.layers]
    runners = [runner.fresh(states, place) for place in range(places)]
    why = why_alone(runner.model)
    return RowReader(runner, states, runners) if why is None else OneByOne(runners, why)


def why_alone(model: PreTrainedModel) -> str | None:
    """Why a model's texts cannot share a pass, worded for the user; None if they can."""
    config = model.config.get_text_config()
    # A cache of latents returns what keys and values are computed from, so rows cannot attend to it.
    if not attends_by_rows(model) or config.model_type in SPLIT_STATES or caches_latents(config):
        return "its attention cannot keep texts apart"
    if "position_ids" not in EagerRunner.takes(model):
        return "it counts positions itself"
    if has_experts(config):
        return "what its experts compute for a token depends on the tokens read with it"
    rope = rope_types(config) & LENGTH_DEPENDENT
    if rope:
        return f"its {', '.join(sorted(rope))} position encoding depends on the longest text"
    return None


class RowReader(Reader):
    """Reads blocks of up to `MOST_ROWS` tokens of all texts together."""

    def __init__(self, runner: EagerRunner, states: Sequence[States], runners: Sequence[EagerRunner]) -> None:
        super().__init__(runners)
        self._runner, self._states = runner, states
        self._caches = [each.cache for each in runners]
        self._cache = _TextsCache(self._caches[0], states)
        self._most = most_rows(state_dtype(runner.model))
        self._per_token = token_bytes(runner.model)

    @property
    def unallocated(self) -> int:
        """Bytes of caches that were requested but are not allocated yet."""
        return self._states[0].unallocated * self._per_token

    def kept(self, place: int, start: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of what the cache of a place's text holds, starting at token `start`."""
        return self._caches[place].kept(start)

    def put(self, place: int, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append what was kept to the cache."""
        self._caches[place].put(kept)

    def shares(self, n: int) -> bool:
        """Whether `row_attention` reads a block of n tokens by rows when it is alone."""
        return n <= MOST_ROWS

    def prepare(self, place: int, prompt: int, answer: int, calls: Calls, sampler: Sampler | None) -> None:
        """Make room for the text, in one step for all places.

        Raises:
            RunError: there is not enough memory.
        """
        del place, calls, sampler
        tokens = rounded_up(prompt + answer)
        check_room(self._states[0], len(self.runners), tokens, self._per_token, self._runner.device, self.elsewhere)
        for each in self._states:
            each.reserve(tokens)

    def read(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        """Read in one pass, or in as many as the processor's kernels need to keep rows bit-identical in any block."""
        return [logits for part in in_parts(requests, self._most) for logits in self._pass(part)]

    def _pass(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        lengths = [self._caches[request.place].length for request in requests]
        positions, last, rows = list[int](), list[int](), list[tuple[int, int]]()
        for request, length in zip(requests, lengths, strict=True):
            n = request.ids.shape[0]
            last += range(len(rows) + n - request.rows, len(rows) + n)
            positions += range(length, length + n)
            rows += [(request.place, length + 1 + i) for i in range(n)]
        self._cache.begin(rows)
        ids = torch.cat([request.ids for request in requests])
        logits = self._runner.of_rows(ids, torch.tensor(positions), torch.tensor(last), self._cache)
        for request in requests:
            self._caches[request.place].advance(request.ids.shape[0])
        return list(logits.split([request.rows for request in requests]))


class _TextsCache(TextsCache):
    """The cache for rows that attend one by one."""

    def begin(self, rows: Sequence[tuple[int, int]]) -> None:
        """Set the rows to come: for each, the place of its text and the text's length including this token."""
        self.rows = rows
        self.longest = max(end for _, end in rows)
        self.places, self.positions = torch.tensor([(place, end - 1) for place, end in rows]).unbind(1)

    def seen(self, states: Tensor, window: int | None) -> TextStates:
        """The states with what each row may attend to; the attention function applies the window."""
        del window
        return TextStates(states, self.rows)


@cache
def most_rows(dtype: torch.dtype) -> int | None:
    """Maximum number of rows of a product for each to be bit-identical to that row alone; None for no limit.

    oneDNN in older torch uses another kernel for 16 or more rows. Tested on a matrix of a size at which that matters.
    """
    if not can_pack(dtype):
        return MOST_ROWS
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 512, generator=generator).to(dtype) for n in (256, 96))
    layer = PackedLinear(weight, None)
    whole = layer(x)
    same = all(torch.equal(layer(x[:n]), whole[:n]) for n in (1, 5, MOST_ROWS, 16, 31, 64))
    return None if same else MOST_ROWS
