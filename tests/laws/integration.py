"""Exact integration over the random numbers of a run of the real engine.

A run is a function of its uniforms that is constant on boxes: every draw cuts its uniform at the steps of a
CDF, every acceptance test at the acceptance probability. `exact_law` walks over these boxes depth first. It
runs the engine once inside each, adds the box's volume to the resulting text, and so obtains the joint law
of the text up to rounding. Only draws and tests that can matter cut: in token tests, what follows the first
rejection of a round is discarded; in block verification every draft matters, and so do the tests from the
longest prefix down to the one that is kept. A uniform that is read twice is cut twice, so reuse across
positions shows up as the dependence that it is.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from cascli.decoding import speculation
from cascli.sampling import distributions, rejection
from tests.reference.process import Law

Cell = tuple[str, int]  # stream and position
THIN = 1e-13  # boxes thinner than this are skipped; the law lacks their volume


class Cut(NamedTuple):
    """One piece [low, high) of a cell's uniform."""

    cell: Cell
    low: float
    high: float


class Point:
    """Uniforms for one run, inside the box of the given cuts; collects the run's further cuts."""

    def __init__(self, cuts: tuple[Cut, ...]) -> None:
        self.given = len(cuts)
        self.cuts = list(cuts)
        self.others: list[tuple[Cut, ...]] = []  # the neighbouring boxes, still to be visited
        self._seen = 0
        self._boxes: dict[Cell, tuple[float, float]] = {cut.cell: (cut.low, cut.high) for cut in cuts}
        self._cells: dict[float, Cell] = {}
        self._draws: list[tuple[float, np.ndarray]] = []  # read, but not yet known to matter

    # the three streams, as the engine reads them

    def draw(self, start: int, n: int) -> Tensor:
        return self._values("draw", start, n)

    def accept(self, start: int, n: int) -> Tensor:
        return self._values("accept", start, n)

    def residual(self, start: int, n: int) -> Tensor:
        return self._values("residual", start, n)

    def draw_again(self, start: int, n: int) -> Tensor:
        return self._values(f"draw again after {start}", 0, n)

    def accept_again(self, start: int, n: int) -> Tensor:
        return self._values(f"accept again after {start}", 0, n)

    def _values(self, stream: str, start: int, n: int) -> Tensor:
        return torch.tensor([self._value((stream, i)) for i in range(start, start + n)], dtype=torch.float64)

    def _value(self, cell: Cell) -> float:
        """A point well inside the cell's piece, different from every other cell's."""
        low, high = self._boxes.get(cell, (0.0, 1.0))
        share = 0.3 + 0.4 * np.random.default_rng([*cell[0].encode(), cell[1]]).random()
        u = low + share * (high - low)
        assert self._cells.setdefault(u, cell) == cell
        return u

    # where the engine uses the uniforms

    def sample(self, probs: Tensor, u: Tensor) -> Tensor:
        """Replaces `distributions.sample`: draws the same tokens and records the CDF."""
        ids = SAMPLE(probs, u)
        rows = probs.reshape(-1, probs.shape[-1]).double().numpy()
        for row, point, token in zip(rows, u.flatten().tolist(), ids.flatten().tolist(), strict=True):
            steps = np.concatenate([[0.0], np.cumsum(row) / row.sum()])
            assert steps[token] <= point < steps[token + 1], "not the inverse of the CDF"
            self._draws.append((point, steps))
        return ids

    def verify_block(self, pi: Tensor, q: Tensor, drafted: Tensor, u_accept: Tensor, u_next: Tensor) -> Any:
        """Replaces `verify_block`: cuts by each draft that was drawn, then by its test, up to the first rejection."""
        k = drafted.shape[0]
        prob = rejection.acceptance(pi[:k], q, drafted)
        for drawn, u, accept in zip(self._of_drafts(k), u_accept.tolist(), prob, strict=True):
            if drawn is not None:
                self._cut(*drawn)
            self._cut(u, np.array([0.0, accept.item(), 1.0]))
            if u >= accept:
                break
        self._draws.clear()
        outcome = rejection.verify_block(pi, q, drafted, u_accept, u_next)
        assert torch.equal(outcome.accept_prob, prob)
        self.settle()
        return outcome

    def verify_prefixes(self, pi: Tensor, q: Tensor, drafted: Tensor, u_accept: Tensor, u_next: Tensor) -> Any:
        """Replaces `verify_prefixes`: cuts by all drafts, then by tests from the longest prefix to the one kept."""
        draws = self._of_drafts(drafted.shape[0])
        self._draws.clear()
        outcome = rejection.verify_prefixes(pi, q, drafted, u_accept, u_next)
        for drawn in draws:
            if drawn is not None:
                self._cut(*drawn)
        for u, passing in reversed(list(zip(u_accept.tolist(), outcome.accept_prob.tolist(), strict=True))):
            self._cut(u, np.array([0.0, passing, 1.0]))
            if u < passing:
                break
        self.settle()
        return outcome

    def _of_drafts(self, k: int) -> list[tuple[float, np.ndarray] | None]:
        """How the last k tokens were drawn; Nones if they were not drawn."""
        certain = not self._draws
        assert certain or len(self._draws) >= k
        return [None] * k if certain else self._draws[len(self._draws) - k :]

    def settle(self) -> None:
        """Cut by the recorded draws, which do matter."""
        for point, steps in self._draws:
            self._cut(point, steps)
        self._draws.clear()

    def _cut(self, u: float, steps: np.ndarray) -> None:
        cell = self._cells[u]
        if self._seen < self.given:
            cut = self.cuts[self._seen]
            assert cut.cell == cell and cut.low <= u < cut.high, "the run is not a function of its uniforms"
        else:
            before = tuple(self.cuts)
            low, high = self._boxes.get(cell, (0.0, 1.0))
            edges = np.unique(np.clip(steps, low, high))
            pieces = [Cut(cell, a, b) for a, b in itertools.pairwise(edges) if b - a > THIN]
            (here,) = [piece for piece in pieces if piece.low <= u < piece.high]
            self.others += [(*before, piece) for piece in pieces if piece is not here]
            self.cuts.append(here)
            self._boxes[cell] = (here.low, here.high)
        self._seen += 1

    @property
    def volume(self) -> float:
        return float(np.prod([high - low for low, high in self._boxes.values()]))


SAMPLE = distributions.sample


def exact_law(run: Callable[[Point], tuple[int, ...]], max_runs: int = 20_000) -> Law:
    """The law of what `run` returns, given the uniforms of a run."""
    law: Law = defaultdict(float)
    stack: list[tuple[Cut, ...]] = [()]
    for _ in range(max_runs):
        if not stack:
            return dict(law)
        point = Point(stack.pop())
        with (
            mock.patch.object(distributions, "sample", point.sample),
            mock.patch.object(speculation, "verify_block", point.verify_block),
            mock.patch.object(speculation, "verify_prefixes", point.verify_prefixes),
        ):
            text = run(point)
        point.settle()
        law[text] += point.volume
        stack += point.others
    raise AssertionError(f"more than {max_runs} boxes")
