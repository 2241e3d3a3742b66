"""Forecasts of how long a sweep will take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from cascli.analysis.profile import Profile, Timing
from cascli.audit import joint
from cascli.decoding.session import Session
from cascli.decoding.speculation import Block
from cascli.drafters import Drafter
from cascli.rules.base import Exact, Rule
from cascli.strategies import Strategy, parse
from cascli.sweeps.forecast import forecast, seconds_per_token
from cascli.sweeps.plan import SweepPlan


def timing(seconds: float) -> Timing:
    return Timing(median=seconds, low=seconds, high=seconds)


STEPS = Profile(context=50, draft={1: timing(0.2)}, target={1: timing(1.0), 3: timing(1.2), 5: timing(1.6)})


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("target", 1.0, 1.0),
        ("draft", 0.2, 0.2),
        ("cascade:threshold=-1", 0.2, 1.2),
        ("token-cascade:rule=chow,alpha=0.3", 0.2, 1.2),
        ("speculative:k=2", (2 * 0.2 + 1.2) / 3, 2 * 0.2 + 1.2),
        ("speculative-cascade:rule=opt,alpha=0.3,k=4", (5 * 0.2 + 1.6) / 5, 5 * 0.2 + 1.6),  # reads q after the block
        ("speculative-cascade:rule=min-p,alpha=0.3,k=4", (4 * 0.2 + 1.6) / 5, 4 * 0.2 + 1.6),
        ("speculative:draft=prompt-lookup,k=4", 1.6 / 5, 1.6),
    ],
)
def test_a_token(spec: str, low: float, high: float) -> None:
    assert seconds_per_token(parse(spec), STEPS) == pytest.approx((low, high))


def test_a_grid() -> None:
    plan = SweepPlan(strategies=["speculative:k=2"], temperatures=[0.0, 1.0], seeds=[0, 1], runs=2, max_new_tokens=10)
    cells = 2 * (1 + 2)  # two runs, each with one greedy seed and two seeds at temperature 1
    assert forecast(plan, 3, STEPS) == pytest.approx((cells * 30 * (1.0 + 1.6 / 3), cells * 30 * (1.0 + 1.6)))


def test_without_a_draft_model() -> None:
    steps = STEPS.model_copy(update={"draft": {}})
    assert seconds_per_token(parse("target"), steps) == pytest.approx((1.0, 1.0))


@dataclass(frozen=True)
class OwnExit(Drafter):
    """A drafter of another package that drafts with the target's first layer."""

    exit_layers = 1

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        raise NotImplementedError


EXIT = parse("speculative:draft=early-exit,layers=1,k=2")


@pytest.mark.parametrize("strategy", [EXIT, replace(EXIT, draft=OwnExit())])
def test_tokens_of_an_early_exit_take_the_time_of_that_exit(strategy: Strategy) -> None:
    steps = STEPS.model_copy(update={"exits": {1: timing(0.4)}})
    assert seconds_per_token(strategy, steps).high == pytest.approx(2 * 0.4 + 1.2)
    assert "layers of the target" in (joint._not_tabulated(strategy, Exact()) or "")
