"""One model's position in the text of a run: what it has read, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cascli.decoding.clock import Clock, Phase
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler, Written, write_by_steps


@dataclass
class Cursor:
    """One model during one run: reads the session's text up to a given token, and counts calls and time."""

    runner: Runner
    phase: Phase
    clock: Clock
    prompt_ids: Tensor
    """`[n]`; read at the first step, and counted as prefill."""
    text: Tensor
    """`[capacity]`, the session's text: the answer, and drafted tokens after it."""
    prompt_by: Cursor | None = None
    """The cursor whose model reads the prompt for this one too: an early exit is part of that model."""
    calls: int = 0
    """Steps that a decoding strategy pays for; reading the prompt is not one."""
    passes: int = 0
    """All forward passes, including those over the prompt."""
    tokens: int = 0
    """Tokens read so far, including the prompt and tokens that were forgotten again."""
    attended: int = 0
    """Pairs of a token and one that it could attend to, over everything that was read."""
    rows: int = 0
    """Rows of logits that were computed."""
    encoded: int = 0
    """Prompt tokens that an encoder has read; also counted in `tokens`."""
    max_logit: Tensor = field(init=False)
    """The largest magnitude of any row's largest logit, 0-dim on the device: finite as long as all of them were."""
    _start: Tensor | None = field(default=None, init=False, repr=False)
    """What the first step reads before the answer, `[1]`; None until the prompt has been read."""
    _prompt: int = field(default=0, init=False, repr=False)
    """Number of tokens the runner had read before that."""

    def __post_init__(self) -> None:
        """Start with nothing read."""
        self.max_logit = torch.zeros((), dtype=torch.float32, device=self.text.device)

    def read(self, end: int, rows: int = 1) -> Tensor:
        """Read the answer up to token `end` and return the last `rows` rows of logits, `[rows, V]`.

        The prompt except for its last token is prefill and does not count as a call.
        """
        logits = self._forward(self._unread(end, rows), rows)
        self.calls += 1
        self._watch(logits.amax(dim=-1))
        return logits

    def write(self, length: int, sampler: Sampler, u: Tensor, *, read_last: bool = False) -> Written:
        """Let the model write one token per uniform of `u` `[n]` after the first `length` tokens of the answer.

        The result is valid until the model's next call. Where a captured graph draws as well as reads, drawing counts
        as the model's time.
        """
        ids = self._unread(length, 1)
        if self.runner.draws:
            written = self._written(ids, sampler, u, read_last)
        else:
            written = write_by_steps(lambda ids: self._forward(ids, 1), ids, sampler, u, read_last=read_last)
        self.calls += u.shape[0] + read_last
        self._watch(written.max_logit)
        return written

    def _watch(self, largest: Tensor) -> None:
        """Track the largest magnitude, to notice logits that are not finite: in a row of -inf even the largest is."""
        self.max_logit = torch.maximum(self.max_logit, largest.float().abs().amax())

    def _written(self, ids: Tensor, sampler: Sampler, u: Tensor, read_last: bool) -> Written:
        before, first = self.runner.length, ids.shape[0]
        with self.clock.span(self.phase):
            written = self.runner.write(ids, sampler, u, read_last=read_last)
        for step in range(u.shape[0] + read_last):
            self._count(before + (first + step - 1 if step else 0), 1 if step else first, 1)
        return written

    def _unread(self, end: int, rows: int) -> Tensor:
        """The ids up to token `end` of the answer that a step has to read; reads the prompt first if it was not read.

        Raises:
            ValueError: fewer ids are unread than rows of logits are wanted.
        """
        start = self.begin()
        read = self.runner.length - self._prompt
        if end + 1 - read < rows:
            raise ValueError(f"{rows} rows requested, but only {end + 1 - read} tokens are unread (not appended?)")
        return self.text[read - 1 : end] if read else torch.cat([start, self.text[:end]])

    def begin(self) -> Tensor:
        """Read the prompt except its last token (an encoder reads all); return what an answer starts from, `[1]`."""
        if self._start is None and self.prompt_by is not None:
            self._start, self._prompt = self.prompt_by.begin(), self.prompt_by._prompt
        elif self._start is None:
            with self.clock.span("prefill"):
                self._start = self.runner.begin(self.prompt_ids)
            self._prompt, self.encoded = self.runner.length, self.runner.encoded
            if self.encoded:  # no logits, and an encoder attends without the cache
                self.passes += 1
                self.tokens += self.encoded
            elif self._prompt:
                self._count(0, self._prompt, 1)
        return self._start

    def steps_left(self, n: int, length: int) -> int:
        """How many of the `n` distributions after the first `length` tokens of the answer the model can give."""
        left = self.runner.steps_left(self.prompt_ids, self.text[:length])
        return n if left is None else min(n, left)

    def _forward(self, ids: Tensor, rows: int) -> Tensor:
        self._count(self.runner.length, ids.shape[0], rows)
        with self.clock.span(self.phase):
            return self.runner.forward(ids, rows)

    def _count(self, before: int, n: int, rows: int) -> None:
        """Count a pass over n tokens after `before` others, and its rows of logits."""
        self.passes += 1
        self.rows += rows
        self.tokens += n
        self.attended += n * before + n * (n + 1) // 2

    def rewind(self, length: int) -> None:
        """Forget what was read beyond the first `length` tokens of the answer."""
        if self._start is not None and self.runner.length > self._prompt + 1 + length:
            self.runner.truncate(self._prompt + 1 + length)
