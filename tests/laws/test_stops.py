"""Drafts that end early: the exact joint law of texts by enumeration for every stop, and what would bias it.

A stop may depend on anything known before the next token is drawn. What it must not see of a finished round matters
just as much: tokens after a rejected one are drawn again, with the same random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from cascli import generate, stops
from cascli.decoding import speculation
from cascli.errors import RunError
from cascli.stops.base import Reading, Stop, Stopping
from cascli.strategies import parse
from cascli.strategies.base import Speculating, validated
from cascli.trace import StepCosts
from tests.laws.models import engine_law, reference_law, tiny_pair
from tests.laws.tables import target
from tests.reference.process import distance

EXACT = 1e-12
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 2, "top_p": 0.95}
MIDDLE = {
    "never": "",
    "max-q": ",least_q=0.45",
    "confidence": ",least_q=0.4",
    "svip": ",limit=0.385",
    "adaedl": ",limit=0.55,aim=0.5",
    "heuristic": ",start=2",
    "rate": "",
}
"""Settings under which the tiny pair has rounds of every length."""


def speculative(stop: str, k: int = 3, more: str = "") -> Speculating:
    strategy = parse(f"speculative:stop={stop}{MIDDLE.get(stop, '')},k={k}{more}")
    assert isinstance(strategy, Speculating)
    return strategy


def cascade(stop: str, k: int = 3, more: str = "") -> Speculating:
    strategy = parse(f"speculative-cascade:rule=token-v3,alpha=0.4,stop={stop}{MIDDLE.get(stop, '')},k={k}{more}")
    assert isinstance(strategy, Speculating)
    return strategy


@pytest.fixture(autouse=True)
def steps_that_make_rate_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a draft step cost about a sixth of a target step, so that `rate` decides by what it has learnt."""
    costs = StepCosts(c=0.16, v=[1.0, 1.05, 1.2, 1.25, 1.4], measured=True)

    def of(self: Speculating, pair: Any) -> StepCosts | None:
        return costs.model_copy(update={"reads_if_kept": self.verification_rule.reads_draft})

    monkeypatch.setattr(Speculating, "costs", of)


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("stop", stops.names())
def test_the_exact_rule_stays_lossless(stop: str, sampling: dict[str, Any]) -> None:
    """Four tokens, so that a stop that learns decides from a finished round."""
    law = engine_law(speculative(stop), 4, 3, 2, **sampling)
    assert distance(law, reference_law(target("exact"), 4, 3, 2, **sampling)) < EXACT


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("stop", stops.names())
def test_a_rule_is_followed_wherever_rounds_end(stop: str, sampling: dict[str, Any]) -> None:
    """The bonus follows pi too: q after the last token is known, from a draft step or from the stop's own look."""
    law = engine_law(cascade(stop), 3, 3, 2, **sampling)
    assert distance(law, reference_law(target("token-v3", 0.4), 3, 3, 2, **sampling)) < EXACT


@pytest.mark.parametrize("stop", stops.names())
@pytest.mark.parametrize(("rule", "alpha"), [("chow", 0.5), ("opt", 0.3)])
def test_rules_that_read_the_drafts_confidence_are_also_followed(stop: str, rule: str, alpha: float) -> None:
    """They read q at temperature 1 after the last token as well, where a stop may have ended the round."""
    strategy = parse(f"speculative-cascade:rule={rule},alpha={alpha},stop={stop}{MIDDLE.get(stop, '')},k=3")
    law = engine_law(strategy, 3, 3, 2, **WARPED)
    assert distance(law, reference_law(target(rule, alpha), 3, 3, 2, **WARPED)) < EXACT
    assert distance(law, reference_law(target("exact"), 3, 3, 2, **WARPED)) > 1e-3


@pytest.mark.parametrize("stop", ["confidence", "max-q", "heuristic", "rate"])
@pytest.mark.parametrize("rule", ["exact", "token-v3"])
def test_blocks_may_end_early_too(stop: str, rule: str) -> None:
    """Positions read by a round get new numbers when drafted again, each keyed by its place in the round."""
    strategy = (speculative if rule == "exact" else cascade)(stop, 2, ",verify=block")
    law = engine_law(strategy, 4, 2, 2, **PLAIN)
    assert distance(law, reference_law(target(rule, 0.4), 4, 2, 2, **PLAIN)) < EXACT


@pytest.mark.parametrize("stop", ["heuristic", "rate"])
@pytest.mark.parametrize("drafter", ["prompt-lookup", "suffix"])
def test_drafts_without_a_model_may_end_early(drafter: str, stop: str) -> None:
    law = engine_law(speculative(stop, 3, f",draft={drafter}"), 5, 3, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 5, 3, 2, **PLAIN)) < 1e-6


