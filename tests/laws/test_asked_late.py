"""Requesting the draft's q after a block only once the block has passed gives the same rounds in fewer steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import torch

from cascli import Run, generate, rules
from cascli.decoding import speculation
from cascli.decoding.session import Session
from cascli.drafters.model import Model
from cascli.models.eagle3.runners import Eagle3Runner
from cascli.models.pair import Pair
from cascli.models.runner import Runner
from cascli.models.split import ExitRunner
from cascli.rules.base import Rule
from cascli.strategies import Strategy, parse
from cascli.strategies.base import Speculating
from tests.laws.models import engine_law, pi_of, reference_law, remembering, tiny_pair
from tests.laws.tables import target
from tests.laws.test_stops import MIDDLE
from tests.reference.process import distance

EXACT = 1e-12
REAL = speculation._proposal_after
WARPED: dict[str, Any] = {"temperature": 0.8, "top_k": 4, "top_p": 0.95}
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def speculating(spec: str) -> Speculating:
    strategy = parse(spec)
    assert isinstance(strategy, Speculating)
    return strategy


def runs_of(spec: str | Strategy, pair: Pair | None = None, seeds: int = 12, **options: Any) -> Iterator[Run]:
    """Yield runs with rounds of every kind; the last round may have less room than the others."""
    for seed in range(seeds):
        ask = {"prompt_ids": [1, 2], "max_new_tokens": 23, "seed": seed, **WARPED, **options}
        yield generate(pair or tiny_pair(5, 2), strategy=spec, **ask)


@cache
def without_caches() -> Pair:
    return remembering(tiny_pair(5, 2))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two runs are equal up to rounding: they process different numbers of rows at a time."""
    return numbers_of(ours) == pytest.approx(numbers_of(theirs), rel=1e-6, abs=1e-9, nan_ok=True)


def numbers_of(run: Run) -> dict[str, Any]:
    """Every value in a run's rounds, keyed by its path."""
    found: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                put(f"{name}.{key}", each)
        elif isinstance(value, list):
            for i, each in enumerate(value):
                put(f"{name}.{i}", each)
        elif isinstance(value, bool | int | float):
            found[name] = value
        else:
            found[name + "=" + str(value)] = 0

    put("", [step.model_dump(exclude={"seconds"}) for step in run.rounds])
    return found


def whole_blocks(run: Run) -> int:
    """Number of rounds whose drafts all passed, including rounds without drafts."""
    return sum(step.emitted[-1].event == "bonus" for step in run.rounds)


@pytest.mark.parametrize("verify", ["token", "block"])
@pytest.mark.parametrize("rule", rules.names())
def test_the_same_rounds(rule: str, verify: str, request: pytest.FixtureRequest) -> None:
    spec = f"speculative-cascade:rule={rule},k=3,verify={verify}"
    late = list(runs_of(spec, without_caches(), 6, top=2))
    request.getfixturevalue("asked_at_once")
    first = list(runs_of(spec, without_caches(), 6, top=2))
    assert all(same(ours, theirs) for ours, theirs in zip(late, first, strict=True))
    reads = rules.load(rule).reads_draft
    assert reads == any(token.q is not None for run in late for token in run.emitted if token.event == "bonus")


@pytest.mark.parametrize("stop", [stop for stop in MIDDLE if stop != "never"])
def test_the_same_rounds_with_a_stop(stop: str, request: pytest.FixtureRequest) -> None:
    spec = f"speculative-cascade:rule=token-v3,alpha=0.4,stop={stop}{MIDDLE[stop]},k=3"
    if stop == "rate":  # it decides by the step costs, which differ between the two
        spec = spec.replace("rate", "max-q,least_q=0.3")
    late = list(runs_of(spec))
    request.getfixturevalue("asked_at_once")
    assert all(same(ours, theirs) for ours, theirs in zip(late, runs_of(spec), strict=True))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rule", ["token-v3,alpha=0.4", "mixture,target_weight=0.5", "min-p,alpha=0.3"])
def test_draft_steps_run_only_if_their_result_is_used(rule: str, k: int) -> None:
    """One draft step per drafted token, plus one after every block that passed if the rule reads q there."""
    whole = broken = 0
    for run in runs_of(f"speculative-cascade:rule={rule},k={k}", max_new_tokens=40):
        assert run.finish_reason == "length"  # so the trace contains every block in full
        behind = whole_blocks(run) if "min-p" not in rule else 0
        assert run.metrics.draft_calls == run.metrics.num_draft_tokens + behind
        whole += whole_blocks(run)
        broken += len(run.rounds) - whole_blocks(run)
    assert whole > 10 and broken > 10


