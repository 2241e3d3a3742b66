"""What decoding asks of a model: forward over new tokens, rewind, reset. Batch size 1, no policy of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from cascli.errors import RunError
from cascli.models.calls import Calls
from cascli.sampling.autoregressive import Sampler, Written, write_by_steps
from cascli.trace import ExitInfo

NOT_IN_PARTS = "draft=early-exit needs a decoder-only target without an EAGLE-3 head;\nthis one cannot exit early."


class Runner(ABC):
    """One model with its cache over a growing and shrinking text: the prompt, which is the runner's, and the answer."""

    draws: ClassVar[bool] = False
    """Whether `write` makes several steps and the draws between them as one captured graph."""

    @property
    @abstractmethod
    def length(self) -> int:
        """How many tokens were read, the prompt's included."""

    @abstractmethod
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` after what was read before; return the logits `[rows, vocab]` of the last rows.

        Issues no host synchronisation of its own.
        """

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens; costs nothing."""

    @property
    def prompt_block(self) -> int | None:
        """The most tokens of a prompt that are read at once, so that equal beginnings have equal bits; None: all."""
        return None

    @property
    def in_parts(self) -> bool:
        """Whether `read_at` is there."""
        return False

    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` as if `start` tokens had been read, by the model's own layers, without a captured step.

        Returns:
            Logits `[rows, vocab]`; for no rows the model's head is not asked.

        Raises:
            RunError: this runner cannot.
        """
        raise RunError(NOT_IN_PARTS)

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Forget everything, read a prompt `[n]` but for its last token, and return what the answer starts from.

        That is the prompt's last token, `[1]`: the first step of an answer reads it before the answer's own tokens.
        An encoder reads all of the prompt, and an answer starts from the decoder's start token.
        """
        self.reset()
        for ids in self.prompt_blocks(prompt_ids):
            self.forward(ids, 1)
        return prompt_ids[-1:]

    def prompt_blocks(self, prompt_ids: Tensor) -> Sequence[Tensor]:
        """A prompt `[n]` but for its last token, in the blocks that it is read in."""
        before = prompt_ids[:-1]
        return before.split(self.prompt_block or before.shape[0]) if before.shape[0] else ()

    def write(self, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
        """Read `ids`, then write a token with each uniform of `u` `[n]`; the result is valid until the next call."""
        return write_by_steps(lambda ids: self.forward(ids, 1), ids, sampler, u, read_last=read_last)

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room and capture graphs before the clock starts; nothing, unless a runner has something to do.

        Args:
            prompt: tokens of the prompt.
            answer: tokens that may follow it, drafted ones included.
            calls: the calls to come.
            sampler: how tokens are drawn, if any are.
        """
        del prompt, answer, calls, sampler

    def fresh(self) -> Runner:
        """Another runner of the same weights, with a cache of its own: two texts can be under way at once."""
        raise NotImplementedError(f"{type(self).__name__} has one cache")

    def fill_cache(self, length: int) -> None:
        """Act as if `length` tokens had been read, so that the speed after them can be measured."""
        raise NotImplementedError(f"{type(self).__name__} has no cache to fill")

    def reset(self) -> None:
        """Forget everything; buffers are kept for the next text."""
        self.truncate(0)

    def steps_left(self, length: int) -> int | None:
        """How many distributions it can give behind a text of `length` tokens, one token further each; None: any."""
        del length
        return None

    def follow(self, target: Runner) -> None:
        """Go by this runner of the target, for one that looks into it: no other does anything."""
        del target

    @property
    def goes_by_target(self) -> bool:
        """Whether what it gives depends on what the target has read by then, as that of a part of the target does."""
        return self.exit is not None

    @property
    def encoded(self) -> int:
        """How many tokens of the prompt an encoder has read, at `begin`; 0 for a model without one."""
        return 0

    @property
    def own(self) -> Runner:
        """The runner that speaks the model's own tokens: this one, unless it translates."""
        return self

    def around(self, own: Runner) -> Runner:
        """What this one is with another in the place of `own`: that other, unless it translates."""
        return own

    @property
    def exit(self) -> ExitInfo | None:
        """Where it leaves the target, if it is an early exit of it: the target's cursor then reads the prompt."""
        return None

    @property
    def shared_mass(self) -> float | None:
        """The mean share of the model's mass that both models of the pair can say; None where they share all tokens."""
        return None

    def as_read(self, tokens: int, attended: int) -> tuple[int, int]:
        """What a run has read, in the model's own tokens, from what it is in the pair's: see `Cursor`."""
        return tokens, attended

    @property
    def graphs(self) -> int:
        """How many captured graphs there are."""
        return 0

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far, that of compiling included; None for a runner that captures nothing."""
        return None

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling so far; None if steps are not compiled."""
        return None
