"""Lanes: functions that run side by side in one thread, and whose model calls are answered together.

Each lane is a greenlet: a model call switches to the caller that started the lanes, which continues once all of them
are waiting. Nothing but the kernels runs in parallel, so what a lane computes does not depend on the others.
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
from cascli.models.batch.reader import DraftRequest, Reader, ReadRequest
from cascli.models.calls import ROLES, Calls, Role
from cascli.models.choose_runner import choose_readers
from cascli.models.memory import available
from cascli.models.pair import Pair
from cascli.models.runner import Runner
from cascli.sampling.autoregressive import Sampler, Written

T = TypeVar("T")

_UNREAD = 2
"""Maximum number of tokens that a round leaves unread: the drafts of all lanes begin with blocks of this length."""


class Ended(NamedTuple, Generic[T]):
    """A finished job."""

    place: int
    """The job's index, in the order of the jobs."""
    result: T


class _LaneRequest(NamedTuple):
    role: Role
    request: ReadRequest | DraftRequest

    @property
    def kind(self) -> tuple[Role, Sampler | None]:
        """Requests of the same kind can be answered together."""
        return self.role, self.request.sampler if isinstance(self.request, DraftRequest) else None


class _Lane:
    """A job in progress: its place in the batch, its number among the jobs, and what it is waiting for."""

    def __init__(self, place: int, number: int, run: greenlet) -> None:
        self.place, self.number, self.run = place, number, run
        self.request: _LaneRequest | None = None


class LaneTimer:
    """The clock of a lane: the time that it runs, plus its share of the passes that it waits for.

    Over all lanes these add up to the time of the batch.
    """

    def __init__(self) -> None:
        self._elsewhere = 0.0
        self._left: float | None = None

    def __call__(self) -> float:
        """Seconds since an arbitrary start."""
        return time.perf_counter() - self._elsewhere

    def leave(self) -> None:
        """Record that other lanes run from now on."""
        self._left = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Add the time of work that was reused instead of repeated; a negative number subtracts."""
        self._elsewhere -= seconds

    def back(self, share: float) -> None:
        """Record that the lane runs again, after passes of which `share` seconds were its own."""
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
        """Number of tokens that were read."""
        return self._own.length

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read together with the other lanes; a long block is read alone and immediately."""
        if self._reader.shares(ids.shape[0]):
            logits: Tensor = self._lanes.ask(self._role, ReadRequest(self._place, ids, rows))
            return logits
        logits = self._own.forward(ids, rows)
        self._lanes.wait_for(self._role)
        return logits

    @property
    def in_parts(self) -> bool:
        """Delegates to the model's own runner."""
        return self._own.in_parts

    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Read alone and immediately."""
        logits = self._own.read_at(start, ids, rows)
        self._lanes.wait_for(self._role)
        return logits

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._own.truncate(length)

    def steps_left(self, prompt_ids: Tensor, answer: Tensor) -> int | None:
        """Delegates to the model's own runner."""
        return self._own.steps_left(prompt_ids, answer)

    @property
    def goes_by_target(self) -> bool:
        """Delegates to the model's own runner."""
        return self._own.goes_by_target

    @property
    def prompt_block(self) -> int | None:
        """Delegates to the model's own runner."""
        return self._own.prompt_block

    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Read a prompt in blocks, reusing blocks that were read before: each counts the time of its first reading.

        A block is shared by all prompts that begin with the same tokens up to its end. Where texts share no passes, the
        model's own runner reads the prompt.
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
        """Number of prompt tokens that an encoder has read."""
        return self._own.encoded

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room for this text."""
        self._reader.elsewhere = self._lanes.unallocated(apart_from=self._role)
        self._reader.prepare(self._place, prompt, answer, calls, sampler)

    @property
    def capture_seconds(self) -> float | None:
        """Time spent on capturing so far, for all lanes."""
        return self._reader.capture_seconds

    @property
    def compile_seconds(self) -> float | None:
        """Time spent on compiling by the model's own runner."""
        return self._own.compile_seconds


class LaneWriter(LaneRunner):
    """For a reader that also draws: whole drafts wait for those of the other lanes."""

    draws: ClassVar[bool] = True

    def write(self, ids: Tensor, sampler: Sampler, u: Tensor, *, read_last: bool) -> Written:
        """Write together with the other lanes, after reading a long block first; alone where texts share no passes."""
        if self._reader.shares(1):
            if ids.shape[0] > _UNREAD:
                self.forward(ids[:-1], 1)
                ids = ids[-1:]
            written: Written = self._lanes.ask(self._role, DraftRequest(self._place, ids, sampler, u, read_last))
            return written
        written = self._own.write(ids, sampler, u, read_last=read_last)
        self._lanes.wait_for(self._role)
        return written


_Prompt = tuple[Role, tuple[int, ...]]
"""A model's role, and the tokens of a prompt that it has read, up to the end of a block."""


class _KeptBlock(NamedTuple):
    """The kept states of a prompt block, and how long reading it took."""

    states: Sequence[tuple[Tensor, Tensor]]
    seconds: float


