"""Block verification through the engine and real models: the exact law of texts over several rounds.

What a round keeps depends on all of its drafts, including those after the kept ones. So a position that is drafted
again must use other random numbers than before. No law of a single round can show this; laws of texts do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from cascli import generate, rules
from cascli.decoding import speculation
from cascli.drafters.model import Model
from cascli.rules.base import Rule
from cascli.sampling import uniforms
from cascli.sampling.uniforms import LookingAhead, Uniforms
from cascli.strategies import parse
from cascli.strategies.speculative_cascade import SpeculativeCascade
from tests.laws.models import PROMPT, engine_law, model_tables, pi_of, reference_law, tiny_pair
from tests.laws.tables import target
from tests.laws.test_engine_enumeration import ended
from tests.reference.process import Target, Tokens, distance, prefix_weights, sequential_law

EXACT = 1e-12
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
COLD = {"temperature": 0.5, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
CUT = {"temperature": 1.0, "top_k": 2, "top_p": 1.0}
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
BOTH = pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
CASCADES = ["head,alpha=0.3", "token-v3,alpha=0.3", "mixture,target_weight=0.5", "opt,alpha=0.3"]
SHAPE = (3, 6)
"""Number of tokens and of layers."""


def cascade(rule: str, k: int) -> SpeculativeCascade:
    strategy = parse(f"speculative-cascade:rule={rule},k={k},verify=block")
    assert isinstance(strategy, SpeculativeCascade)
    return strategy


def chances_of(rule: Target, k: int, **sampling: Any) -> list[float]:
    """The probabilities h_1 to h_{k-1} of all blocks at the beginning of a text, by the reference."""
    tables, found = model_tables(*SHAPE, **sampling), []
    for drafted in product(range(SHAPE[0]), repeat=k):
        pairs = [tables(drafted[:i]) for i in range(k)]
        if all(pair.q[x] > 0 for pair, x in zip(pairs, drafted, strict=True)):
            found += passing([rule(pair) for pair in pairs], [pair.q for pair in pairs], drafted)[:-1]
    return found


def passing(pis: list[np.ndarray], qs: list[np.ndarray], drafted: Tokens) -> list[float]:
    """h_1 to h_k."""
    weights = prefix_weights([pi[x] / q[x] for pi, q, x in zip(pis, qs, drafted, strict=True)])
    excess = [np.maximum(0.0, weight * pi - q).sum() for weight, pi, q in zip(weights, pis, qs, strict=False)]
    return [s / (s + 1 - weight) if weight < 1 else 1.0 for s, weight in zip(excess[1:], weights[1:], strict=False)] + (
        weights[-1:] if drafted else []
    )


@BOTH
@pytest.mark.parametrize("rule", [None, *CASCADES[:3]])
def test_the_models_are_worth_testing(rule: str | None, sampling: dict[str, Any]) -> None:
    """Several prefixes may either pass or fail; the two-layer, three-token models used elsewhere have none."""
    chances = chances_of(target("exact") if rule is None else pi_of(cascade(rule, 2).rule), 2, **sampling)
    assert sum(0.02 < chance < 0.98 for chance in chances) >= 3


@BOTH
@pytest.mark.parametrize("rule", [None, *CASCADES])
def test_three_tokens(rule: str | None, sampling: dict[str, Any]) -> None:
    strategy = parse("speculative:k=2,verify=block") if rule is None else cascade(rule, 2)
    wanted = target("exact") if rule is None else pi_of(strategy.rule)
    law = engine_law(strategy, 3, *SHAPE, caches=False, **sampling)
    assert sum(law.values()) == pytest.approx(1.0, abs=EXACT)
    assert distance(law, reference_law(wanted, 3, *SHAPE, **sampling)) < EXACT


@pytest.mark.parametrize("sampling", [COLD, WARPED], ids=["cold", "warped"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("rule", [None, "mixture,target_weight=0.5"])
def test_four_tokens_across_rounds_of_every_length(rule: str | None, k: int, sampling: dict[str, Any]) -> None:
    """Rounds of three drafts, then of every shorter length, with some positions drafted a second and a third time."""
    strategy = parse(f"speculative:k={k},verify=block") if rule is None else cascade(rule, k)
    wanted = target("exact") if rule is None else pi_of(strategy.rule)
    law = engine_law(strategy, 4, 2, 2, **sampling)
    assert distance(law, reference_law(wanted, 4, 2, 2, **sampling)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, CASCADES[0]])
def test_four_tokens_of_three_words(rule: str | None) -> None:
    """Top-k leaves draft and target two tokens per position, not the same two; uncut, one rule takes two minutes."""
    strategy = parse("speculative:k=3,verify=block") if rule is None else cascade(rule, 3)
    wanted = target("exact") if rule is None else pi_of(strategy.rule)
    law = engine_law(strategy, 4, *SHAPE, caches=False, **CUT)
    assert len({token for text in law for token in text}) == 3
    assert distance(law, reference_law(wanted, 4, *SHAPE, **CUT)) < EXACT


def test_texts_end_at_the_end_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside a block: what follows the end of text is cut off, although it affected what was kept."""
    pair = dataclasses.replace(tiny_pair(), eos_ids=frozenset([2]))
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: pair)
    law = engine_law("speculative:k=2,verify=block", 3, **PLAIN)
    assert {len(text) for text in law} == {1, 2, 3}
    assert distance(law, ended(reference_law(target("exact"), 3, **PLAIN), 2)) < EXACT


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rule", ["", *CASCADES[:3]])
def test_greedy_runs_equal_those_of_token_tests(rule: str, k: int) -> None:
    name = f"speculative-cascade:rule={rule}," if rule else "speculative:"
    ask = {"prompt_ids": [1, 2], "max_new_tokens": 30, **GREEDY}
    ours, theirs = (
        generate(tiny_pair(16, 2), strategy=f"{name}k={k}{verify}", **ask) for verify in (",verify=block", "")
    )
    assert ours.token_ids == theirs.token_ids
    drafted = [
        [[(token.id, token.accepted) for token in step.drafted] for step in run.rounds] for run in (ours, theirs)
    ]
    assert drafted[0] == drafted[1]


