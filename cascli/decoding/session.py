"""The state of one run that strategies work on: the text so far, the two models, the random numbers.

The text lies on the models' device; strategies write drafted tokens into it and never wait for the host
except once a round, in `Session.fetch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from cascli.decoding.clock import Clock, Phase
from cascli.errors import RunError
from cascli.sampling import distributions
from cascli.sampling.autoregressive import Law, Written, write_by_steps
from cascli.sampling.parameters import Sampling
from cascli.trace import FinishReason

Result = TypeVar("Result")


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


class RandomNumbers(Protocol):
    """Uniforms by position: see `cascli.sampling.uniforms.Uniforms`."""

    def draw(self, start: int, n: int) -> Tensor:
        """Draws of drafted, bonus and baseline tokens `[n]`."""

    def accept(self, start: int, n: int) -> Tensor:
        """Acceptance tests `[n]`."""

    def residual(self, start: int, n: int) -> Tensor:
        """Draws after a rejection `[n]`."""


class Computes(Protocol):
    """Applies a function to tensors on the device: at once, or by a recording of it."""

    def __call__(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """`function(*inputs)`, where `key` tells apart what is computed in different ways.

        The result is valid until the next call with this key.
        """


class Rehearses(Computes, Protocol):
    """One that can get ready."""

    def prepare(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> bool:
        """Record a call of which these are examples; says whether it was not there already."""


def at_once(key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
    """Simply call the function."""
    del key
    return function(*inputs)


@dataclass
class Lane:
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


@dataclass
class Session:
    """What a strategy may use; the engine ends it between two rounds."""

    draft: Lane
    target: Lane
    sampling: Sampling
    uniforms: RandomNumbers
    text: Tensor
    """`[capacity]` token ids on the device: the prompt, the answer so far, and drafted tokens."""
    prompt_length: int
    max_new_tokens: int
    vocab: int
    clock: Clock
    spell: Callable[[int], str]
    """The text of a single token, for the trace."""
    compute: Computes = at_once
    """How a round's computations besides the two models' are done."""
    length: int = field(init=False)
    finish_reason: FinishReason | None = None
    """Set by the engine when the answer has ended."""

    def __post_init__(self) -> None:
        """Start after the prompt."""
        self.length = self.prompt_length

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def position(self) -> int:
        """Index in the answer of the next token to be decided."""
        return self.length - self.prompt_length

    @property
    def remaining(self) -> int:
        """How many tokens may still be added."""
        return self.max_new_tokens - self.position

    def warp(self, logits: Tensor) -> Tensor:
        """The distributions `[n, V]` that tokens are drawn from."""
        return distributions.warp(logits, self.sampling)

    def draw(self, probs: Tensor) -> Tensor:
        """Draw the next token, `[1]`, from `probs` `[1, V]` with the position's own uniform."""
        return distributions.sample(probs, self.uniforms.draw(self.position, 1))

    def draw_again(self, probs: Tensor) -> Tensor:
        """Draw a token `[1]` where the position's first uniform has been used already."""
        return distributions.sample(probs, self.uniforms.residual(self.position, 1))

    def append(self, tokens: Tensor) -> None:
        """Add decided tokens `[n]` to the text."""
        n = tokens.shape[0]
        self.text[self.length : self.length + n] = tokens
        self.length += n

    def restart(self) -> None:
        """Forget the answer and begin again after the prompt."""
        self.length = self.prompt_length
        self.finish_reason = None

    def fetch(self, *columns: Tensor) -> list[list[float]]:
        """Bring several short tensors to the host in one transfer; ids stay exact as float64.

        Raises:
            RunError: a model's logits were not finite numbers.
        """
        values = self._transfer(*columns, self.draft.health, self.target.health)
        for role, [health] in zip(("draft", "target"), values[-2:], strict=True):
            if not math.isfinite(health):
                raise RunError(f"the {role} model's logits are not finite numbers; try --dtype bfloat16 or float32.")
        return values[:-2]

    @staticmethod
    def _transfer(*columns: Tensor) -> list[list[float]]:
        flat = torch.cat([column.reshape(-1).double() for column in columns]).tolist()
        result, start = [], 0
        for column in columns:
            result.append(flat[start : start + column.numel()])
            start += column.numel()
        return result