class Lanes:
    """Up to `size` concurrent answers of a pair."""

    def __init__(self, pair: Pair, size: int, *, keep_prompts: bool = False) -> None:
        """Take the pair whose weights are used; each lane gets its own caches.

        Args:
            pair: the loaded pair.
            size: batch size.
            keep_prompts: read a prompt once however often it is used, and leading blocks that several prompts share
                once for all of them, as long as their states fit into an eighth of the available memory. A run that
                reuses a reading is charged the time that it took.
        """
        self._pair, self.size = pair, size
        self.prompts: dict[_Prompt, _KeptBlock] = {}
        self._room = (available(pair.device) or 0) // 8 if keep_prompts else 0
        self.readers = choose_readers({role: model.runner.own for role, model in pair.models.items()}, size)
        """The reader of each model, which reads for all lanes."""
        self.timers = [LaneTimer() for _ in range(size)]
        self._pairs = [self._pair_of(place) for place in range(size)]
        self.passes: dict[Role, int] = dict.fromkeys(ROLES, 0)
        """Number of forward passes that answered lanes, per model."""
        for role, why in self.alone_because.items():
            text = f"the {role} model reads the texts of a batch one by one: {why}"
            warnings.warn(text, PairWarning, stacklevel=3)

    @property
    def alone_because(self) -> dict[Role, str]:
        """For each model whose texts are read in separate passes, the reason."""
        return {role: each.alone_because for role, each in self.readers.items() if each.alone_because}

    def unallocated(self, apart_from: Role) -> int:
        """Bytes of the other models' caches that were requested but are not allocated yet."""
        return sum(each.unallocated for role, each in self.readers.items() if role != apart_from)

    def keep(self, prompt: _Prompt, kept: Callable[[], Sequence[tuple[Tensor, Tensor]] | None], seconds: float) -> None:
        """Keep the states of the last block of a prompt's beginning, if there is room for them."""
        states = kept() if self._room > 0 else None
        if states is None:
            return
        self._room -= sum(each.nbytes for layer in states for each in layer)
        if self._room >= 0:
            self.prompts[prompt] = _KeptBlock(states, seconds)

    def _pair_of(self, place: int) -> Pair:
        runners = {role: model.runner.around(self._lane_of(role, place)) for role, model in self._pair.models.items()}
        return self._pair.with_runners(runners, timer=self.timers[place], batch_size=self.size)

    def _lane_of(self, role: Role, place: int) -> LaneRunner:
        reader = self.readers[role]
        return (LaneWriter if reader.draws else LaneRunner)(self, reader, role, place)

    def ask(self, role: Role, request: ReadRequest | DraftRequest) -> Any:
        """Called in a lane: suspend it until its request is answered; return the logits, or what was written."""
        return cast(greenlet, getcurrent().parent).switch(_LaneRequest(role, request))

    def wait_for(self, role: Role) -> None:
        """Wait until a model's device is done, so that the time of one pass is not counted in the next.

        Done once per pass, not once per lane: what lanes compute between their passes is short.
        """
        device = self._pair.models[role].device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def run(self, jobs: Iterable[Callable[[Pair], T]]) -> Generator[Ended[T]]:
        """Run jobs, each with its own pair on the same weights; yield what they return as they end.

        An exception in one of them ends them all.

        Args:
            jobs: the next one is taken whenever a lane is free.

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
                        yield from self._resume(lane, self._pairs[lane.place], waiting, free)
                    if not waiting:
                        return
                    for lane, answer in self._run_pass(waiting):
                        yield from self._resume(lane, answer, waiting, free)
            finally:
                with torch.inference_mode():  # each of the lanes has entered it, and leaves it now
                    for lane in waiting:
                        self.timers[lane.place].back(0.0)
                        lane.run.throw(GreenletExit)

    def _resume(self, lane: _Lane, value: object, waiting: list[_Lane], free: list[int]) -> Iterator[Ended[T]]:
        with torch.inference_mode():
            result = lane.run.throw(value) if isinstance(value, Exception) else lane.run.switch(value)
        if lane.run.dead:
            waiting.remove(lane)
            free.append(lane.place)
            yield Ended(lane.number, result)
        else:
            lane.request = result
            self.timers[lane.place].leave()

    def _run_pass(self, waiting: Sequence[_Lane]) -> Iterator[tuple[_Lane, Tensor | Written | Exception]]:
        """Run one pass of one model, or one draft of several passes, for all lanes that wait for it.

        An error is passed to each of these lanes. The draft model goes first: once no lane waits for it, all wait for
        the target, whose passes are expensive.
        """
        pending = [(lane, lane.request) for lane in waiting if lane.request]
        kind = min((lane_request.kind for _, lane_request in pending), key=lambda each: ROLES.index(each[0]))
        batch = [(lane, lane_request.request) for lane, lane_request in pending if lane_request.kind == kind]
        answers, seconds = self._read(kind[0], [request for _, request in batch])
        tokens = sum(request.tokens for _, request in batch)
        for (lane, request), answer in zip(batch, answers, strict=True):
            lane.request = None
            self.timers[lane.place].back(seconds * request.tokens / tokens)
            yield lane, answer

    @torch.inference_mode()
    def _read(self, role: Role, requests: Sequence[Any]) -> tuple[Sequence[Tensor | Written | Exception], float]:
        """Answer requests of lanes, all reads or all drafts; return the time too, without that spent on capturing."""
        reader, drafts = self.readers[role], isinstance(requests[0], DraftRequest)
        start, captured = time.perf_counter(), reader.capture_seconds or 0.0
        answers: Sequence[Tensor | Written | Exception]
        try:
            answers = reader.write(requests) if drafts else reader.read(requests)
            self.wait_for(role)
        except (torch.OutOfMemoryError, MemoryError) as error:
            answers = [error] * len(requests)
        self.passes[role] += max(each.write.steps for each in requests) if drafts else 1
        return answers, time.perf_counter() - start - ((reader.capture_seconds or 0.0) - captured)
