"""The interface that decoding needs from a model: forward over new tokens, rewind, reset. Batch size 1, no policy."""

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
    """One model with its cache over a growing and shrinking text: the prompt, managed by the runner, and the answer."""

    draws: ClassVar[bool] = False
    """Whether `write` runs several steps and the draws between them as one captured graph."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of tokens read, including the prompt's."""

    @abstractmethod
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` after the tokens read before; return the logits `[rows, vocab]` of the last rows.

        Issues no host synchronisation of its own.
        """

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens; costs nothing."""

    @property
    def prompt_block(self) -> int | None:
        """Most prompt tokens per pass, fixed so that equal prefixes have equal bits; None to read the prompt whole."""
        return None

    @property
    def in_parts(self) -> bool:
        """Whether `read_at` is available."""
        return False

    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` as if `start` tokens had been read, by the model's own layers, without a captured step.

        Returns:
            Logits `[rows, vocab]`; for 0 rows the model's head is not run.

        Raises:
            RunError: this runner does not support it.
        """
        raise RunError(NOT_IN_PARTS)

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Forget everything, read a prompt `[n]` except its last token, and return the answer's start token `[1]`.

        That is the prompt's last token: the first step of an answer reads it before the answer's own tokens.
        An encoder reads the whole prompt, and the answer starts from the decoder's start token.
        """
        self.reset()
        for ids in self.prompt_blocks(prompt_ids):
            self.forward(ids, 1)
        return prompt_ids[-1:]

    def prompt_blocks(self, prompt_ids: Tensor) -> Sequence[Tensor]:
        """Split a prompt `[n]`, except its last token, into the blocks in which it is read."""
        before = prompt_ids[:-1]
        return before.split(self.prompt_block or before.shape[0]) if before.shape[0] else ()

    def write(self, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
        """Read `ids`, then write a token with each uniform of `u` `[n]`; the result is valid until the next call."""
        return write_by_steps(lambda ids: self.forward(ids, 1), ids, sampler, u, read_last=read_last)

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room and capture graphs before timing starts; does nothing by default.

        Args:
            prompt: number of prompt tokens.
            answer: number of tokens that may follow, drafted ones included.
            calls: the upcoming calls.
            sampler: how tokens are drawn, if any are.
        """
        del prompt, answer, calls, sampler

    def fresh(self) -> Runner:
        """Another runner of the same weights with its own cache, so that two texts can be in progress concurrently."""
        raise NotImplementedError(f"{type(self).__name__} has one cache")

    def fill_cache(self, length: int) -> None:
        """Act as if `length` tokens had been read, so that the speed after them can be measured."""
        raise NotImplementedError(f"{type(self).__name__} has no cache to fill")

    def reset(self) -> None:
        """Forget everything; buffers are kept for the next text."""
        self.truncate(0)

    def steps_left(self, prompt_ids: Tensor, answer: Tensor) -> int | None:
        """Number of successive next-token distributions it can compute from after a text on; None if unlimited.

        Args:
            prompt_ids: the prompt `[n]`, which may not have been read yet.
            answer: the answer so far `[m]`; what was read of the text is a beginning of it.
        """
        del prompt_ids, answer
        return None

    def follow(self, target: Runner) -> None:
        """Attach to this runner of the target, for runners that read its states; all others ignore it."""
        del target

    @property
    def goes_by_target(self) -> bool:
        """Whether its logits depend on what the target has read so far, for example if it is a part of the target."""
        return self.exit is not None

    @property
    def encoded(self) -> int:
        """Number of prompt tokens that an encoder has read in `begin`; 0 for a model without one."""
        return 0

    @property
    def own(self) -> Runner:
        """The runner that uses the model's own tokens: this one, unless it translates."""
        return self

    def around(self, own: Runner) -> Runner:
        """This runner with `own` replaced by another: that other runner, unless this one translates."""
        return own

    @property
    def exit(self) -> ExitInfo | None:
        """Where it leaves the target, if it is an early exit; the target's cursor then reads the prompt."""
        return None

    @property
    def shared_mass(self) -> float | None:
        """Mean share of the model's mass on tokens that both models have; None if they share all tokens."""
        return None

    def as_read(self, tokens: int, attended: int) -> tuple[int, int]:
        """Convert a run's counts (see `Cursor`) from the pair's tokens to the model's own tokens."""
        return tokens, attended

    @property
    def graphs(self) -> int:
        """Number of captured graphs."""
        return 0

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far, including compilation; None for a runner that captures nothing."""
        return None

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling so far; None if steps are not compiled."""
        return None