@pytest.mark.parametrize("stop", ["max-q", "svip"])
def test_a_stop_that_already_read_q_saves_the_step(stop: str) -> None:
    """A round ended by the stop takes one draft step more than it has tokens; a full round only if all drafts pass."""
    refused = 0
    for run in runs_of(f"speculative-cascade:rule=token-v3,alpha=0.4,stop={stop}{MIDDLE[stop]},k=3"):
        steps = at = 0
        for step in run.rounds:
            n, most = len(step.drafted), min(3, 22 - at)
            refused += n < most
            steps += n + (n < most or step.emitted[-1].event == "bonus")
            at += len(step.emitted)
        assert run.finish_reason == "length" and run.metrics.draft_calls == steps
    assert refused > 20


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("verify", ["token", "block"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_law_of_four_tokens(k: int, verify: str, sampling: dict[str, Any]) -> None:
    """Across rounds of every length; in rounds that draft, every bonus uses the q that was requested late."""
    strategy = speculating(f"speculative-cascade:rule=mixture,target_weight=0.5,k={k},verify={verify}")
    law = engine_law(strategy, 4, 2, 2, **sampling)
    wanted = reference_law(pi_of(strategy.verification_rule), 4, 2, 2, **sampling)
    assert distance(law, wanted) < EXACT


@dataclass(frozen=True)
class Trimming(Model):
    """Drafts n tokens and returns only the first: the draft model has read beyond the block."""

    def propose(self, s: Session, n: int, rule: Rule) -> speculation.Block:
        block = super().propose(s, n, rule)
        return block if n < 2 else speculation.Block(block.tokens[:1], block.q[:1], block.q1[:1])


def test_a_drafter_may_have_read_beyond_its_block() -> None:
    """The rounds are those of a drafter that drafts only what it returns: the same random numbers decide."""
    strategy = speculating("speculative-cascade:rule=mixture,target_weight=0.5,k=3")
    ours = runs_of(dataclasses.replace(strategy, draft=Trimming()))
    theirs = runs_of(dataclasses.replace(strategy, k=1))
    assert all(same(mine, other) for mine, other in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Watching(Model):
    """Records the answer on the host and on the device whenever nothing is to be drafted."""

    seen: list[tuple[list[int], list[int]]] = dataclasses.field(default_factory=list, hash=False)

    def propose(self, s: Session, n: int, rule: Rule) -> speculation.Block:
        if n == 0:
            self.seen.append((list(s.answer_ids), s.text[: s.length].tolist()))
        return super().propose(s, n, rule)


def test_a_drafter_called_late_sees_the_block_in_the_answer() -> None:
    strategy = speculating("speculative-cascade:rule=mixture,target_weight=0.5,k=3")
    drafter = Watching()
    for run in runs_of(dataclasses.replace(strategy, draft=drafter)):
        assert drafter.seen and all(host == text for host, text in drafter.seen)
        assert all(run.token_ids[: len(host)] == host for host, _ in drafter.seen)
        drafter.seen.clear()


@dataclass(frozen=True)
class Twice(Model):
    """Has no distribution at temperature 1: returns q in its place."""

    def propose(self, s: Session, n: int, rule: Rule) -> speculation.Block:
        block = super().propose(s, n, rule)
        return speculation.Block(block.tokens, block.q, block.q)


def test_unknown_values_are_not_made_up_in_rounds_that_pass() -> None:
    strategy = dataclasses.replace(speculating("speculative-cascade:rule=mixture,k=3"), draft=Twice())
    for run in runs_of(strategy, top=2):
        assert all(token.detail is None or token.detail.q1 is None for token in run.emitted)


@pytest.mark.parametrize("runner", [Eagle3Runner, ExitRunner])
def test_drafters_that_read_the_target_are_queried_immediately(runner: type[Runner]) -> None:
    rule, device = speculating("speculative-cascade:k=3").verification_rule, torch.device("cpu")
    made = runner.__new__(runner)
    made.__dict__["_exit"] = made
    assert not speculation.asks_late(rule, made, device, captures=False)
    plain = tiny_pair(3).draft
    assert plain is not None and speculation.asks_late(rule, plain.runner, device, captures=False)
    assert not speculation.asks_late(rule, plain.runner, device, captures=True)
    assert not speculation.asks_late(rule, plain.runner, torch.device("cuda"), captures=False)
    assert not speculation.asks_late(rules.load("min-p")(), plain.runner, device, captures=False)


@dataclass(frozen=True)
class ByRounds(Model):
    """A drafter whose q depends on where the round began."""

    by_prefix: ClassVar[bool] = False


def test_host_side_and_round_based_drafters_are_queried_immediately() -> None:
    """The former has no step to save; the latter's q after a block is not the q of a round that begins there."""
    plain = tiny_pair(3).draft
    assert plain is not None
    where = plain.runner, torch.device("cpu")
    strategy = speculating("speculative-cascade:rule=mixture,k=3")
    assert strategy.asks_late(*where, captures=False)
    assert not dataclasses.replace(strategy, draft=ByRounds()).asks_late(*where, captures=False)
    for draft in ("suffix", "prompt-lookup"):
        assert not speculating(f"speculative-cascade:draft={draft},k=3").asks_late(*where, captures=False)


def test_a_stop_is_informed_of_the_extra_step() -> None:
    """A round without drafts always passes, so in `rate` the cost of drafting nothing includes the extra step too."""
    costs = speculating("speculative-cascade:rule=token-v3,stop=rate,k=4").costs(tiny_pair(5, 2))
    assert costs is not None and costs.reads_if_kept and not costs.reads_last
    assert costs.round(0, 1.0) == pytest.approx(costs.c + costs.v[0])
    assert costs.round(3, 0.25) == pytest.approx(3.25 * costs.c + costs.v[3])
    exact = speculating("speculative:stop=rate,k=4").costs(tiny_pair(5, 2))
    assert exact is not None and not exact.reads_if_kept and not exact.reads_last


def of_the_answer(s: Session, block: speculation.Block, propose: Any, rule: Any) -> speculation.Block:
    """A bug: q after the answer so far, instead of after the block."""
    s.draft.rewind(s.length - 1)
    del block
    return propose(s, 0, rule)


def of_the_target(s: Session, block: speculation.Block, propose: Any, rule: Any) -> speculation.Block:
    """A bug: the late q is dropped, so the bonus follows p."""
    behind = REAL(s, block, propose, rule)
    return behind._replace(q=behind.q[:0], q1=behind.q1[:0])


@pytest.mark.parametrize("bug", [of_the_target, of_the_answer])
def test_planted_bugs_change_the_law(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = speculating("speculative-cascade:rule=mixture,target_weight=0.5,k=2")
    wanted = reference_law(pi_of(strategy.verification_rule), 4, 2, 2, **PLAIN)
    monkeypatch.setattr(speculation, "_proposal_after", bug)
    law = engine_law(strategy, 4, 2, 2, **PLAIN)
    assert distance(law, wanted) > 1e-3


def test_random_numbers_of_the_first_position_change_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: the token after the block is drawn with the uniform of a rejection at its first token."""
    strategy = parse("speculative-cascade:rule=mixture,target_weight=0.5,k=2")
    decide: Any = speculation.decide_round
    assert isinstance(strategy, Speculating)
    wanted = reference_law(pi_of(strategy.verification_rule), 4, 2, 2, **PLAIN)
    first: list[Any] = []

    def planted(*given: Any, **more: Any) -> Any:
        *before, u_next = given[:8]
        if before[3].shape[0]:  # tokens
            first[:] = [u_next[:1]]
        elif first:
            u_next = first[0]
        return decide(*before, u_next, *given[8:], **more)

    monkeypatch.setattr(speculation, "decide_round", planted)
    law = engine_law(strategy, 4, 2, 2, **PLAIN)
    assert distance(law, wanted) > 1e-3


def test_pi_of_this_pair_differs_from_p() -> None:
    """For this pair pi is far enough from p that the tests above would detect a bonus drawn from p."""
    strategy = speculating("speculative-cascade:rule=mixture,target_weight=0.5,k=2")
    ours = reference_law(pi_of(strategy.verification_rule), 4, 2, 2, **PLAIN)
    exact = reference_law(target("exact"), 4, 2, 2, **PLAIN)
    assert distance(ours, exact) > 1e-2
