"""New tokens of several sequences in one captured pass on a GPU.

All tokens are rows of one block. Each attends over the states of its own sequence, and its place and position are data
on the device. One graph per number of rows therefore serves all sequences, whatever their lengths and numbers of new
tokens; padding rows fill up the block, in a spare place that belongs to no sequence. A whole draft of all sequences,
passes and draws, is also one graph: a sequence that wants fewer tokens than others continues in the spare place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cascli.models.batch.cache import TextsCache
from cascli.models.batch.reader import DraftRequest, OneByOne, Reader, ReadRequest, check_room, in_parts
from cascli.models.cache import RewindCache, States, rounded_up
from cascli.models.calls import Calls
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.batch_draft import Drafted, Shape, draft, inputs, on_device
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import LONGEST, PREFILL, GraphRunner
from cascli.models.gpu.texts_attention import TextStates
from cascli.models.memory import token_bytes
from cascli.sampling.autoregressive import Sampler, Written

_BUCKETS = (1, 4, 8, 16, 32, 64, 96, 128)
"""Up to here rows cost almost nothing compared with reading the weights; beyond, there are four buckets per octave."""

_PROMPT = 512
"""The longest prompt that is read together with other sequences' tokens, and the most rows of a pass with a prompt.

Without a graph, a prompt of a few tokens takes as long as one of a few hundred, which is as long as several rounds.
"""
_LOGIT_ROWS = 128
"""Rows of logits that a pass computes, unless more are wanted; a prompt's rows mostly need none."""


