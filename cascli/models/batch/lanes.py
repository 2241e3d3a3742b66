"""Lanes: functions that run side by side in one thread, and whose model calls are answered together.

Each lane is a greenlet: a call of a model switches to whoever has begun the lanes, who goes on once all of them wait.
Nothing runs in parallel but the kernels, so that what a lane computes does not depend on the others.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from cascli.errors import PairWarning
from cascli.models.batch.reader import Reader, Wanted, WantedDraft
from cascli.models.calls import ROLES, Calls, Role
from cascli.models.choose_runner import choose_readers
from cascli.models.memory import available
from cascli.models.pair import Pair
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler, Written

T = TypeVar("T")

_UNREAD = 2
"""What a round leaves unread at most: drafts of all lanes begin with blocks of this length."""


class Ended(NamedTuple, Generic[T]):
    """What has become of a job."""

    place: int
    """Among the jobs, in their order."""
    result: T


class _Asked(NamedTuple):
    role: Role
    wanted: Wanted | WantedDraft

    @property
    def kind(self) -> tuple[Role, Sampler | None]:
        """What can be answered together."""
        return self.role, self.wanted.sampler if isinstance(self.wanted, WantedDraft) else None


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

    def add(self, seconds: float) -> None:
        """Let so much more time have passed: what is not done again took it once; less, if negative."""
        self._elsewhere -= seconds

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
        if self._reader.shares(ids.shape[0]):
            logits: Tensor = self._lanes.ask(self._role, Wanted(self._place, ids, rows))
            return logits
        logits = self._own.forward(ids, rows)
        self._lanes.wait_for(self._role)
        return logits

    @property
    def in_parts(self) -> bool:
        """As the model's own runner."""
        return self._own.in_parts

    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Alone and at once."""
        logits = self._own.read_at(start, ids, rows)
        self._lanes.wait_for(self._role)
        return logits

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._own.truncate(length)

    def steps_left(self, length: int) -> int | None:
        """As the model's own runner."""
        return self._own.steps_left(length)

    @property
    def goes_by_target(self) -> bool:
        """As the model's own runner."""
        return self._own.goes_by_target

    @property
    def prompt_block(self) -> int | None:
        """As the model's own runner."""
        return self._own.prompt_block

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Read a prompt by blocks, or take what is left of a reading: that takes no time, but counts as it did then.

        A block is one and the same to every prompt that begins with the same tokens up to its end. Where texts share no
        passes, the model's own runner reads the prompt.
        """
        if self._reader.alone_because is not None:
            first = self._own.begin(prompt_ids)
            self._lanes.wait_for(self._role)
            return first
        self.reset()
        timer, whole = self._lanes.timers[self._place], tuple(prompt_ids.tolist())
        for ids in self.prompt_blocks(prompt_ids):
            start, began = self.length, timer()
            prompt = self._role, whole[: start + ids.shape[0]]
            known = self._lanes.prompts.get(prompt)
            if known is None:
                self.forward(ids, 1)
                seconds = timer() - began
                self._lanes.keep(prompt, partial(self._reader.kept, self._place, start), seconds)
            else:
                self._reader.put(self._place, known.states)
                seconds = known.seconds
            timer.add(seconds - (timer() - began))
        return prompt_ids[-1:]

    @property
    def encoded(self) -> int:
        """How many tokens of the prompt an encoder has read."""
        return self._own.encoded

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room for this text."""
        self._reader.elsewhere = self._lanes.unmade(apart_from=self._role)
        self._reader.prepare(self._place, prompt, answer, calls, sampler)

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far, for all lanes."""
        return self._reader.capture_seconds

    @property
    def compile_seconds(self) -> float | None:
        """Of the model's own runner."""
        return self._own.compile_seconds


