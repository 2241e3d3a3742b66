"""One model's position in the text of a run: what it has read, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cascli.decoding.clock import Clock, Phase
from cascli.sampling.autoregressive import Law, Written, write_by_steps


class Runs(Protocol):
    """A model that reads a text: see `cascli.models.runner.Runner`."""

    @property
    def length(self) -> int:
        """How many tokens were read."""

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read ids `[n]`, return logits `[rows, V]`."""

    def truncate(self, length: int) -> None:
        """Forget what comes after `length` tokens."""

    def reset(self) -> None:
        """Forget everything."""


@runtime_checkable
class Writes(Protocol):
    """A runner that makes several steps and the draws between them at once, because it has recorded them."""

    def write(self, ids: Tensor, law: Law, u: Tensor, *, read_last: bool) -> Written:
        """As `cascli.sampling.autoregressive.write_by_steps`; the result is valid until the next call."""


@dataclass
class Cursor:
    """One model during one run: reads the session's text as far as asked, counts calls and time."""

    runner: Runs
    phase: Phase
    clock: Clock
    text: Tensor
    prompt_length: int
    calls: int = 0
    """Steps that a decoding strategy pays for; reading the prompt is not one."""
    passes: int = 0
    """All forward passes, those over the prompt included."""
    tokens: int = 0
    """Tokens read so far, the prompt and those that were forgotten again included."""
    attended: int = 0
    """Pairs of a token and one that it could look at, over all that was read."""
    rows: int = 0
    """Rows of logits that were made."""
    health: Tensor = field(init=False)
    """0-dim on the device: stays finite as long as the largest logit of every row that was read is a number."""
    _writer: Writes | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin in good health."""
        self.health = torch.zeros((), dtype=torch.float32, device=self.text.device)
        self._writer = self.runner if isinstance(self.runner, Writes) else None

    def read(self, end: int, rows: int = 1) -> Tensor:
        """Read the text up to token `end` and return the last `rows` rows of logits, `[rows, V]`.

        The prompt but for its last token is prefill and not counted as a call.
        """
        logits = self._forward(self._unread(end, rows), rows, self.phase)
        self.calls += 1
        self._watch(logits.amax(dim=-1))
        return logits

    def write(self, length: int, law: Law, u: Tensor, *, read_last: bool = False) -> Written:
        """Let the model write a token with each uniform of `u` `[n]` after the first `length` tokens of the text.

        The tokens are put into the text; the distributions are valid until the model's next call. Where a recording
        draws as well as reads, drawing counts as the model's time.
        """
        ids = self._unread(length, 1)
        if self._writer is not None:
            written = self._ahead(self._writer, ids, law, u, read_last)
        else:
            written = write_by_steps(lambda ids: self._forward(ids, 1, self.phase), ids, law, u, read_last=read_last)
        self.calls += u.shape[0] + read_last
        self.text[length : length + u.shape[0]] = written.tokens
        self._watch(written.health)
        return written

    def _watch(self, largest: Tensor) -> None:
        """Keep in mind whether largest logits were finite; of either sign: a row of minus infinity is no law."""
        self.health = torch.maximum(self.health, largest.float().abs().amax())

    def _ahead(self, runner: Writes, ids: Tensor, law: Law, u: Tensor, read_last: bool) -> Written:
        before, first = self.runner.length, ids.shape[0]
        with self.clock.span(self.phase):
            written = runner.write(ids, law, u, read_last=read_last)
        for step in range(u.shape[0] + read_last):
            self._count(before + (first + step - 1 if step else 0), 1 if step else first, 1)
        return written

    def _unread(self, end: int, rows: int) -> Tensor:
        """The ids up to token `end` that a step has to read, after the prompt but for its last token was read."""
        known = self.prompt_length - 1
        if self.runner.length < known:
            self._forward(self.text[self.runner.length : known], 1, "prefill")
        if end - self.runner.length < rows:
            raise ValueError(f"{rows} rows asked for, but only {end - self.runner.length} tokens are unread")
        return self.text[self.runner.length : end]

    def _forward(self, ids: Tensor, rows: int, phase: Phase) -> Tensor:
        self._count(self.runner.length, ids.shape[0], rows)
        with self.clock.span(phase):
            return self.runner.forward(ids, rows)

    def _count(self, before: int, n: int, rows: int) -> None:
        """Keep account of a pass over n tokens after `before` others, and of its rows of logits."""
        self.passes += 1
        self.rows += rows
        self.tokens += n
        self.attended += n * before + n * (n + 1) // 2

    def rewind(self, length: int) -> None:
        """Forget what was read beyond `length` tokens."""
        if self.runner.length > length:
            self.runner.truncate(length)
