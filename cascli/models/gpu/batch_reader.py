"""Several texts' new tokens in one captured pass on a GPU.

All tokens are rows of one block; each attends over the states of its own text, and where it stands is data on the
device. So one graph for a number of rows serves all texts, whatever their lengths and however many tokens each has:
rows beyond the real ones fill the block up, in a place that no text has. A whole draft of all texts, passes and draws
together, is one graph too: a text that wants fewer tokens than others goes on in that same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cascli.models.batch.cache import TextsCache
from cascli.models.batch.reader import OneByOne, Reader, Wanted, WantedDraft, check_room, in_parts
from cascli.models.cache import RewindCache, States, rounded_up
from cascli.models.calls import Calls
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.batch_draft import Drafted, Shape, draft, inputs, on_device
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import LONGEST, PREFILL, GraphRunner
from cascli.models.gpu.texts_attention import OfTexts
from cascli.models.memory import token_bytes
from cascli.sampling.autoregressive import Sampler, Written

_BUCKETS = (1, 4, 8, 16, 32, 64, 96, 128)
"""Up to here rows are nearly free beside the weights that are read for them; beyond, there are four an octave."""

_PROMPT = 512
"""The longest prompt that is read together with other texts' tokens, and the most rows of a pass that reads one.

Without a graph a prompt of a few tokens takes as long as one of some hundred, which is as long as several rounds.
"""
_KEPT = 128
"""Rows of logits of a pass, unless more are wanted: a prompt's are not."""


