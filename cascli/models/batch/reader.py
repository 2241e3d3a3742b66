"""What reads for several texts: their new tokens in one forward pass where the model's kernels allow it."""

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


class Wanted(NamedTuple):
    """What one text's model is to read."""

    place: int
    """Of the text."""
    ids: Tensor
    """`[n]`, after what was read before."""
    rows: int
    """How many of the last tokens' logits are wanted."""

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return self.ids.shape[0]


class WantedDraft(NamedTuple):
    """What one text's model is to read, and to write after it: see `Runner.write`."""

    place: int
    ids: Tensor
    """`[n]`."""
    sampler: Sampler
    u: Tensor
    """A uniform for each token that it writes, float64."""
    read_last: bool

    @property
    def write(self) -> Write:
        """The call, without its tensors."""
        return Write(self.ids.shape[0], self.u.shape[0], self.read_last)

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return self.write.tokens


def check_room(
    states: States, texts: int, tokens: int, per_token: int, device: torch.device, elsewhere: int = 0
) -> None:
    """Refuse a batch whose caches have no room, before they are made: a system that is out of memory says nothing.

    Args:
        states: of one layer, with a place for each text and perhaps more.
        texts: at once.
        tokens: that each place is to have room for.
        per_token: bytes of keys and values, of all layers.
        device: where they are.
        elsewhere: bytes that the caches of other models will take for as many places.

    Raises:
        RunError: there is no room; says for how many there is.
    """
    free = available(device)
    each, held = tokens * per_token + elsewhere // states.places, states.places * states.capacity * per_token
    needed = states.places * each
    if free is None or needed - held <= free:
        return
    fits = (free + held) // each - (states.places - texts)
    raise RunError(
        f"a batch of {texts} does not fit: caches of {tokens} tokens each take {needed / 1e9:.1f} GB,"
        f" and {(free + held) / 1e9:.1f} GB are free.\n"
        + (f"Use a batch of {fits} or fewer, or shorter answers." if fits > 0 else "Use shorter answers or prompts.")
    )


def in_parts(wanted: Sequence[Wanted], most: int | None) -> list[Sequence[Wanted]]:
    """Texts in as few groups as there may be, of at most so many tokens; one group if None."""
    if most is None:
        return [wanted]
    parts: list[list[Wanted]] = []
    room = 0
    for each in wanted:
        room -= each.ids.shape[0]
        if room < 0 or not parts:
            parts.append([])
            room = most - each.ids.shape[0]
        parts[-1].append(each)
    return list(parts)


class Reader(ABC):
    """One model with the caches of several texts, a runner for each."""

    alone_because: str | None = None
    """Why each text is read in passes of its own; None if they share them."""
    elsewhere: int = 0
    """Bytes that the caches of other models will take."""
    draws: bool = False
    """Whether `write` is there, which makes several passes and the draws between them at once."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        """Take the runners of the places: one text each."""
        self.runners = runners

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far; None for a reader that captures nothing."""
        return None

    @property
    def unmade(self) -> int:
        """Bytes of caches that were asked for and are not made yet."""
        return 0

    @abstractmethod
    def shares(self, n: int) -> bool:
        """Whether blocks of n tokens are read together; others, prompts above all, by their own runner."""

    @abstractmethod
    def read(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Read for several texts; the logits `[rows, vocab]` of each."""

    def write(self, wanted: Sequence[WantedDraft]) -> list[Written]:
        """Let the model write for several texts, all with the same sampler."""
        raise NotImplementedError(f"{type(self).__name__} does not draw")

    def kept(self, place: int, start: int) -> list[tuple[Tensor, Tensor]] | None:
        """A copy of what a place's text has left in its cache from token `start` on, for `put`; None: not to be had."""
        del place, start
        return None

    def put(self, place: int, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Hold what was kept behind what is held, as if it had been read."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing")

    def prepare(self, place: int, prompt: int, answer: int, calls: Calls, sampler: Sampler | None) -> None:
        """As `Runner.prepare`, for one of the places."""
        self.runners[place].prepare(prompt, answer, calls, sampler)


class OneByOne(Reader):
    """Texts take turns: correct for any model, and no faster than one after the other."""

    def __init__(self, runners: Sequence[Runner], why: str) -> None:
        """Say why."""
        super().__init__(runners)
        self.alone_because = why
        self.draws = all(each.draws for each in runners)

    def shares(self, n: int) -> bool:
        """False: every text has a runner of its own."""
        del n
        return False

    def read(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Each by its own runner."""
        return [self.runners[each.place].forward(each.ids, each.rows) for each in wanted]
