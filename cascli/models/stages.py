"""What loading tells of how far it is: stages with their layers, as shares of the whole, and how long is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_SURE_AFTER = 1.0
"""Seconds of a model before its speed says anything."""


@dataclass(frozen=True)
class Stage:
    """Where loading is."""

    text: str
    """Such as "packing the target: layer 3 of 28"."""
    done: int = 0
    """Bytes of weights that stand ready, of all models."""
    total: int = 0
    """Of these, how many there will be; 0 where nothing can be counted."""
    seconds_left: float | None = None
    """None where it would be a guess: at the beginning, and while another model is still to come."""


OnStage = Callable[[Stage], None]


def unseen(stage: Stage) -> None:
    """Shows nothing."""
    del stage


@dataclass(frozen=True)
class Work:
    """What is to be done for one model."""

    role: str
    verb: str
    """What it is: reading and packing differ in speed."""
    weights: int
    width: int
    """Bytes of a weight as it will lie in memory."""
    layers: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.weights * self.width


class Stages:
    """Counts the work of loading, model by model, and tells where it is."""

    def __init__(self, on_stage: OnStage, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_stage, self._clock = on_stage, clock
        self._todo: list[Work] = []
        self._total = self._before = self._done = 0
        self._since: tuple[float, int] | None = None

    def plan(self, works: list[Work]) -> None:
        """Say what is to come, in this order."""
        self._todo, self._total = list(works), sum(work.size for work in works)

    def say(self, text: str) -> None:
        """A stage that cannot be counted."""
        self._on_stage(Stage(text, self._done, self._total))

    def begin(self) -> None:
        """The next model's turn."""
        self._since = None
        self._say_layer("")

    def reached(self, name: str, weights: int) -> None:
        """So many weights, of a layer of this name, stand ready."""
        work = self._todo[0]
        self._done = min(self._done + weights * work.width, self._before + work.size)
        if self._since is None:  # what came before the first layer says nothing of the others
            self._since = (self._clock(), self._done)
        self._say_layer(name)

    def end(self) -> None:
        """The model is there, however exact its count was."""
        work = self._todo.pop(0)
        self._before += work.size
        self._done = self._before
        self._on_stage(Stage(f"{work.verb} the {work.role}", self._done, self._total))

    def _say_layer(self, name: str) -> None:
        work = self._todo[0]
        layer = _LAYER.search(name)
        place = f": layer {int(layer[1]) + 1} of {work.layers}" if layer and int(layer[1]) < work.layers else ""
        self._on_stage(Stage(f"{work.verb} the {work.role}{place}", self._done, self._total, self._left()))

    def _left(self) -> float | None:
        """Seconds, by the speed of the present model alone, and if it is the last: no other is like it."""
        if self._since is None or len(self._todo) > 1:
            return None
        since, from_ = self._since
        spent = self._clock() - since
        if spent < _SURE_AFTER or self._done <= from_:
            return None
        return spent * (self._total - self._done) / (self._done - from_)