def bucket_of(rows: int) -> int:
    """How many rows a captured pass has that reads so many."""
    if rows <= _BUCKETS[-1]:
        return next(each for each in _BUCKETS if each >= rows)
    step = 1 << ((rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def buckets_upto(rows: int) -> list[int]:
    """All that passes of up to so many rows may need, the largest first: they share memory best."""
    return sorted({bucket_of(each) for each in range(1, rows + 1)}, reverse=True)


def graph_reader(runner: GraphRunner, places: int) -> Reader:
    """What reads for several texts with the weights of a captured runner."""
    if not runner.reads_lengths:
        return OneByOne([runner.fresh() for _ in range(places)], "its attention cannot keep texts apart")
    return GraphReader(runner, places)


def _kept(rows: int, wanted: int) -> int:
    """How many rows of logits a pass makes."""
    return min(rows, max(bucket_of(wanted), _KEPT))


class TextRunner(EagerRunner):
    """One text's own forward: reads what is too long to be read with others, a long prompt in pieces."""

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, vocab]` of the last rows after reading `ids` `[n]`."""
        for piece in ids.split(PREFILL):
            logits = super().forward(piece, rows)
        return logits


class _TextsCache(TextsCache):
    """Rows whose places and positions lie on the device, with room for all of them."""

    longest = 1

    def seen(self, states: Tensor, window: int | None) -> OfTexts:
        """With where the rows stand."""
        return OfTexts(states, self.places, self.positions, window or 0)


class GraphReader(Reader):
    """Blocks of all texts at once, short prompts among them; there is one place more than texts, for filling."""

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
        """Of the reads that were captured beforehand."""
        self._drafts: dict[Sampler, set[Shape]] = {}

    @property
    def capture_seconds(self) -> float:
        """Time spent on capturing so far."""
        return self._graphs.seconds

    @property
    def graphs(self) -> int:
        """How many captured graphs there are."""
        return self._graphs.count

    def shares(self, n: int) -> bool:
        """Blocks of a round, and prompts that are not long."""
        return n <= _PROMPT

    @torch.inference_mode()
    def prepare(self, place: int, prompt: int, answer: int, calls: Calls, sampler: Sampler | None) -> None:
        """Make room for the text, and capture what passes of up to all texts will need.

        Raises:
            RunError: there is not so much memory.
        """
        self.runners[place].reset()
        self._reserve(prompt + answer)
        texts = self._spare
        for rows in buckets_upto(texts * max((n for n, _ in calls.reads if n <= LONGEST), default=0)):
            if rows not in self._rows:
                self._rows.add(rows)
                self._graphs.capture("read", self._read, *self._filling(rows))
        writes = [each for each in calls.writes if each.unread <= LONGEST]
        if sampler is not None and writes:
            self._foresee(sampler, [Shape.around(each, writes) for each in buckets_upto(texts)])

    def _foresee(self, sampler: Sampler, shapes: Sequence[Shape]) -> None:
        known = self._drafts.setdefault(sampler, set())
        for shape in shapes:
            if shape not in known:
                known.add(shape)
                given = inputs(self._spare, shape, [], [], self._device)
                self._graphs.capture((shape, sampler), self._draft(shape, sampler), *given)

    @torch.inference_mode()
    def read(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """One pass for all, captured at its first use if nobody has foreseen it; several where there are prompts."""
        most = _PROMPT if any(each.tokens > LONGEST for each in wanted) else None
        return [logits for part in in_parts(wanted, most) for logits in self._pass(part)]

    def _pass(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        lengths = self._lengths(wanted)
        stand, kept = list[tuple[int, int]](), list[int]()
        for each, length in zip(wanted, lengths, strict=True):
            stand += [(each.place, length + i) for i in range(each.tokens)]
            kept += range(len(stand) - each.rows, len(stand))
        rows, n = bucket_of(len(stand)), len(kept)
        ids = torch.cat([*(each.ids for each in wanted), wanted[0].ids.new_zeros(rows - len(stand))]).to(self._device)
        table = self._table([*stand, *[(self._spare, 0)] * (rows - len(stand))], [*kept, *[0] * (_kept(rows, n) - n)])
        # Trying a pass out, which capturing does, writes the same states as the pass.
        self._graphs.capture("read", self._read, ids, table)
        # A copy: some texts keep what they have read while others read on.
        logits = self._graphs.run("read", self._read, ids, table)[:n].clone()
        self._advance(wanted)
        return list(logits.split([each.rows for each in wanted]))

    @torch.inference_mode()
    def write(self, wanted: Sequence[WantedDraft]) -> list[Written]:
        """One replay for all, of as many passes as the longest draft has; captured as `read` is."""
        lengths, sampler = self._lengths(wanted), wanted[0].sampler
        needed = Shape.around(bucket_of(len(wanted)), [each.write for each in wanted])
        fitting = [each for each in self._drafts.get(sampler, ()) if each.holds(needed)]
        shape = min(fitting, key=lambda each: each.rows, default=needed)
        given = inputs(self._spare, shape, wanted, lengths, self._device)
        self._graphs.capture((shape, sampler), self._draft(shape, sampler), *given)
        drafted = self._graphs.run((shape, sampler), self._draft(shape, sampler), *given)
        self._advance(wanted)
        return [drafted.of(i, each) for i, each in enumerate(wanted)]

    def _lengths(self, wanted: Sequence[Wanted | WantedDraft]) -> list[int]:
        """Of the texts, for whose tokens there is room now."""
        lengths = [self._caches[each.place].length for each in wanted]
        self._reserve(max(length + each.tokens for each, length in zip(wanted, lengths, strict=True)))
        return lengths

    def _advance(self, wanted: Sequence[Wanted | WantedDraft]) -> None:
        for each in wanted:
            self._caches[each.place].advance(each.tokens)

    def _reserve(self, length: int) -> None:
        """Room for texts of `length` tokens; buffers that move take the graphs with them."""
        tokens = rounded_up(bucket_of(length))  # moves seldom, since all graphs are captured anew then
        if tokens > self._states[0].capacity:
            check_room(self._states[0], self._spare, tokens, self._per_token, self._device, self.elsewhere)
            for each in self._states:
                each.reserve(tokens)
        if not self._states[0].capacity:  # buffers come with the first states, and belong to no graph
            self._read(*self._filling(1))
        if self._capacity != self._states[0].capacity:
            self._graphs.clear()
            self._rows.clear()
            self._drafts.clear()
            self._capacity = self._states[0].capacity

    def _table(self, stand: Sequence[tuple[int, int]], kept: Sequence[int]) -> Tensor:
        """Of n rows the places and positions, and those whose logits are wanted."""
        return on_device([*zip(*stand, strict=True), kept], self._device)

    def _filling(self, rows: int) -> tuple[Tensor, Tensor]:
        """A block without a text, for trying things out."""
        ids = torch.zeros(rows, dtype=torch.long, device=self._device)
        return ids, self._table([(self._spare, 0)] * rows, [0] * rows)

    def _read(self, ids: Tensor, table: Tensor) -> Tensor:
        n = ids.shape[0]
        places, positions, kept = table.split([n, n, table.shape[0] - 2 * n])
        return self._logits(ids, places, positions, kept)

    def _draft(self, shape: Shape, sampler: Sampler) -> Callable[..., Drafted]:
        return partial(draft, self._spare, shape, sampler, self._logits)

    def _logits(self, ids: Tensor, places: Tensor, positions: Tensor, rows: Tensor | slice) -> Tensor:
        """Logits `[m, V]` of the rows `[m]` of a block `[n]` whose tokens stand there."""
        self._cache.places, self._cache.positions = places, positions
        return self._model.of_rows(ids, positions, rows, self._cache)
