"""Readers for several texts: their new tokens in one forward pass where the model's kernels allow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascli.errors import RunError
from cascli.models.cache import States
from cascli.models.calls import Calls, Write
from cascli.models.memory import available
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler, Written


class ReadRequest(NamedTuple):
    """A request to read tokens of one text."""

    place: int
    """The text's place."""
    ids: Tensor
    """`[n]`, after what was read before."""
    rows: int
    """Number of last tokens whose logits are wanted."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads."""
        return self.ids.shape[0]


class DraftRequest(NamedTuple):
    """A request to read tokens of one text and to write after them: see `Runner.write`."""

    place: int
    ids: Tensor
    """`[n]`."""
    sampler: Sampler
    u: Tensor
    """One uniform per token to write, float64."""
    read_last: bool

    @property
    def write(self) -> Write:
        """The call, without its tensors."""
        return Write(self.ids.shape[0], self.u.shape[0], self.read_last)

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads."""
        return self.write.tokens


def check_room(
    states: States, texts: int, tokens: int, per_token: int, device: torch.device, elsewhere: int = 0
) -> None:
    """Reject a batch whose caches do not fit, before allocating them: a system out of memory gives no error message.

    Args:
        states: the states of one layer, with a place for each text and perhaps more.
        texts: number of concurrent texts.
        tokens: number of tokens that each place must have room for.
        per_token: bytes of keys and values per token, over all layers.
        device: where the caches are.
        elsewhere: bytes that the caches of other models will take for the same number of places.

    Raises:
        RunError: there is not enough room; the message gives the batch size that fits.
    """
    free = available(device)
    per_text, held = tokens * per_token + elsewhere // states.places, states.places * states.capacity * per_token
    needed = states.places * per_text
    if free is None or needed - held <= free:
        return
    fits = (free + held) // per_text - (states.places - texts)
    raise RunError(
        f"a batch of {texts} does not fit: caches of {tokens} tokens each take {needed / 1e9:.1f} GB,"
        f" and {(free + held) / 1e9:.1f} GB are free.\n"
        + (f"Use a batch of {fits} or fewer, or shorter answers." if fits > 0 else "Use shorter answers or prompts.")
    )


def in_parts(requests: Sequence[ReadRequest], most: int | None) -> list[Sequence[ReadRequest]]:
    """Split texts into as few groups as possible, in order, of at most `most` tokens each; one group if None."""
    if most is None:
        return [requests]
    parts: list[list[ReadRequest]] = []
    room = 0
    for request in requests:
        room -= request.ids.shape[0]
        if room < 0 or not parts:
            parts.append([])
            room = most - request.ids.shape[0]
        parts[-1].append(request)
    return list(parts)


class Reader(ABC):
    """One model with the caches of several texts, a runner for each."""

    alone_because: str | None = None
    """Why each text is read in separate passes; None if texts share them."""
    elsewhere: int = 0
    """Bytes that the caches of other models will take."""
    draws: bool = False
    """Whether `write` is implemented, which runs several passes and the draws between them in one go."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        """Take the runners, one per place."""
        self.runners = runners

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far; None for a reader that captures nothing."""
        return None

    @property
    def unallocated(self) -> int:
        """Bytes of caches that were requested but are not allocated yet."""
        return 0

    @abstractmethod
    def shares(self, n: int) -> bool:
        """Whether blocks of n tokens are read together; others, mainly prompts, are read by the text's own runner."""

    @abstractmethod
    def read(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        """Read for several texts; return the logits `[rows, vocab]` of each."""

    def write(self, requests: Sequence[DraftRequest]) -> list[Written]:
        """Let the model write for several texts, all with the same sampler."""
        raise NotImplementedError(f"{type(self).__name__} does not draw")

    def kept(self, place: int, start: int) -> list[tuple[Tensor, Tensor]] | None:
        """A copy, for `put`, of what the cache of a place's text holds from token `start`; None if not supported."""
        del place, start
        return None

    def put(self, place: int, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append what was kept to the cache, as if it had been read."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing")

    def prepare(self, place: int, prompt: int, answer: int, calls: Calls, sampler: Sampler | None) -> None:
        """`Runner.prepare` for one of the places."""
        self.runners[place].prepare(prompt, answer, calls, sampler)


class OneByOne(Reader):
    """Texts take turns: correct for any model, but no faster than one after the other."""

    def __init__(self, runners: Sequence[Runner], why: str) -> None:
        """Take the runners, and the reason for `alone_because`."""
        super().__init__(runners)
        self.alone_because = why
        self.draws = all(each.draws for each in runners)

    def shares(self, n: int) -> bool:
        """Always false: every text is read by its own runner."""
        del n
        return False

    def read(self, requests: Sequence[ReadRequest]) -> list[Tensor]:
        """Read each text with its own runner."""
        return [self.runners[request.place].forward(request.ids, request.rows) for request in requests]
