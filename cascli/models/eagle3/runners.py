"""An EAGLE-3 head in place of a draft model, and the target whose hidden states it reads.

The head reads a token together with the target's hidden states at the token before. After the last token that the
target has read there are none: further into a draft, the head uses its own state. So its distributions depend on where
a round began. Once the target has read on, tokens that were read with the head's own state are forgotten and read
again: the cache holds an accepted text with the target's states throughout, whatever was drafted on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.models.cache import RewindCache, RewindLayer, States, rounded_up
from cascli.models.cut_head import CutHead
from cascli.models.eager_runner import EagerRunner
from cascli.models.eagle3.head import Eagle3Head, Step
from cascli.models.runner import Runner
from cascli.models.taps import tapped

Embed = Callable[[Tensor], Tensor]
"""Ids `[n]` to embeddings `[n, hidden]`."""


class TappedRunner(EagerRunner):
    """A target's runner that keeps the hidden states after some of its layers for every token that it has read."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: int,
        device: torch.device,
        after: Sequence[int],
        cache: RewindCache | None = None,
    ) -> None:
        """See `EagerRunner`; `after` are layer numbers, see `tapped`."""
        super().__init__(model, vocab, device, cache)
        self._after = after
        self._states = torch.empty(0)

    def fresh(self, states: Sequence[States] | None = None, place: int = 0) -> TappedRunner:
        """A runner on the same module with its own cache and hidden states."""
        cache = RewindCache(self.model.config.get_text_config(), states, place)
        return TappedRunner(self.model, self.vocab, self.device, self._after, cache)

    @property
    def in_parts(self) -> bool:
        """Always false: a pass through part of the layers would lack the hidden states of the others."""
        return False

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, vocab]` of the last rows after reading `ids` `[n]`."""
        before = self.length
        with tapped(self.model, self._after) as hidden:
            logits = super().forward(ids, rows)
        states = torch.cat([hidden[n].to(self.device) for n in self._after], dim=-1)
        self._reserve(self.length, states)
        self._states[before : self.length] = states
        return logits

    def embed(self, ids: Tensor) -> Tensor:
        """The target's own embeddings of ids `[n]`, `[n, hidden]`."""
        rows: Tensor = self.model.get_input_embeddings()(ids.to(self._input_device))
        return rows.to(self.device)

    def states(self, start: int, end: int) -> Tensor:
        """Hidden states of tokens that were read, `[end - start, taps x width]`."""
        return self._states[start:end]

    def _reserve(self, length: int, like: Tensor) -> None:
        """Grow by doubling, so that existing states are rarely copied."""
        capacity = self._states.shape[0]
        if length > capacity:
            grown = like.new_zeros(max(rounded_up(length), 2 * capacity), like.shape[-1])
            if capacity:
                grown[:capacity] = self._states
            self._states = grown

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Fill the cache with a constant, and the states with zeros, up to `length` tokens."""
        super().fill_cache(length)
        self._reserve(length, self._states)


class Eagle3Runner(Runner):
    """Reads and writes like a draft model, alongside its target on the same text.

    A text's first token has no state before it and is not in the cache: the distribution after it alone is unknown and
    returned as flat.
    """

    def __init__(self, head: Eagle3Head, vocab: int, device: torch.device, embed: Embed, target: TappedRunner) -> None:
        """Take a head with its weights, its embedding, and the target's runner; logits are cut to `vocab`."""
        self.head, self.vocab, self.device = head, vocab, device
        self._embed, self._target = embed, target
        self._caches = [RewindLayer() for _ in head.layers]
        self._read = self._sure = 0
        """Tokens that were read, and how many of them with the target's states."""
        self._own: list[Tensor] = []
        """The head's states `[1, hidden]` at the last of the sure tokens, and at each token after it."""

    def follow(self, target: Runner) -> None:
        """Use another runner of the target: the one for the same text.

        Raises:
            TypeError: the runner does not keep hidden states.
        """
        if not isinstance(target, TappedRunner):
            raise TypeError(f"a head cannot read the hidden states of a {type(target).__name__}")
        self._target = target

    def fresh(self) -> Eagle3Runner:
        """A runner on the same head with its own cache; it uses the same target until `follow` is called."""
        return Eagle3Runner(self.head, self.vocab, self.device, self._embed, self._target)

    @property
    def length(self) -> int:
        """Number of tokens read and still valid: drafted ones no longer are once the target has read on."""
        return self._sure if self._target.length >= self._sure else self._read

    def steps_left(self, prompt_ids: Tensor, answer: Tensor) -> int:
        """0 beyond the positions that the head was made for, and 0 after a single token."""
        length = prompt_ids.shape[0] + answer.shape[0]
        return max(self.head.layout.longest - length + 1, 0) if length > 1 else 0

    @property
    def goes_by_target(self) -> bool:
        """Always true: its first step reads the target's hidden states."""
        return True

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Read a prompt that the target has already begun; see `Runner.begin`."""
        self.truncate(0)
        if prompt_ids.shape[0] > 1:
            self.forward(prompt_ids[:-1], 1)
        return prompt_ids[-1:]

    def reset(self) -> None:
        """Forget everything, and reset the target too: another text follows, which it has not read."""
        self.truncate(0)
        self._target.reset()

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, vocab]` after the last rows of `ids` `[n]`; a target that has read nothing reads first.

        Raises:
            ValueError: the target has forgotten the states that the head needs.
        """
        self.truncate(self.length)
        start, n = self._read, ids.shape[0]
        if start == self._target.length == 0 and n > 1:
            self._target.forward(ids[:-1], 1)
        sure = max(min(self._target.length + 1, start + n), start)
        steps = []
        if max(start, 1) < sure:
            steps.append(self._with_target(ids[max(start, 1) - start : sure - start], max(start, 1)))
        if sure > start:
            self._read = self._sure = sure
        steps += [self._alone(ids[i : i + 1], start + i) for i in range(sure - start, n)]
        return self._logits(steps, rows)

    def _with_target(self, ids: Tensor, start: int) -> Step:
        """Read tokens starting at position `start`, each with the target's states at the one before."""
        state = self.head.fused(self._target.states(start - 1, start - 1 + ids.shape[0]))
        step: Step = self.head(self._embed(ids), state, start, self._caches)
        self._own = [step.state[-1:]]
        return step

    def _alone(self, ids: Tensor, place: int) -> Step:
        """Read one token, with the head's own state at the one before."""
        if not self._own:
            raise ValueError(
                f"the target has read {self._target.length} tokens, but position {place} needs the one before"
            )
        step: Step = self.head(self._embed(ids), self._own[-1], place, self._caches)
        self._own.append(step.state)
        self._read = place + 1
        return step

    def _logits(self, steps: Sequence[Step], rows: int) -> Tensor:
        normed = [step.normed for step in steps]
        known = sum(each.shape[0] for each in normed)
        logits = [self.head.lm_head(torch.cat(normed)[-rows:])] if known else []
        if known < rows:  # after a text's first token
            logits.insert(0, self._flat())
        return torch.cat(logits)[:, : self.vocab]

    def _flat(self) -> Tensor:
        head = self.head.lm_head
        if not isinstance(head, CutHead):
            raise TypeError("a head gives logits for all of the target's tokens")
        like = self.head.norm.weight
        row = like.new_full((1, head.rows), -torch.inf)
        row[:, head.ids] = 0.0
        return row

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        length = min(length, self.length)
        if length < self._sure:
            self._sure, self._own = length, []
        else:
            del self._own[length - self._sure + 1 :]
        self._read = length
        for cache in self._caches:
            cache.length = max(length - 1, 0)

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Fill the cache with a constant up to `length` tokens; the target's is filled separately."""
        self.reset()
        self.forward(torch.zeros(2, dtype=torch.long, device=self.device), 1)
        for cache in self._caches:
            cache.fill(max(length - 1, 0))
        self._read = self._sure = length