@dataclass(frozen=True)
class Short(Model):
    """Gives no q after its drafts; with `fewer`, the text so far may make it draft less than requested."""

    fewer: bool = False

    def propose(self, s: Any, n: int, rule: Rule) -> speculation.Block:
        if self.fewer and s.length:  # depends only on what has been written
            n = min(n, 1 + s.answer_ids[-1])
        block = super().propose(s, n, rule)
        m = block.tokens.shape[0]
        return speculation.Block(block.tokens, block.q[:m], block.q1[:m])


@pytest.mark.parametrize("fewer", [False, True])
def test_drafters_that_return_less_keep_the_law(fewer: bool) -> None:
    """Shorter blocks keep the law. Without q after a block, the bonus follows p, which keeps it only for pi = p."""
    strategy = dataclasses.replace(parse("speculative:k=3,verify=block"), draft=Short(fewer=fewer))
    law = engine_law(strategy, 4, 2, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 4, 2, 2, **PLAIN)) < EXACT


def test_where_nothing_is_proposed_after_a_block_its_bonus_follows_p() -> None:
    """With a lossy rule, positions within a block follow pi, and the one after it p."""
    whole = cascade("token-v3,alpha=0.3", 2)
    law = engine_law(dataclasses.replace(whole, draft=Short()), 3, 3, 2, **PLAIN)
    assert distance(law, reference_law(pi_of(whole.rule), 3, 3, 2, **PLAIN)) > 1e-3
    strategy = dataclasses.replace(whole, draft=Short(), k=1)
    law = engine_law(strategy, 2, 3, 2, **PLAIN)
    tables, rule = model_tables(3, 2, **PLAIN), pi_of(whole.rule)
    # Whether the first token is a draft or a residual, the second is a bonus or comes from a round without drafts.
    wanted = {(a, b): share * tables((a,)).p[b] for a, share in enumerate(rule(tables(()))) for b in range(3)}
    assert distance(law, wanted) < EXACT


@pytest.mark.parametrize("verify", ["", ",verify=block"])
def test_lookups_write_the_same_law_either_way(verify: str) -> None:
    law = engine_law(f"speculative:draft=prompt-lookup,k=3{verify}", 4, 3, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 4, 3, 2, **PLAIN)) < EXACT


def test_the_trace_records_the_acceptance_probability_of_each_prefix() -> None:
    """`accept_prob` is h of each prefix, computed from the reference's distributions at its tokens."""
    tables, rule = model_tables(5, 2, **PLAIN), target("token-v3", 0.3)
    seen = []
    for seed in range(8):
        spec = "speculative-cascade:rule=token-v3,alpha=0.3,k=3,verify=block"
        run = generate(tiny_pair(5, 2), prompt_ids=PROMPT, strategy=spec, max_new_tokens=8, seed=seed, **PLAIN)
        assert run.params == {"rule": "token-v3", "alpha": 0.3, "k": 3, "verify": "block"} and run.by_block
        done: Tokens = ()
        for step in run.rounds:
            ids = [token.id for token in step.drafted]
            pairs = [tables((*done, *ids[:i])) for i in range(len(ids))]
            wanted = passing([rule(pair) for pair in pairs], [pair.q for pair in pairs], tuple(ids))
            assert [token.accept_prob for token in step.drafted] == pytest.approx(wanted, abs=1e-9)
            kept = sum(token.accepted for token in step.drafted)
            assert [token.accepted for token in step.drafted] == [i < kept for i in range(len(ids))]
            seen += [token.accept_prob < 0.5 for token in step.drafted[: max(kept - 1, 0)]]
            done += tuple(token.id for token in step.emitted)
    assert any(seen)  # tokens were kept although their own prefix was more likely to fail


