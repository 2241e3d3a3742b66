"""A draft model with a tokenizer of its own, as a runner that speaks the target's tokens: see `translation`."""

from __future__ import annotations

import torch
from torch import Tensor

from cascli.errors import RunError
from cascli.models.calls import Calls
from cascli.models.runner import Runner
from cascli.models.translation import Translation
from cascli.sampling.autoregressive import Sampler

_FEW = 4
"""The draft's tokens for one of the target's that a captured step reads; more are read as a prompt is."""


class TranslatedRunner(Runner):
    """Reads the target's tokens as the draft's own ones, and gives the draft's logits as the target's tokens.

    Counts its length in the target's tokens, and knows for each how many of the draft's lie before its end. A step
    looks at its ids on the host: on a GPU each drafted token waits for that.
    """

    def __init__(self, own: Runner, translation: Translation, context: int | None) -> None:
        """Wrap the runner of a draft model that takes texts of `context` of its own tokens, if that is known."""
        self._own = own
        self._translation = translation
        self._context = context
        self._ends: list[int] = []
        """Of the draft's tokens up to the end of each of the target's; the prompt's, but for its last, end together."""
        self._last: tuple[int, list[int]] | None = None
        """The place of the prompt's last token, and what is read in its place: the end of the prompt as a whole."""
        self._forget_counts()

    def _forget_counts(self) -> None:
        self._tokens = self._attended = self._rows = 0
        self._shared: Tensor | float = 0.0

    @property
    def own(self) -> Runner:
        """The draft model's runner, which speaks its own tokens."""
        return self._own

    def around(self, own: Runner) -> TranslatedRunner:
        """Another text's runner of the same translation."""
        return TranslatedRunner(own, self._translation, self._context)

    @property
    def length(self) -> int:
        """How many of the target's tokens were read."""
        return len(self._ends)

    @property
    def shared_mass(self) -> float | None:
        """q(I): the mean share of the draft's mass that both can say, over the rows of logits since the prompt."""
        return float(self._shared) / self._rows if self._rows else None

    def as_read(self, tokens: int, attended: int) -> tuple[int, int]:
        """The draft's own tokens that were read since `begin`, and pairs of one and one that it could look at."""
        del tokens, attended
        return self._tokens, self._attended

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Forget everything, and read the prompt but for the last of the draft's own tokens of it."""
        self.reset()
        own = self._translation.prompt(prompt_ids.tolist())
        if len(own) > 1:
            self._read(own[:-1], 1)
        before = prompt_ids.shape[0] - 1
        self._ends, self._last = [len(own) - 1] * before, (before, own[-1:])
        return prompt_ids[-1:]

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, vocab]` after each of the last `rows` of the target's tokens `ids` `[n]`."""
        before, own, ends = self._own.length, list[int](), list[int]()
        for token in ids.tolist():
            place = self.length + len(ends)
            at_the_prompts_end = self._last is not None and place == self._last[0]
            own += self._last[1] if self._last and at_the_prompts_end else self._translation.read(token)
            ends.append(len(own))
        first = ends[-rows]
        logits = self._read(own, len(own) - first + 1)
        self._ends += [before + end for end in ends]
        if logits.shape[0] > rows:
            logits = logits[[end - first for end in ends[-rows:]]]
        self._rows += rows
        self._shared = self._shared + self._translation.share(logits).sum()
        return self._translation.logits(logits)

    def _read(self, own: list[int], rows: int) -> Tensor:
        before, n = self._own.length, len(own)
        if self._context is not None and before + n > self._context:
            raise RunError(
                f"the draft model's context of {self._context:,} of its own tokens is full;\n"
                "shorten the prompt or the answer, or draft without it: draft=prompt-lookup."
            )
        self._tokens += n
        self._attended += n * before + n * (n + 1) // 2
        return self._own.forward(torch.tensor(own), rows)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens of the target's.

        Raises:
            ValueError: that is inside the prompt, which was read as a whole.
        """
        if length == 0:
            self._last = None
            self._own.truncate(0)
        elif length < self.length:
            if self._last is not None and length < self._last[0]:
                raise ValueError(f"{length} tokens end inside the prompt, which is read as a whole")
            self._own.truncate(self._ends[length - 1])
        del self._ends[length:]

    def reset(self) -> None:
        """Forget everything, and what was counted."""
        self.truncate(0)
        self._forget_counts()

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Have the draft's runner ready for short reads: what is read at once is known only once it is spelled."""
        del calls, sampler
        self.reset()
        self._own.prepare(prompt, 2 * (prompt + answer), Calls(reads=[(n, 1) for n in range(_FEW, 0, -1)]))

    def fresh(self) -> TranslatedRunner:
        """Another runner of the same weights and the same translation."""
        return self.around(self._own.fresh())

    def fill_cache(self, length: int) -> None:
        """Act as if `length` tokens had been read, one of the draft's for each of the target's."""
        self.reset()
        self._own.fill_cache(length)
        self._ends = list(range(1, length + 1))

    @property
    def graphs(self) -> int:
        """How many captured graphs there are."""
        return self._own.graphs

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far."""
        return self._own.capture_seconds

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling so far."""
        return self._own.compile_seconds
