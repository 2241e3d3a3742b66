"""Where the time goes: spans inside the two models, and everything else.

On CUDA a span is a pair of events that is read after the round's single transfer to the host, so
measuring adds no synchronisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cascli.trace import RoundSeconds, Seconds

Phase = Literal["prefill", "draft", "verify"]


class Clock:
    """Measures one run on one device; seconds."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        """Measure with `now`; CUDA events are used only with the default, by a run that has the device to itself."""
        self._now = now
        self._cuda = device.type == "cuda" and now is time.perf_counter
        self._device = device
        self._totals: dict[str, float] = {"prefill": 0.0, "draft": 0.0, "verify": 0.0}
        self._at_last_round = dict(self._totals)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._away = 0.0
        self._paused: float | None = None
        self._last_lap = 0.0
        self._synchronise()
        self._start = self._now()

    def _synchronise(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)

    @contextmanager
    def span(self, phase: Phase) -> Iterator[None]:
        """Count the time of the enclosed model call under `phase`."""
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)  # events default to the current card's
            begin.record(stream)
            yield
            end.record(stream)
            self._pending.append((phase, begin, end))
        else:
            start = self._now()
            yield
            self._totals[phase] += self._now() - start

    def _collect(self) -> None:
        for phase, begin, end in self._pending:
            self._totals[phase] += begin.elapsed_time(end) / 1000
        self._pending.clear()

    def lap(self) -> RoundSeconds:
        """Seconds since the last lap, per model and in total; call it after the round's transfer."""
        self._collect()
        draft, verify = (self._totals[phase] - self._at_last_round[phase] for phase in ("draft", "verify"))
        self._at_last_round = dict(self._totals)
        now = self.elapsed()
        total, self._last_lap = now - self._last_lap, now
        return RoundSeconds(draft=draft, verify=verify, total=total)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the enclosed time, which belongs to observers of the run or to concurrent runs."""
        self._paused = self._now()
        yield  # a run that is never resumed ended here: there is nothing to subtract
        self._away += self._now() - self._paused
        self._paused = None

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Exclude the enclosed operations, which only observers need; on a GPU they count.

        There they are launched while the device still works: the host's time for them says nothing about the run's, and
        leaving it out would make the run seem faster than without observers.
        """
        if self._device.type == "cuda":
            yield
            return
        with self.paused():
            yield

    def elapsed(self) -> float:
        """Seconds since the run began; up to the pause if it is paused, since a run may end while suspended."""
        now = self._now() if self._paused is None else self._paused
        return now - self._start - self._away

    def finish(self) -> Seconds:
        """The times of the whole run; the four parts add up to the total."""
        self._synchronise()
        total = self.elapsed()
        self._collect()
        inside = sum(self._totals.values())
        return Seconds(total=total, other=max(total - inside, 0.0), **self._totals)
