"""A draft model with its own tokenizer, as a runner that uses the target's tokens: see `translation`."""

from __future__ import annotations

import torch
from torch import Tensor

from cascli.errors import RunError
from cascli.models.calls import Calls
from cascli.models.runner import Runner
from cascli.models.translation import Translation
from cascli.sampling.autoregressive import Sampler

_MOST_CAPTURED = 4
"""Most draft tokens that a captured step reads for a target token; more are read like a prompt."""


class TranslatedRunner(Runner):
    """Reads the target's tokens as draft tokens, and returns the draft's logits as logits of the target's tokens.

    Its length is in target tokens, and it stores for each the number of draft tokens up to its end. A step reads its
    ids on the host, so on a GPU every drafted token waits for a synchronisation.
    """

    def __init__(self, own: Runner, translation: Translation, context: int | None) -> None:
        """Wrap the runner of a draft model whose context is `context` of its own tokens, if known."""
        self._own = own
        self._translation = translation
        self._context = context
        self._ends: list[int] = []
        """Number of draft tokens up to the end of each target token; equal for all prompt tokens except the last."""
        self._last: tuple[int, list[int]] | None = None
        """Index of the prompt's last token, and the draft tokens read for it: the last one of the encoded prompt."""
        self._encoded: tuple[Tensor, list[int]] | None = None
        """The latest prompt, and its draft tokens."""
        self._forget_counts()

    def _forget_counts(self) -> None:
        self._tokens = self._attended = self._rows = 0
        self._shared: Tensor | float = 0.0

    @property
    def own(self) -> Runner:
        """The draft model's runner, which uses its own tokens."""
        return self._own

    def around(self, own: Runner) -> TranslatedRunner:
        """A runner for another text, with the same translation."""
        return TranslatedRunner(own, self._translation, self._context)

    @property
    def length(self) -> int:
        """Number of target tokens read."""
        return len(self._ends)

    @property
    def shared_mass(self) -> float | None:
        """q(I): mean share of the draft's mass on tokens that both models have, over the logit rows since `begin`."""
        return float(self._shared) / self._rows if self._rows else None

    def as_read(self, tokens: int, attended: int) -> tuple[int, int]:
        """Numbers, since `begin`, of draft tokens read and of pairs of a draft token and one it could attend to."""
        del tokens, attended
        return self._tokens, self._attended

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Forget everything, read all but the last draft token of the prompt; return its last target token `[1]`."""
        self.reset()
        own = self._prompt(prompt_ids)
        if len(own) > 1:
            self._read(own[:-1], 1)
        before = prompt_ids.shape[0] - 1
        self._ends, self._last = [len(own) - 1] * before, (before, own[-1:])
        return prompt_ids[-1:]

    def _prompt(self, prompt_ids: Tensor) -> list[int]:
        """The draft tokens of a prompt.

        Raises:
            RunError: they do not fit the draft's context.
        """
        if self._encoded is None or self._encoded[0] is not prompt_ids:
            self._encoded = prompt_ids, self._translation.prompt(prompt_ids.tolist())
        own = self._encoded[1]
        self._check_room(len(own))
        return own

    def steps_left(self, prompt_ids: Tensor, answer: Tensor) -> int | None:
        """What the draft's context leaves, given that a drafted token is one draft token; see `Runner.steps_left`.

        Raises:
            RunError: the prompt alone does not fit.
        """
        if self._context is None:
            return None
        read = max(self.length - prompt_ids.shape[0], 0) if self._last is not None else 0
        used = self._ends[prompt_ids.shape[0] + read - 1] if read else len(self._prompt(prompt_ids))
        used += sum(len(self._translation.read(token)) for token in answer[read:].tolist())
        return max(self._context - used + 1, 0)

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
        self._check_room(before + n)
        self._tokens += n
        self._attended += n * before + n * (n + 1) // 2
        return self._own.forward(torch.tensor(own), rows)

    def _check_room(self, length: int) -> None:
        if self._context is not None and length > self._context:
            raise RunError(
                f"the draft model's context of {self._context:,} of its own tokens is full;\n"
                "shorten the prompt or the answer, or draft without it: draft=prompt-lookup."
            )

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` target tokens.

        Raises:
            ValueError: `length` ends inside the prompt, which was read as a whole.
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
        """Forget everything, including the counts."""
        self.truncate(0)
        self._forget_counts()

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Prepare the draft's runner for short reads: how many tokens a read has is known only after translation."""
        del calls, sampler
        self.reset()
        self._own.prepare(prompt, 2 * (prompt + answer), Calls(reads=[(n, 1) for n in range(_MOST_CAPTURED, 0, -1)]))

    def fresh(self) -> TranslatedRunner:
        """Another runner with the same weights and translation."""
        return self.around(self._own.fresh())

    def fill_cache(self, length: int) -> None:
        """Act as if `length` target tokens had been read, each as one draft token."""
        self.reset()
        self._own.fill_cache(length)
        self._ends = list(range(1, length + 1))

    @property
    def graphs(self) -> int:
        """Number of captured graphs."""
        return self._own.graphs

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far."""
        return self._own.capture_seconds

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling so far."""
        return self._own.compile_seconds
