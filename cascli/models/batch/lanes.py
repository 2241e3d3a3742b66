"""Lanes: functions that run side by side in one thread, and whose model calls are answered together.

Each lane is a greenlet: a call of a model switches to whoever has begun the lanes, who goes on once all of them wait.
Nothing runs in parallel but the kernels, so that what a lane computes does not depend on the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from cascli.models.batch.reader import Reader, Wanted
from cascli.models.calls import ROLES, Calls, Role
from cascli.models.choose_runner import choose_reader
from cascli.models.pair import Pair
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler

T = TypeVar("T")


class Ended(NamedTuple, Generic[T]):
    """What has become of a job."""

    place: int
    """Among the jobs, in their order."""
    result: T


class _Asked(NamedTuple):
    role: Role
    wanted: Wanted


class _Lane:
    """A place for one answer after the other, and its share of the time."""

    def __init__(self, place: int, number: int, run: greenlet) -> None:
        self.place, self.number, self.run = place, number, run
        self.asked: _Asked | None = None


class LaneTimer:
    """The clock of a lane: time while it runs, and its share of the passes that it waits for.

    Over all lanes these add up to the time of the batch.
    """

    def __init__(self) -> None:
        self._elsewhere = 0.0
        self._left: float | None = None

    def __call__(self) -> float:
        """Seconds since some beginning."""
        return time.perf_counter() - self._elsewhere

    def leave(self) -> None:
        """Others run from now on."""
        self._left = time.perf_counter()

    def back(self, share: float) -> None:
        """It runs again, after passes of which `share` seconds were its own."""
        if self._left is not None:
            self._elsewhere += time.perf_counter() - self._left - share
        self._left = None


class LaneRunner(Runner):
    """One text's model in a lane: short reads wait for those of the other lanes."""

    def __init__(self, lanes: Lanes, reader: Reader, role: Role, place: int) -> None:
        self._lanes, self._reader, self._role, self._place = lanes, reader, role, place
        self._own = reader.runners[place]

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self._own.length

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read together with others, or a long block alone and at once."""
        if not self._reader.shares(ids.shape[0]):
            return self._own.forward(ids, rows)
        return self._lanes.ask(self._role, Wanted(self._place, ids, rows))

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._own.truncate(length)

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room for this text."""
        self._reader.prepare(self._place, prompt, answer, calls, sampler)


class Lanes:
    """Up to `size` answers of a pair under way at once."""

    def __init__(self, pair: Pair, size: int) -> None:
        """Take the pair whose weights are used; each lane gets caches of its own."""
        self._pair, self.size = pair, size
        self._readers = {role: choose_reader(model.runner.own, size) for role, model in pair.models.items()}
        self._timers = [LaneTimer() for _ in range(size)]
        self._pairs = [self._pair_of(place) for place in range(size)]
        self.passes: dict[Role, int] = dict.fromkeys(ROLES, 0)
        """Forward passes that answered lanes, of each model."""

    @property
    def alone_because(self) -> dict[Role, str]:
        """Why a model's texts are read in passes of their own, of those whose are."""
        return {role: each.alone_because for role, each in self._readers.items() if each.alone_because}

    def _pair_of(self, place: int) -> Pair:
        runners = {
            role: model.runner.around(LaneRunner(self, self._readers[role], role, place))
            for role, model in self._pair.models.items()
        }
        return self._pair.with_runners(runners, timer=self._timers[place], batch_size=self.size)

    def ask(self, role: Role, wanted: Wanted) -> Tensor:
        """Called in a lane: suspend it until a pass has read what it wants."""
        logits: Tensor = cast(greenlet, getcurrent().parent).switch(_Asked(role, wanted))
        return logits

    def run(self, jobs: Iterable[Callable[[Pair], T]]) -> Generator[Ended[T]]:
        """Run jobs, each with a pair of its own on the same weights; yields what they return as they end.

        What one of them raises ends them all.

        Args:
            jobs: asked for one more whenever a lane is free.

        Raises:
            RunError: another run of the pair is in progress.
        """
        waiting, free, numbered = [], list(reversed(range(self.size))), enumerate(jobs)
        with self._pair.one_at_a_time():
            try:
                while True:
                    while free and (job := next(numbered, None)) is not None:
                        lane = _Lane(free.pop(), job[0], greenlet(job[1]))
                        waiting.append(lane)
                        yield from self._go_on(lane, self._pairs[lane.place], waiting, free)
                    if not waiting:
                        return
                    for lane, logits in self._answered(waiting):
                        yield from self._go_on(lane, logits, waiting, free)
            finally:
                with torch.inference_mode():  # which each of them has entered, and leaves now
                    for lane in waiting:
                        lane.run.throw(GreenletExit)

    def _go_on(self, lane: _Lane, value: object, waiting: list[_Lane], free: list[int]) -> Iterator[Ended[T]]:
        with torch.inference_mode():
            result = lane.run.switch(value)
        if lane.run.dead:
            waiting.remove(lane)
            free.append(lane.place)
            yield Ended(lane.number, result)
        else:
            lane.asked = result
            self._timers[lane.place].leave()

    def _answered(self, waiting: list[_Lane]) -> Iterator[tuple[_Lane, Tensor]]:
        """One pass of one model for all lanes that wait for it.

        The draft model's come first: once nobody waits for it, all wait for the target, whose passes are dear.
        """
        role: Role = "draft" if any(lane.asked and lane.asked.role == "draft" for lane in waiting) else "target"
        lanes = [lane for lane in waiting if lane.asked and lane.asked.role == role]
        wanted = [lane.asked.wanted for lane in lanes if lane.asked]
        start = time.perf_counter()
        with torch.inference_mode():
            logits = self._readers[role].read(wanted)
        self.passes[role] += 1
        seconds = time.perf_counter() - start
        tokens = sum(each.ids.shape[0] for each in wanted)
        for lane, each, rows in zip(lanes, wanted, logits, strict=True):
            lane.asked = None
            self._timers[lane.place].back(seconds * each.ids.shape[0] / tokens)
            yield lane, rows