def test_default_runs_are_unchanged() -> None:
    """`verify=token` appears in no parameter, draws the same numbers as the default, and writes the same rounds."""
    ask = {"prompt_ids": [1, 2], "max_new_tokens": 20, "seed": 3, **PLAIN}
    runs = [generate(tiny_pair(8, 2), strategy=f"speculative:k=4{verify}", **ask) for verify in ("", ",verify=token")]
    assert [run.params for run in runs] == [{"k": 4}] * 2 and {run.spec for run in runs} == {"speculative:k=4"}
    dumped = [[step.model_dump(exclude={"seconds"}) for step in run.rounds] for run in runs]
    assert dumped[0] == dumped[1]


# ---------------------------------------------------------------- random numbers


def test_used_positions_get_new_random_numbers() -> None:
    table, ahead = Uniforms(7, 12), LookingAhead(Uniforms(7, 12))
    assert torch.equal(ahead.draw(0, 4), table.draw(0, 4))  # first drafts use the same numbers as in every strategy
    ahead.mark_used(4)
    for name in ("draw", "accept"):
        own, again = getattr(table, name), getattr(table, f"{name}_again")
        found = getattr(ahead, name)(1, 5)
        assert torch.equal(found, torch.cat([again(1, 3), own(4, 2)])) and not torch.equal(found[:3], own(1, 3))
        assert torch.equal(getattr(ahead, name)(4, 3), own(4, 3))
    assert torch.equal(ahead.residual(1, 5), table.residual(1, 5))


def test_new_random_numbers_depend_only_on_seed_round_and_position() -> None:
    long, short, other = Uniforms(5, 40), Uniforms(5, 9), Uniforms(6, 40)
    drawn = []
    for name in ("draw_again", "accept_again"):
        values = torch.stack([getattr(long, name)(start, 6) for start in range(9)])
        assert values.dtype == torch.float64 and getattr(long, name)(3, 6).is_contiguous()
        assert torch.equal(values, torch.stack([getattr(short, name)(start, 6) for start in range(9)]))
        assert not torch.equal(values[3], getattr(other, name)(3, 6))
        drawn += values.flatten().tolist()
    drawn += [u for name in ("draw", "accept", "residual") for u in getattr(long, name)(0, 40).tolist()]
    assert len(set(drawn)) == len(drawn)


# ---------------------------------------------------------------- planted bugs


def same_numbers_again(patch: pytest.MonkeyPatch) -> None:
    """Random numbers keyed by position alone, which only token tests may use."""
    patch.setattr(uniforms.LookingAhead, "mark_used", lambda self, end: None)


def same_tests_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LookingAhead, "accept", lambda self, start, n: self._numbers.accept(start, n))


def same_draws_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LookingAhead, "draw", lambda self, start, n: self._numbers.draw(start, n))


def one_number_for_all_tests(patch: pytest.MonkeyPatch) -> None:
    right = LookingAhead.accept
    patch.setattr(LookingAhead, "accept", lambda self, start, n: right(self, start, n)[:1].expand(n))


@pytest.mark.parametrize("bug", [same_numbers_again, same_tests_again, same_draws_again, one_number_for_all_tests])
def test_planted_bugs_are_detected(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sequential_law(model_tables(*SHAPE, **PLAIN), target("exact"), 3)
    bug(monkeypatch)
    assert distance(engine_law("speculative:k=2,verify=block", 3, *SHAPE, **PLAIN), wanted) > 1e-3


@pytest.mark.parametrize("name", rules.names())
def test_every_rule_works_with_block_verification(name: str) -> None:
    fields = dataclasses.fields(rules.load(name))
    values = {field.name: 0.3 for field in fields if field.default is dataclasses.MISSING}
    spec = ",".join([name, *(f"{key}={value}" for key, value in values.items())])
    strategy = cascade(spec, 2)
    assert parse(strategy.spec) == strategy
    law = engine_law(strategy, 3, 2, 2, **WARPED)
    assert distance(law, reference_law(pi_of(strategy.rule), 3, 2, 2, **WARPED)) < EXACT
