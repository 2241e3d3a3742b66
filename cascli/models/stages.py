"""Progress of loading: stages with their layers, as shares of the whole, and the time left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_SURE_AFTER = 1.0
"""Seconds of loading a model before its speed is used for an estimate."""


@dataclass(frozen=True)
class Stage:
    """The current stage of loading."""

    text: str
    """Description, such as "packing the target: layer 3 of 28"."""
    done: int = 0
    """Bytes of weights that are ready, over all models."""
    total: int = 0
    """Total bytes of weights, over all models; 0 if nothing can be counted."""
    seconds_left: float | None = None
    """Estimated time left; None where it would be a guess: at the start, and while another model is still to come."""


OnStage = Callable[[Stage], None]


def unseen(stage: Stage) -> None:
    """Show nothing."""
    del stage


@dataclass(frozen=True)
class Work:
    """The work of loading one model."""

    role: str
    verb: str
    """Kind of work: reading or packing, which differ in speed."""
    weights: int
    width: int
    """Bytes per weight once in memory."""
    layers: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.weights * self.width


class Stages:
    """Counts the work of loading, model by model, and reports the progress."""

    def __init__(self, on_stage: OnStage, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_stage, self._clock = on_stage, clock
        self._todo: list[Work] = []
        self._total = self._before = self._done = 0
        self._since: tuple[float, int] | None = None

    def plan(self, works: list[Work]) -> None:
        """Set the models to be loaded, in this order."""
        self._todo, self._total = list(works), sum(work.size for work in works)

    def report(self, text: str) -> None:
        """Report a stage that cannot be counted."""
        self._on_stage(Stage(text, self._done, self._total))

    def begin(self) -> None:
        """Start the next model."""
        self._since = None
        self._report_layer("")

    def reached(self, name: str, weights: int) -> None:
        """Count `weights` weights, of a layer of this name, as ready."""
        work = self._todo[0]
        self._done = min(self._done + weights * work.width, self._before + work.size)
        if self._since is None:  # the time before the first layer does not predict that of the others
            self._since = (self._clock(), self._done)
        self._report_layer(name)

    def end(self) -> None:
        """Finish the model, counting all of its planned work as done even if fewer weights were counted."""
        work = self._todo.pop(0)
        self._before += work.size
        self._done = self._before
        self._on_stage(Stage(f"{work.verb} the {work.role}", self._done, self._total))

    def _report_layer(self, name: str) -> None:
        work = self._todo[0]
        layer = _LAYER.search(name)
        place = f": layer {int(layer[1]) + 1} of {work.layers}" if layer and int(layer[1]) < work.layers else ""
        self._on_stage(Stage(f"{work.verb} the {work.role}{place}", self._done, self._total, self._left()))

    def _left(self) -> float | None:
        """Seconds left for the last model, estimated from its own speed; None for earlier ones, as models differ."""
        if self._since is None or len(self._todo) > 1:
            return None
        since, done_then = self._since
        spent = self._clock() - since
        if spent < _SURE_AFTER or self._done <= done_then:
            return None
        return spent * (self._total - self._done) / (self._done - done_then)