@pytest.mark.parametrize("stop", [name for name in stops.names() if name != "never"])
def test_the_cases_have_rounds_of_every_length(stop: str) -> None:
    """Keeps the laws above sensitive: drafts end by the stop and by k, and pass with any probability."""
    lengths, chances, ended = set(), [], 0
    for seed in range(40):
        run = generate(
            tiny_pair(3, 2), prompt_ids=[1, 2], strategy=speculative(stop), max_new_tokens=12, seed=seed, **PLAIN
        )
        at = 0
        for step in run.rounds:
            n = len(step.drafted)
            lengths.add(n)
            ended += n < min(3, 11 - at)
            at += len(step.emitted)
            chances += [token.accept_prob for token in step.drafted]
    assert lengths >= {1, 2, 3} and ended > 20
    assert sum(0.1 < chance < 0.9 for chance in chances) > len(chances) / 4


def test_drafting_step_by_step_equals_drafting_in_one_go() -> None:
    """A stop that never stops drafts the same tokens one by one as a draft in one go, in the same number of steps."""
    for make in (speculative, cascade):
        for more in ("", ",verify=block"):
            one_go, by_steps = (
                generate(tiny_pair(5, 2), prompt_ids=[1, 2], strategy=each, max_new_tokens=20, **WARPED, top=2)
                for each in (make("never", 3, more), dataclasses.replace(make("never", 3, more), stop=Willing()))
            )
            assert [step.drafted for step in one_go.rounds] == [step.drafted for step in by_steps.rounds]
            assert [step.emitted for step in one_go.rounds] == [step.emitted for step in by_steps.rounds]
            assert one_go.metrics.draft_calls == by_steps.metrics.draft_calls


@dataclass(frozen=True)
class Willing(Stop):
    """Reads the draft's distribution, and always continues."""

    reads: ClassVar[Reading | None] = "best"


@pytest.mark.parametrize("stop", stops.names())
def test_defaults_are_in_their_ranges(stop: str) -> None:
    kind = stops.load(stop)
    assert validated(kind, vars(kind())) == kind()


# ---------------------------------------------------------------- planted: what no stop may do


def test_dropping_a_drawn_token_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the unlikely token after which `confidence` stops is dropped instead of verified."""
    strategy = speculative("confidence", 2)
    right = speculation.by_steps

    def by_steps(*given: Any, **how: Any) -> Any:
        drafted = right(*given, **how)
        n = sum(chance >= 0.4 for chance in drafted.seen)
        assert n >= len(drafted.seen) - 1
        return drafted._replace(tokens=drafted.tokens[:n], q=drafted.q[:n], q1=drafted.q1[:n], seen=drafted.seen[:n])

    monkeypatch.setattr(speculation, "by_steps", by_steps)
    try:
        law = engine_law(strategy, 3, 3, 2, **PLAIN)
    except AssertionError:  # a dropped token's numbers are reused, so no law over independent ones exists
        return
    assert distance(law, reference_law(target("exact"), 3, 3, 2, **PLAIN)) > 1e-3


class Remembering(Stopping):
    """Drafts nothing after a round whose last drafted token the draft was not sure of, otherwise three tokens.

    If that token follows a rejected one, its position is drawn again, from one model or the other, with the very
    number that decided which.
    """

    reads: ClassVar[Reading | None] = "chance"

    def __init__(self) -> None:
        self._next = 3

    def most(self, n: int) -> int:
        return min(n, self._next)

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        self._next = 0 if seen and seen[-1] < 0.4 else 3


@dataclass(frozen=True)
class Remembers(Stop):
    reads: ClassVar[Reading | None] = "chance"

    def begin(self, costs: StepCosts | None) -> Stopping:
        return Remembering()


@pytest.mark.parametrize("planted", [False, True])
def test_a_stop_that_sees_drafts_after_a_rejected_one_biases_the_text(
    planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the stop sees all drafts of a round, instead of only those that the text has reached."""
    strategy = dataclasses.replace(speculative("confidence"), stop=Remembers())
    if planted:
        seen: list[float] = []
        right = speculation.by_steps

        def by_steps(*given: Any, **how: Any) -> Any:
            drafted = right(*given, **how)
            seen[:] = drafted.seen
            return drafted

        learn = Remembering.learn
        monkeypatch.setattr(speculation, "by_steps", by_steps)

        def of_all(self: Remembering, _: Any, kept: int, *, rejected: bool) -> None:
            learn(self, seen, kept, rejected=rejected)

        monkeypatch.setattr(Remembering, "learn", of_all)
    try:
        law = engine_law(strategy, 3, 3, 2, **PLAIN)
        off = distance(law, reference_law(target("exact"), 3, 3, 2, **PLAIN))
    except (AssertionError, RunError):  # the text is not a function of its random numbers
        off = 1.0
    assert off > 1e-3 if planted else off < EXACT
