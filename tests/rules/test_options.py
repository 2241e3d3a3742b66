"""Options of rules: how drafts that are not kept are replaced, the rank limit, and where a rule applies."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cascli import compare, generate, load_pair, rules
from cascli.engine import check_models
from cascli.errors import ConfigError, UsageError
from cascli.models.pair import Pair
from cascli.rules import load
from cascli.rules.base import ChoiceRule, RelaxedRule, TokenRule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.strategies import parse
from tests.laws.cases import rows
from tests.pairs import pair
from tests.reference import lossy
from tests.rules.test_family import CLOSE, dirichlet, each_row, greedy, near, pairs, rejected, tv

TOKEN_RULES: list[tuple[str, dict[str, Any]]] = [
    ("token-v1", {"alpha": 0.2}),
    ("token-v2", {"alpha": 0.2}),
    ("token-v3", {"alpha": 0.5}),
    ("typical", {"epsilon": 0.2, "delta": 0.6}),
]
RELAXED = ("token-v2", "token-v3", "head")


def agrees(name: str, params: dict[str, Any]) -> None:
    """pi equals the law of the sampler that the reference describes, on ordinary and adversarial pairs."""
    for d in pairs():
        for found, row in zip(rows(load(name)(**params).apply(d)), each_row(d), strict=True):
            if name == "typical" and near(row, {key: params[key] for key in ("epsilon", "delta")}):
                continue
            assert np.abs(found - lossy.token_rule(name, params)(*row)).max() < 1e-10, (name, params, row)


@pytest.mark.parametrize("tail", ["cut", "exact"])
@pytest.mark.parametrize(("name", "params"), TOKEN_RULES)
def test_both_tails_are_laws_of_their_samplers(name: str, params: dict[str, Any], tail: str) -> None:
    agrees(name, {**params, "tail": tail})


@pytest.mark.parametrize("top", [1, 2, 5, 1000])
@pytest.mark.parametrize("name", RELAXED)
def test_a_rank_limit_keeps_the_likeliest(name: str, top: int) -> None:
    for alpha in (0.4, 0.9):
        agrees(name, {"alpha": alpha, "top": top})


def test_ties_with_the_last_rank_are_kept() -> None:
    p = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])
    keep = load("token-v3")(alpha=1.0, top=2).keep(Dists(p, p, p, p))
    assert keep.tolist() == [[False, True, True, True, True]]
    assert load("token-v3")(alpha=0.5, top=1).keep(Dists(p, p, p, p)).tolist() == [[False, True, False, False, False]]


@pytest.mark.parametrize("alpha", [-0.2, 0.0, 0.3, 0.9])
def test_head_is_token_v3_whose_others_are_tested_exactly(alpha: float) -> None:
    for d in pairs():
        assert torch.equal(load("head")(alpha=alpha).apply(d), load("token-v3")(alpha=alpha, tail="exact").apply(d))


@pytest.mark.parametrize(("name", "params"), TOKEN_RULES)
def test_the_exact_tail_dominates(name: str, params: dict[str, Any]) -> None:
    """At the same K: never fewer accepted, never farther from p, and rejection trades one for one against TV(pi, p)."""
    for size, seed in ((8, 0), (50, 1)):
        d = dirichlet(size, seed=seed)
        cut, exact = (load(name)(**params, tail=tail).apply(d) for tail in ("cut", "exact"))
        assert (rejected(exact, d) <= rejected(cut, d) + CLOSE).all()
        assert (tv(exact, d.p) <= tv(cut, d.p) + CLOSE).all()
        assert (rejected(exact, d) < rejected(cut, d) - 1e-3).any()
        assert torch.allclose(rejected(exact, d) + tv(exact, d.p), tv(d.p, d.q), atol=1e-10)


@pytest.mark.parametrize(("name", "params"), TOKEN_RULES)
def test_a_rule_with_an_exact_tail_does_not_choose_between_the_models(name: str, params: dict[str, Any]) -> None:
    d = dirichlet(count=5)
    rule = load(name)(**params, tail="exact")
    assert not rule.chooses and rule.deferred(d) is None
    assert load(name)(**params).chooses and load(name)(**params).deferred(d) is not None


@pytest.mark.parametrize(("alpha", "top"), [(0.1, 3), (0.5, 2), (0.9, 1), (1.0, 4)])
def test_at_temperature_0_a_rank_limit_is_relaxed_acceptance(alpha: float, top: int) -> None:
    """As in other engines: keep the draft if it is among the N likeliest and near the best, else take the argmax."""
    d, kept = greedy(), 0
    found = {name: load(name)(alpha=alpha, top=top).apply(d).argmax(-1) for name in RELAXED}
    for i, (q, p, _, p1) in enumerate(each_row(d)):
        draft, best = int(q.argmax()), int(p.argmax())
        ranked = draft in np.argsort(-p1)[:top]
        for name, threshold in (("token-v2", p1.max() - alpha), ("token-v3", (1 - alpha) * p1.max())):
            wanted = draft if ranked and p1[draft] >= threshold else best
            assert found[name][i] == wanted
            kept += wanted != best
        assert found["head"][i] == found["token-v3"][i]
    assert top == 1 or kept > 10


# ---- how options are written


def test_strategy_strings_without_options_are_unchanged() -> None:
    assert parse("speculative-cascade:rule=token-v3").spec == "speculative-cascade:rule=token-v3,alpha=0.3,k=4"
    assert parse("speculative-cascade:rule=token-v3,tail=cut").spec == parse("speculative-cascade").spec
    assert parse("token-cascade:rule=typical").spec == "token-cascade:rule=typical,epsilon=0.09,delta=0.3"
    assert parse("speculative-cascade:rule=head,tail=exact").spec == "speculative-cascade:rule=head,alpha=0.3,k=4"
    for name in rules.names():
        spec = parse(f"speculative-cascade:rule={name}").spec
        assert not {"tail", "top", "where"} & set(parse(spec).params), spec


@pytest.mark.parametrize(
    "text",
    [
        "speculative-cascade:rule=token-v1,alpha=0.3,tail=exact,k=4",
        "speculative-cascade:rule=token-v2,alpha=0.3,tail=exact,top=10,where=thinking,k=4",
        "speculative-cascade:rule=head,alpha=0.3,top=3,where=thinking,k=4",
        "token-cascade:rule=token-v3,alpha=0.3,where=thinking",
        "token-cascade:rule=typical,tail=exact,epsilon=0.09,delta=0.3",
    ],
)
def test_options_survive_a_round_trip_through_the_string(text: str) -> None:
    assert parse(text).spec == text and parse(parse(text).spec) == parse(text)


WHOLE = [name for name in rules.names() if not issubclass(load(name), TokenRule)]


def test_rules_over_whole_distributions_are_declared_correctly() -> None:
    d = dirichlet(count=3)
    for name in WHOLE:
        rule = load(name)()
        assert not isinstance(rule, ChoiceRule) or rule.keep(d).shape == (3, 1), name
    for name in set(rules.names()) - set(WHOLE):
        assert load(name)().keep(d).shape == (3, 8), name
        assert issubclass(load(name), RelaxedRule) is (name in RELAXED)


@pytest.mark.parametrize("option", ["tail=exact", "tail=cut", "top=3", "where=thinking"])
@pytest.mark.parametrize("name", WHOLE)
def test_other_rules_refuse_options(name: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"unknown parameter '{option.partition('=')[0]}'"):
        parse(f"speculative-cascade:rule={name},{option}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("rule=head,tail=cut", "tail"),
        ("rule=token-v3,tail=half", "'cut' or 'exact'"),
        ("rule=token-v2,top=0", "greater than or equal to 1"),
        ("rule=token-v2,top=1.5", "integer"),
        ("rule=token-v3,where=answer", "'thinking'"),
        ("rule=token-v1,top=3", "unknown parameter 'top'"),
    ],
)
def test_bad_options_are_explained(options: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(f"speculative-cascade:{options}")


# ---- which tokens delimit thinking


def with_tokens(name: str, *tokens: str, **more: Any) -> Pair:
    loaded = load_pair({**pair(300), "name": name, **more})
    loaded.tokenizer.add_tokens(list(tokens))
    return dataclasses.replace(loaded, vocab=257 + len(tokens))


def test_the_two_tokens_are_found_in_the_vocabulary() -> None:
    assert with_tokens("thinks", "<think>", "</think>").thinking == (257, 258)
    assert with_tokens("own", "[T]", "[/T]", thinking=["[T]", "[/T]"]).thinking == (257, 258)
    assert load_pair({**pair(300), "thinking": ["<", 62]}).thinking == (60, 62)
    cut = with_tokens("cut", "<think>", "</think>")
    assert dataclasses.replace(cut, vocab=258).thinking is None  # a masked id is never written


@pytest.mark.parametrize("tokens", [["<think>", "<"], ["<", "<"], [60, 400], [60, -1]])
def test_an_incomplete_pair_of_thinking_tokens_is_ignored(tokens: list[Any]) -> None:
    assert load_pair({**pair(300), "thinking": tokens}).thinking is None


@pytest.mark.parametrize(
    "strategy", ["speculative-cascade:rule=head,where=thinking", "token-cascade:rule=token-v2,where=thinking"]
)
def test_a_pair_without_thinking_tokens_is_refused(strategy: str) -> None:
    loaded = load_pair(pair(300))
    with pytest.raises(UsageError, match=r"<think> and </think>, but pair 'test' has no such tokens;\n.*thinking:"):
        generate(loaded, prompt_ids=[1, 2], strategy=strategy, max_new_tokens=3)
    with pytest.raises(UsageError, match="where=thinking"):  # before any other strategy has started
        compare(loaded, "hello", ["target", strategy], max_new_tokens=3, on_progress=pytest.fail)
    check_models(loaded, parse(strategy.replace(",where=thinking", "")))


@pytest.mark.parametrize("value", ["<think>", ["<think>"], [1.5, 2], ["a", "b", "c"]])
def test_thinking_must_name_two_tokens(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"pair: thinking"):
        load_pair({**pair(300), "thinking": value})


def test_at_temperature_0_only_the_thinking_uses_draft_tokens() -> None:
    """Inside the markers (bytes 7 and 9) the draft's tokens are kept; outside, the target's."""
    loaded = load_pair({**pair(300), "thinking": [7, 9]})
    ask = {
        "max_new_tokens": 20,
        "temperature": 0.0,
        "strategy": "speculative-cascade:rule=token-v3,alpha=1,where=thinking",
    }
    draft = generate(loaded, prompt_ids=[5, 7, 6], **{**ask, "strategy": "draft"}).token_ids
    target = generate(loaded, prompt_ids=[5, 9, 6], **{**ask, "strategy": "target"}).token_ids
    assert not {7, 9} & {*draft, *target}
    assert generate(loaded, prompt_ids=[5, 7, 6], **ask).token_ids == draft
    assert generate(loaded, prompt_ids=[5, 9, 6], **ask).token_ids == target


def test_a_rank_limit_gives_a_valid_law_in_float32() -> None:
    x, y = 3 * torch.randn((2, 2, 150_000), generator=torch.Generator().manual_seed(0))
    d = Dists(*(distributions.base(each) for each in (x, y, x, y)))
    for name in RELAXED:
        pi = load(name)(alpha=0.9, top=10).apply(d)
        assert pi.dtype == torch.float32 and pi.min() >= 0
        assert pi.double().sum(-1) == pytest.approx(torch.ones(2).double(), abs=1e-4)