class LaneWriter(LaneRunner):
    """Where a reader also draws: whole drafts wait for those of the other lanes."""

    draws: ClassVar[bool] = True

    def write(self, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
        """Written together with others, but for what is long to read or nobody shares."""
        if self._reader.shares(1):
            if ids.shape[0] > _UNREAD:
                self.forward(ids[:-1], 1)
                ids = ids[-1:]
            together: Written = self._lanes.ask(self._role, WantedDraft(self._place, ids, sampler, u, read_last))
            return together
        written = self._own.write(ids, sampler, u, read_last=read_last)
        self._lanes.wait_for(self._role)
        return written


_Prompt = tuple[Role, tuple[int, ...]]
"""A model, and what it has read of a prompt: up to the end of a block."""


class _Read(NamedTuple):
    """What is left of a block of a prompt that was read, and how long that took."""

    states: Sequence[tuple[Tensor, Tensor]]
    seconds: float


class Lanes:
    """Up to `size` answers of a pair under way at once."""

    def __init__(self, pair: Pair, size: int, *, keep_prompts: bool = False) -> None:
        """Take the pair whose weights are used; each lane gets caches of its own.

        Args:
            pair: loaded.
            size: of the batch.
            keep_prompts: read a prompt once however often it is asked, and what prompts begin with alike in whole
                blocks once for all of them, while an eighth of the memory holds what is left of them. Whoever asks
                again has the reading in its time, as long as it took.
        """
        self._pair, self.size = pair, size
        self.prompts: dict[_Prompt, _Read] = {}
        self._room = (available(pair.device) or 0) // 8 if keep_prompts else 0
        self.readers = choose_readers({role: model.runner.own for role, model in pair.models.items()}, size)
        """What reads for the lanes, of each model."""
        self.timers = [LaneTimer() for _ in range(size)]
        self._pairs = [self._pair_of(place) for place in range(size)]
        self.passes: dict[Role, int] = dict.fromkeys(ROLES, 0)
        """Forward passes that answered lanes, of each model."""
        for role, why in self.alone_because.items():
            text = f"the {role} model reads the texts of a batch one by one: {why}"
            warnings.warn(text, PairWarning, stacklevel=3)

    @property
    def alone_because(self) -> dict[Role, str]:
        """Why a model's texts are read in passes of their own, of those whose are."""
        return {role: each.alone_because for role, each in self.readers.items() if each.alone_because}

    def unmade(self, apart_from: Role) -> int:
        """Bytes of caches that other models have been asked for and have not made yet."""
        return sum(each.unmade for role, each in self.readers.items() if role != apart_from)

    def keep(self, prompt: _Prompt, kept: Callable[[], Sequence[tuple[Tensor, Tensor]] | None], seconds: float) -> None:
        """Keep what is left of the last block of a prompt's beginning, if there is room for it."""
        states = kept() if self._room > 0 else None
        if states is None:
            return
        self._room -= sum(each.nbytes for layer in states for each in layer)
        if self._room >= 0:
            self.prompts[prompt] = _Read(states, seconds)

    def _pair_of(self, place: int) -> Pair:
        runners = {role: model.runner.around(self._lane_of(role, place)) for role, model in self._pair.models.items()}
        return self._pair.with_runners(runners, timer=self.timers[place], batch_size=self.size)

    def _lane_of(self, role: Role, place: int) -> LaneRunner:
        reader = self.readers[role]
        return (LaneWriter if reader.draws else LaneRunner)(self, reader, role, place)

    def ask(self, role: Role, wanted: Wanted | WantedDraft) -> Any:
        """Called in a lane: suspend it until a pass has read what it wants; the logits, or what was written."""
        return cast(greenlet, getcurrent().parent).switch(_Asked(role, wanted))

    def wait_for(self, role: Role) -> None:
        """Until a model's device is done, so that the time that a pass takes is not counted as the next one's.

        Once a pass, and not once a lane: what lanes compute between their passes is short.
        """
        device = self._pair.models[role].device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

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
                    for lane, answer in self._answered(waiting):
                        yield from self._go_on(lane, answer, waiting, free)
            finally:
                with torch.inference_mode():  # which each of them has entered, and leaves now
                    for lane in waiting:
                        lane.run.throw(GreenletExit)

    def _go_on(self, lane: _Lane, value: object, waiting: list[_Lane], free: list[int]) -> Iterator[Ended[T]]:
        with torch.inference_mode():
            result = lane.run.throw(value) if isinstance(value, Exception) else lane.run.switch(value)
        if lane.run.dead:
            waiting.remove(lane)
            free.append(lane.place)
            yield Ended(lane.number, result)
        else:
            lane.asked = result
            self.timers[lane.place].leave()

    def _answered(self, waiting: Sequence[_Lane]) -> Iterator[tuple[_Lane, Tensor | Written | Exception]]:
        """One pass of one model for all lanes that wait for it, or one draft of several; its error is each lane's.

        The draft model's come first: once nobody waits for it, all wait for the target, whose passes are dear.
        """
        asking = [(lane, lane.asked) for lane in waiting if lane.asked]
        kind = min((asked.kind for _, asked in asking), key=lambda each: ROLES.index(each[0]))
        together = [(lane, asked.wanted) for lane, asked in asking if asked.kind == kind]
        answers, seconds = self._read(kind[0], [wanted for _, wanted in together])
        tokens = sum(wanted.tokens for _, wanted in together)
        for (lane, wanted), answer in zip(together, answers, strict=True):
            lane.asked = None
            self.timers[lane.place].back(seconds * wanted.tokens / tokens)
            yield lane, answer

    @torch.inference_mode()
    def _read(self, role: Role, wanted: Sequence[Any]) -> tuple[Sequence[Tensor | Written | Exception], float]:
        """What lanes have asked for, all reads or all drafts, and how long it took; capturing is nobody's time."""
        reader, drafts = self.readers[role], isinstance(wanted[0], WantedDraft)
        start, captured = time.perf_counter(), reader.capture_seconds or 0.0
        answers: Sequence[Tensor | Written | Exception]
        try:
            answers = reader.write(wanted) if drafts else reader.read(wanted)
            self.wait_for(role)
        except (torch.OutOfMemoryError, MemoryError) as error:
            answers = [error] * len(wanted)
        self.passes[role] += max(each.write.steps for each in wanted) if drafts else 1
        return answers, time.perf_counter() - start - ((reader.capture_seconds or 0.0) - captured)