def bucket_of(rows: int) -> int:
    """Number of rows of the captured pass that reads `rows` tokens."""
    if rows <= _BUCKETS[-1]:
        return next(each for each in _BUCKETS if each >= rows)
    step = 1 << ((rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def buckets_up_to(rows: int) -> list[int]:
    """All buckets that passes of up to `rows` rows may need, largest first, which shares memory best."""
    return sorted({bucket_of(each) for each in range(1, rows + 1)}, reverse=True)


def graph_reader(runner: GraphRunner, places: int) -> Reader:
    """The reader for several sequences that uses the weights of a captured runner."""
    if not runner.reads_lengths:
        return OneByOne([runner.fresh() for _ in range(places)], "its attention cannot keep texts apart")
    return GraphReader(runner, places)


def _logit_rows(rows: int, needed: int) -> int:
    """Number of rows of logits that a pass computes."""
    return min(rows, max(bucket_of(needed), _LOGIT_ROWS))


class TextRunner(EagerRunner):
    """A single sequence's forward, for blocks too long to share a pass; a long prompt is read in pieces."""

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]`; return the logits `[rows, vocab]` of the last rows."""
        for piece in ids.split(PREFILL):
            logits = super().forward(piece, rows)
        return logits


class _TextsCache(TextsCache):
    """A cache whose rows have their places and positions on the device; its buffers have room for all rows."""

    longest = 1

    def seen(self, states: Tensor, window: int | None) -> TextStates:
        """The states, together with the rows' places and positions."""
        return TextStates(states, self.places, self.positions, window or 0)


class GraphReader(Reader):
    """Reads blocks of all sequences in one pass, short prompts included; one spare place is for padding rows."""

    draws = True

    def __init__(self, runner: GraphRunner, places: int) -> None:
        config = runner.model.config.get_text_config()
        self._states = [States(places + 1) for _ in RewindCache(config).layers]
        self._caches = [RewindCache(config, self._states, place) for place in range(places)]
        runners = [TextRunner(runner.model, runner.vocab, runner.device, each) for each in self._caches]
        super().__init__(runners)
        self._model, self._device, self._spare = runners[0], runner.device, places
        self._cache = _TextsCache(self._caches[0], self._states)
        self._graphs = GraphCache(runner.capture.fresh())
        self._capacity, self._per_token = 0, token_bytes(runner.model)
        self._rows: set[int] = set()
        """Numbers of rows of the reads that were captured in advance."""
        self._drafts: dict[Sampler, set[Shape]] = {}

    @property
    def capture_seconds(self) -> float:
        """Time spent on capturing so far."""
        return self._graphs.seconds

    @property
    def graphs(self) -> int:
        """Number of captured graphs."""
        return self._graphs.count

    def shares(self, n: int) -> bool:
        """Whether blocks of n tokens share a pass: a round's blocks and prompts of at most `_PROMPT` tokens do."""
        return n <= _PROMPT

    @torch.inference_mode()
    def prepare(self, place: int, prompt: int, answer: int, calls: Calls, sampler: Sampler | None) -> None:
        """Make room for the sequence, and capture what passes over any number of the sequences will need.

        Raises:
            RunError: there is not enough memory.
        """
        self.runners[place].reset()
        self._reserve(prompt + answer)
        texts = self._spare
        for rows in buckets_up_to(texts * max((n for n, _ in calls.reads if n <= LONGEST), default=0)):
            if rows not in self._rows:
                self._rows.add(rows)
                self._graphs.capture("read", self._read, *self._padding(rows))
        writes = [each for each in calls.writes if each.unread <= LONGEST]
        if sampler is not None and writes:
            self._capture_drafts(sampler, [Shape.around(each, writes) for each in buckets_up_to(texts)])

    def _capture_drafts(self, sampler: Sampler, shapes: Sequence[Shape]) -> None:
        known = self._drafts.setdefault(sampler, set())
        for shape in shapes:
            if shape not in known:
                known.add(shape)
                given = inputs(self._spare, shape, [], [], self._device)
                self._graphs.capture((shape, sampler), self._draft(shape, sampler), *given)

    @torch.inference_mode()
    def read(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        """Read in one pass for all, captured on first use unless `prepare` did; prompts may take several passes."""
        most = _PROMPT if any(each.tokens > LONGEST for each in requests) else None
        return [logits for part in in_parts(requests, most) for logits in self._pass(part)]

    def _pass(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        lengths = self._lengths(requests)
        slots, kept = list[tuple[int, int]](), list[int]()
        for request, length in zip(requests, lengths, strict=True):
            slots += [(request.place, length + i) for i in range(request.tokens)]
            kept += range(len(slots) - request.rows, len(slots))
        rows, n = bucket_of(len(slots)), len(kept)
        padding = requests[0].ids.new_zeros(rows - len(slots))
        ids = torch.cat([*(each.ids for each in requests), padding]).to(self._device)
        table = self._table(
            [*slots, *[(self._spare, 0)] * (rows - len(slots))], [*kept, *[0] * (_logit_rows(rows, n) - n)]
        )
        # Capturing runs the pass to warm up, which writes the same states as the pass itself.
        self._graphs.capture("read", self._read, ids, table)
        # A copy, because some sequences keep their logits while others read on.
        logits = self._graphs.run("read", self._read, ids, table)[:n].clone()
        self._advance(requests)
        return list(logits.split([each.rows for each in requests]))

    @torch.inference_mode()
    def write(self, requests: Sequence[DraftRequest]) -> list[Written]:
        """Draft for all in one replay with the passes of the longest draft; captured on first use unless prepared."""
        lengths, sampler = self._lengths(requests), requests[0].sampler
        needed = Shape.around(bucket_of(len(requests)), [each.write for each in requests])
        fitting = [each for each in self._drafts.get(sampler, ()) if each.holds(needed)]
        shape = min(fitting, key=lambda each: each.rows, default=needed)
        given = inputs(self._spare, shape, requests, lengths, self._device)
        self._graphs.capture((shape, sampler), self._draft(shape, sampler), *given)
        drafted = self._graphs.run((shape, sampler), self._draft(shape, sampler), *given)
        self._advance(requests)
        return [drafted.of(i, each) for i, each in enumerate(requests)]

    def _lengths(self, requests: Sequence[ReadRequest | DraftRequest]) -> list[int]:
        """Lengths of the sequences, after making room for their new tokens."""
        lengths = [self._caches[each.place].length for each in requests]
        self._reserve(max(length + each.tokens for each, length in zip(requests, lengths, strict=True)))
        return lengths

    def _advance(self, requests: Sequence[ReadRequest | DraftRequest]) -> None:
        for request in requests:
            self._caches[request.place].advance(request.tokens)

    def _reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens; if that moves the buffers, all graphs are dropped."""
        tokens = rounded_up(bucket_of(length))  # coarse steps, since every move requires capturing all graphs again
        if tokens > self._states[0].capacity:
            check_room(self._states[0], self._spare, tokens, self._per_token, self._device, self.elsewhere)
            for each in self._states:
                each.reserve(tokens)
        if not self._states[0].capacity:  # the first states allocate the buffers, which must not belong to a graph
            self._read(*self._padding(1))
        if self._capacity != self._states[0].capacity:
            self._graphs.clear()
            self._rows.clear()
            self._drafts.clear()
            self._capacity = self._states[0].capacity

    def _table(self, slots: Sequence[tuple[int, int]], kept: Sequence[int]) -> Tensor:
        """Places and positions of n rows, followed by the rows whose logits are wanted."""
        return on_device([*zip(*slots, strict=True), kept], self._device)

    def _padding(self, rows: int) -> tuple[Tensor, Tensor]:
        """A block of padding rows, for captures and for allocating buffers."""
        ids = torch.zeros(rows, dtype=torch.long, device=self._device)
        return ids, self._table([(self._spare, 0)] * rows, [0] * rows)

    def _read(self, ids: Tensor, table: Tensor) -> Tensor:
        n = ids.shape[0]
        places, positions, kept = table.split([n, n, table.shape[0] - 2 * n])
        return self._logits(ids, places, positions, kept)

    def _draft(self, shape: Shape, sampler: Sampler) -> Callable[..., Drafted]:
        return partial(draft, self._spare, shape, sampler, self._logits)

    def _logits(self, ids: Tensor, places: Tensor, positions: Tensor, rows: Tensor | slice) -> Tensor:
        """Logits `[m, V]` of the rows `[m]` of a block `[n]` with these places and positions."""
        self._cache.places, self._cache.positions = places, positions
        return self._model.of_rows(ids, positions, rows, self._cache)
