"""The check of all counts together: its bound on false alarms holds, and it detects faults spread over many texts.

Its power is measured over forty audits of counts drawn from the law that a fault produces; one fault also runs through
the engine.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from cascli import Pair
from cascli.audit import fit, joint, tables
from cascli.audit import run as audit
from cascli.rules.base import Exact
from cascli.sampling import rejection
from cascli.strategies import parse

WIDTH = 16
QUICK, FULL = audit.QUICK.runs, audit.FULL.runs
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


# ---------------------------------------------------------------- false alarms


def every_count(runs: int, cells: int) -> list[tuple[int, ...]]:
    return [each for each in product(range(runs + 1), repeat=cells) if sum(each) == runs]


def chance(counts: tuple[int, ...], masses: list[float]) -> float:
    ways = math.factorial(sum(counts)) / math.prod(math.factorial(count) for count in counts)
    return ways * math.prod(mass**count for mass, count in zip(masses, counts, strict=True))


@pytest.mark.parametrize("masses", [[1.0], [0.5, 0.5], [0.9, 0.07, 0.03], [0.001, 0.009, 0.29, 0.7]])
def test_moments_equal_those_over_all_counts(masses: list[float]) -> None:
    runs = 12
    expected = [runs * mass for mass in masses]
    found = fit.log_moments(tuple(expected), runs)
    for tilt, moment in zip(fit.TILTS, found, strict=True):
        mean = math.fsum(
            chance(counts, masses) * math.exp(tilt * fit.likelihood_ratio(list(counts), expected))
            for counts in every_count(runs, len(masses))
        )
        assert moment == pytest.approx(math.log(mean), abs=1e-9)


@pytest.mark.parametrize("masses", [[0.5, 0.5], [0.9, 0.07, 0.03], [0.001, 0.009, 0.29, 0.7]])
def test_the_tail_bound_holds_to_the_very_end(masses: list[float]) -> None:
    """By enumeration: the bound holds even at probabilities of 1e-7 and less, and is below 1/e at likelier counts."""
    runs = 24
    expected = [runs * mass for mass in masses]
    all_counts = every_count(runs, len(masses)) if len(masses) < 4 else _some(runs)
    found = sorted((fit.likelihood_ratio(list(counts), expected), chance(counts, masses)) for counts in all_counts)
    tail = 0.0
    for value, mass in reversed(found):
        tail += mass
        assert fit.log_tail(value - 1e-9, tuple(expected), runs) >= math.log(tail) - 1e-9
    likely = next(value for value, _ in found if value > 5)
    assert fit.log_tail(likely, tuple(expected), runs) < -1


def _some(runs: int) -> list[tuple[int, ...]]:
    """Counts of four cells, restricted to few runs in the first two, which have hardly any mass: this is fast."""
    return [(a, b, c, runs - a - b - c) for a in range(4) for b in range(6) for c in range(runs + 1 - a - b)]


@pytest.mark.parametrize("runs", [QUICK, FULL])
@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_correct_counts_exceed_a_surprise_no_more_often_than_stated(runs: int, concentration: float) -> None:
    """The bound holds over 2,000 audits even where most texts are rare and asymptotics fail."""
    rng = np.random.default_rng(3)
    masses = rng.dirichlet(np.full(WIDTH * WIDTH, concentration))
    law = {(i,): float(mass) for i, mass in enumerate(masses)}
    found = []
    for counts in rng.multinomial(runs, masses, size=2000):
        seen, expected = fit.pooled(Counter({(i,): int(n) for i, n in enumerate(counts)}), law, runs)
        found.append(-fit.log_tail(fit.likelihood_ratio(seen, expected), tuple(expected), runs) / math.log(10))
    assert min(expected) >= fit.LEAST
    assert all(np.mean(np.array(found) >= x) < 10**-x for x in (1, 2))  # in practice about a tenth of this
    assert max(found) < fit.ALARM - 2 and max(found) > 1


def test_pooled_cells_contain_every_run() -> None:
    law = {(0,): 0.9, (1,): 0.06, (2,): 0.03, (3,): 0.01, (4,): 0.0}
    counts = Counter({(0,): 90, (1,): 7, (3,): 3})
    assert fit.pooled(counts, law, 100) == ([10, 90], [pytest.approx(10), pytest.approx(90)])
    assert fit.pooled(counts, law, 10)[1] == [pytest.approx(10)]
    seen, expected = fit.pooled(counts, law, 10_000)
    assert seen == [3, 0, 7, 90] and sum(expected) == pytest.approx(10_000)


def test_an_impossible_text_has_infinite_surprise() -> None:
    assert fit.surprise(Counter({(1,): 1}), {(0,): 1.0, (1,): 0.0}, 1)[0] == math.inf


def test_few_runs_are_never_surprising() -> None:
    assert fit.surprise(Counter({(0, 1): 5}), {(0, 1): 0.5, (1, 0): 0.5}, 5) == (0.0, [1, 1])


# ---------------------------------------------------------------- power


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def tables_of(apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of draft and target after the empty text and after each token, `[1 + WIDTH, WIDTH]`."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(1 + WIDTH, WIDTH))
    return target + apart * rng.normal(size=target.shape), target


FAR, MIDDLE, NEAR = tables_of(0.8, 1), tables_of(0.4, 1), tables_of(0.3, 2)
"""TV(p, q) of the first token: 0.46, 0.21 and 0.12, spread over most tokens."""


def drawn(law: Vector, power: float) -> Vector:
    """The distribution drawn by inverting the CDF at u ** power."""
    cdf = np.minimum(law.cumsum() / law.sum(), 1)
    return np.diff(cdf ** (1 / power), prepend=0.0)


def written(
    logits: tuple[np.ndarray, np.ndarray], *, scale: float = 1, power: float = 1, from_pi: bool = False
) -> np.ndarray:
    """The law `[WIDTH, WIDTH]` of two tokens, the first one drafted, written by code with a fault.

    Args:
        logits: of draft and target.
        scale: drafts are kept where scale * u is below pi / q.
        power: every token is drawn with u ** power.
        from_pi: the token after a rejection is drawn from pi instead of the residual.
    """
    q, p = softmax(logits[0][0]), softmax(logits[1])
    kept = drawn(q, power) * np.minimum(1, p[0] / q / scale)
    first = kept + (1 - kept.sum()) * drawn(p[0] if from_pi else np.maximum(p[0] - q, 0), power)
    return np.stack([mass * drawn(row, power) for mass, row in zip(first, p[1:], strict=True)])


def caught(logits: tuple[np.ndarray, np.ndarray], faulty: np.ndarray, runs: int, audits: int = 40) -> tuple[int, int]:
    """Number of audits that fail: by any single text, and by all texts together."""
    masses = written(logits)
    law = {(i, j): float(masses[i, j]) for i in range(WIDTH) for j in range(WIDTH)}
    alone = together = 0
    for row in np.random.default_rng(2).multinomial(runs, faulty.ravel() / faulty.sum(), size=audits):
        counts = Counter({text: int(count) for text, count in zip(law, row, strict=True) if count})
        alone += joint.deviation(counts, law, runs) > joint.SIGMAS
        together += fit.surprise(counts, law, runs)[0] > fit.ALARM
    return alone, together


@pytest.mark.parametrize("logits", [MIDDLE, NEAR])
@pytest.mark.parametrize("runs", [QUICK, FULL])
def test_right_counts_pass(logits: tuple[np.ndarray, np.ndarray], runs: int) -> None:
    assert caught(logits, written(logits), runs) == (0, 0)


MISSED: dict[str, tuple[tuple[np.ndarray, np.ndarray], np.ndarray]] = {
    "residual from pi": (MIDDLE, written(MIDDLE, from_pi=True)),
    "residual from pi, near": (NEAR, written(NEAR, from_pi=True)),
    "accepted at 0.7 u": (MIDDLE, written(MIDDLE, scale=0.7)),
    "accepted at 0.7 u, near": (NEAR, written(NEAR, scale=0.7)),
    "accepted at 0.8 u, near": (NEAR, written(NEAR, scale=0.8)),
    "drawn at u ** 0.8": (MIDDLE, written(MIDDLE, power=0.8)),
}
"""Faults of 0.07 to 0.12 TV in the first token, which no single text reveals."""


@pytest.mark.parametrize("fault", MISSED)
def test_a_quick_audit_detects_faults_spread_over_many_texts(fault: str) -> None:
    """The check detects each fault in at least 38 of forty audits; single texts reveal it in at most 2."""
    alone, together = caught(*MISSED[fault], QUICK)
    assert together >= 38 and alone <= 2, (alone, together)


SMALL: dict[str, tuple[tuple[np.ndarray, np.ndarray], np.ndarray]] = {
    "accepted at 0.8 u": (MIDDLE, written(MIDDLE, scale=0.8)),
    "accepted at 0.9 u": (MIDDLE, written(MIDDLE, scale=0.9)),
    "drawn at u ** 0.9": (MIDDLE, written(MIDDLE, power=0.9)),
    "drawn at u ** 0.9, near": (NEAR, written(NEAR, power=0.9)),
}
"""Faults of 0.03 to 0.05 TV in the first token; chance alone causes 0.03 in 3,000 runs."""


@pytest.mark.parametrize("fault", SMALL)
def test_smaller_faults_need_a_full_audit(fault: str) -> None:
    """Too small for a quick audit at an alarm of 1e-7; in a full one, single texts miss them at least half the time."""
    assert max(caught(*SMALL[fault], QUICK)) <= 4
    alone, together = caught(*SMALL[fault], FULL)
    assert together >= 38 and alone <= 20, (alone, together)


# ---------------------------------------------------------------- through the engine


@pytest.mark.parametrize("planted", [False, True])
def test_a_residual_drawn_from_pi_fails(text_pair: Pair, planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is detected within 1,500 runs, in which every single text stays within its 6 sigma."""

    def table(logits: np.ndarray) -> dict[tables.Text, torch.Tensor]:
        texts: list[tables.Text] = [(), *((token,) for token in range(WIDTH))]
        return dict(zip(texts, torch.from_numpy(logits), strict=True))

    tree = tables.Tree(WIDTH, 1, *(table(logits) for logits in FAR))
    if planted:
        monkeypatch.setattr(rejection, "residual", lambda pi, q: pi)
    each, every = joint.joint_laws(text_pair, tree, [parse("speculative:k=3")], 1500)
    assert (each.kind, each.status) == ("joint law", "pass")
    assert (every.kind, every.status) == ("joint fit", "fail" if planted else "pass")
    assert every.false_alarm == pytest.approx(2e-7) and "16, " in every.detail
    law = joint.joint_law(tree, Exact(), 2)
    assert [law[0, 1], law[3, 2]] == pytest.approx([written(FAR)[0, 1], written(FAR)[3, 2]], abs=1e-12)
