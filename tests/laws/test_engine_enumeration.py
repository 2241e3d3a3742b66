"""The exact joint law of the first tokens through the real engine and real models, for every strategy.

The engine runs once in every box of its random numbers (see `integration`); the reference is the product of
pi along the text, from full forwards of the two models without a cache.
"""

import dataclasses
from collections import defaultdict
from typing import ClassVar

import numpy as np
import pytest
import torch

from cascli import generate, rules
from cascli.decoding import plugin_checks
from cascli.errors import RunError
from cascli.rules.base import KeepRule
from cascli.sampling import distributions
from cascli.strategies import Strategy, token_cascade
from cascli.strategies.speculative_cascade import SpeculativeCascade
from cascli.strategies.token_cascade import TokenCascade
from tests.laws.models import PROMPT, engine_law, logits, model_tables, pi_of, reference_law, tiny_pair
from tests.laws.tables import target
from tests.reference.distributions import total_variation
from tests.reference.process import Law, Pair, Target, distance, sequential_law
from tests.reference.rules import RULES

EXACT = 1e-12
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
ALPHAS = {
    "chow": (0.4, 0.57, 0.5),
    "diff": (0.05, 0.09, 0.15),
    "opt": (0.2, 0.3, 0.6),
    "token-v1": (0.1, 0.2, 0.5),
    "token-v2": (0.0, 0.2, 0.4),
    "token-v3": (0.0, 0.3, 0.7),
}
Settings = dict[str, float]
Shape = tuple[int, int]  # vocabulary and layers
BOTH = pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
EACH_RULE = [(name, alpha) for name in RULES for alpha in ALPHAS[name]]


def speculation(name: str, alpha: float, k: int) -> str:
    """The speculative strategy of a rule."""
    return f"speculative:k={k}" if name == "exact" else f"speculative-cascade:rule={name},alpha={alpha},k={k}"


@dataclasses.dataclass(frozen=True)
class HalfMix(rules.Rule):
    """No choice between the models: pi = (q + p) / 2."""

    def apply(self, d: distributions.Dists) -> torch.Tensor:
        return (d.q + d.p) / 2


@dataclasses.dataclass(frozen=True)
class DraftToken(KeepRule):
    """A token rule that reads q alone: keep v iff q1(v) >= max q1 / 2."""

    reads_target: ClassVar[bool] = False

    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.q1 >= 0.5 * d.q1.amax(dim=-1, keepdim=True)


@dataclasses.dataclass(frozen=True)
class MinP(KeepRule):
    """A keep rule with its own pi: the target restricted to what is kept."""

    def keep(self, d: distributions.Dists) -> torch.Tensor:
        return d.p1 >= 0.5 * d.p1.amax(dim=-1, keepdim=True)

    def apply(self, d: distributions.Dists) -> torch.Tensor:
        kept = d.p * self.keep(d)
        return kept / kept.sum(dim=-1, keepdim=True)


OF_ONES_OWN = [HalfMix(), DraftToken(), MinP()]


def assert_law(
    strategy: str | Strategy,
    rule: Target,
    length: int,
    sampling: Settings,
    shape: Shape = (3, 2),
    *,
    caches: bool = False,
) -> None:
    law = engine_law(strategy, length, *shape, caches=caches, **sampling)
    assert len(law) > 3 and sum(law.values()) == pytest.approx(1.0, abs=EXACT)
    assert distance(law, reference_law(rule, length, *shape, **sampling)) < EXACT


def test_the_models_are_worth_testing() -> None:
    """The models disagree, both depend on more than the last token, and no distribution is flat or certain."""
    tables = model_tables(3, 2, **PLAIN)
    pairs = [tables(prefix) for prefix in [(), (0,), (1,), (2,), (0, 1), (1, 1), (2, 1)]]
    assert np.mean([total_variation(pair.q, pair.p) for pair in pairs]) > 0.1
    for x, y in [((0, 1), (1, 1)), ((1, 1), (2, 1))]:
        assert np.abs(tables(x).q - tables(y).q).max() > 1e-3
        assert np.abs(tables(x).p - tables(y).p).max() > 1e-3


@BOTH
@pytest.mark.parametrize("name", RULES)
def test_the_alphas_are_worth_testing(name: str, sampling: Settings) -> None:
    """At each alpha the rule both defers and keeps somewhere within the enumerated texts."""
    tables = model_tables(3, 2, **sampling)
    prefixes = [(), (0,), (1,), (2,), *((a, b) for a in range(3) for b in range(3))]
    for alpha in ALPHAS[name]:
        seen = np.concatenate([RULES[name](*tables(prefix), alpha).defer for prefix in prefixes])
        assert seen.any() and not seen.all()


@BOTH
@pytest.mark.parametrize("strategy", ["draft", "target"])
def test_one_model_alone(strategy: str, sampling: Settings) -> None:
    rule: Target = (lambda pair: pair.q) if strategy == "draft" else (lambda pair: pair.p)
    assert_law(strategy, rule, 3, sampling, shape=(5, 2))


@BOTH
@pytest.mark.parametrize(("name", "alpha"), EACH_RULE)
def test_token_cascade(name: str, alpha: float, sampling: Settings) -> None:
    assert_law(f"token-cascade:rule={name},alpha={alpha}", target(name, alpha), 2, sampling)


@BOTH
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_speculative(k: int, sampling: Settings) -> None:
    assert_law(f"speculative:k={k}", target("exact"), 3, sampling, caches=True)
    assert_law(f"speculative:k={k}", target("exact"), 2, sampling, shape=(5, 2), caches=True)


@BOTH
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("name", "alpha"), EACH_RULE)
def test_speculative_cascade(name: str, alpha: float, k: int, sampling: Settings) -> None:
    """Three tokens at the middle alpha, two at the others."""
    length = 3 if alpha == ALPHAS[name][1] else 2
    assert_law(f"speculative-cascade:rule={name},alpha={alpha},k={k}", target(name, alpha), length, sampling)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("name", "alpha"), [("exact", 0.0), ("token-v3", 0.3), ("opt", 0.3)])
def test_four_tokens_across_rounds_of_every_length(name: str, alpha: float, k: int) -> None:
    """Two layers; rounds that are fully accepted, rejected midway and rejected at the first token alternate."""
    assert_law(speculation(name, alpha, k), target(name, alpha), 4, PLAIN, caches=k == 2)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", ["exact", *RULES])
def test_greedy_follows_the_same_law_with_a_single_text(name: str, k: int) -> None:
    alpha = ALPHAS.get(name, (0.0, 0.0))[1]
    law = engine_law(speculation(name, alpha, k), 12, 5, 2, **GREEDY)
    assert law == reference_law(target(name, alpha), 12, 5, 2, **GREEDY)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_greedy_speculation_writes_the_targets_own_tokens(k: int) -> None:
    runs = [
        generate(tiny_pair(64, 2), prompt_ids=[1, 2], strategy=strategy, max_new_tokens=60, **GREEDY)
        for strategy in ("target", f"speculative:k={k}")
    ]
    assert runs[0].token_ids == runs[1].token_ids


@pytest.mark.parametrize(("name", "alpha"), [("exact", 0.0), ("token-v3", 0.3), ("opt", 0.3)])
def test_single_precision_keeps_the_law_up_to_rounding(
    name: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tiny_pair.__wrapped__()
    for loaded in (pair.draft, pair.target):
        loaded.model.float()
    expected = reference_law(target(name, alpha), 3, **WARPED)
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: pair)
    assert 0 < distance(engine_law(speculation(name, alpha, 2), 3, **WARPED), expected) < 1e-5


def ended(law: Law, eos: int) -> Law:
    """The law of the texts when each ends after its first end-of-text token."""
    short: Law = defaultdict(float)
    for text, weight in law.items():
        short[text[: text.index(eos) + 1] if eos in text else text] += weight
    return dict(short)


@pytest.mark.parametrize(
    "strategy", ["target", "token-cascade:rule=opt,alpha=0.3", "speculative:k=2", "speculative:k=5"]
)
def test_texts_end_at_the_end_of_text(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = dataclasses.replace(tiny_pair(), eos_ids=frozenset([2]))
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: pair)
    rule = target("opt", 0.3) if strategy.startswith("token") else target("exact")
    law = engine_law(strategy, 3, **PLAIN)
    assert {len(text) for text in law} == {1, 2, 3}
    assert distance(law, ended(reference_law(rule, 3, **PLAIN), 2)) < EXACT


@pytest.mark.parametrize("threshold", [-1.5, -1.0, -0.8])
def test_sequence_cascade(threshold: float) -> None:
    """The draft's answer if its score is high enough, otherwise the target's, independent of the draft's."""
    tables = model_tables(5, 2, **PLAIN)
    drafts = sequential_law(tables, lambda pair: pair.q, 2)
    answers = sequential_law(tables, lambda pair: pair.p, 2)
    scores = {text: np.mean([np.log(tables(text[:i]).q1[x]) for i, x in enumerate(text)]) for text in drafts}
    kept = {text: weight for text, weight in drafts.items() if scores[text] >= threshold}
    handed_over = 1 - sum(kept.values())
    assert 0.01 < handed_over < 0.99
    expected = {text: kept.get(text, 0.0) + handed_over * weight for text, weight in answers.items()}
    law = engine_law(f"cascade:score=mean-logprob,threshold={threshold}", 2, 5, 2, **PLAIN)
    assert distance(law, expected) < EXACT


@BOTH
@pytest.mark.parametrize("name", ["exact", *RULES])
def test_the_trace_matches_the_reference(name: str, sampling: Settings) -> None:
    """q, p, pi, acceptance and TV of every token in the trace are the reference's at its prefix."""
    alpha = ALPHAS.get(name, (0.0, 0.3))[1]
    tables, rule = model_tables(5, 2, **sampling), RULES.get(name)
    for seed in range(4):
        request = {"strategy": speculation(name, alpha, 3), "max_new_tokens": 7, "seed": seed, **sampling}
        run = generate(tiny_pair(5, 2), prompt_ids=PROMPT, **request)
        done: tuple[int, ...] = ()
        for step in run.rounds:
            ids = [token.id for token in step.drafted]
            for i, token in enumerate(step.drafted):
                pair = tables(done + tuple(ids[:i]))
                pi = target(name, alpha)(pair)
                expected = [pair.q[token.id], pair.p[token.id], pi[token.id]]
                assert [token.q, token.p, token.pi] == pytest.approx(expected, abs=EXACT)
                assert token.accept_prob == pytest.approx(min(1, pi[token.id] / pair.q[token.id]), abs=1e-9)
                defer = np.broadcast_to(rule(*pair, alpha).defer, pair.q.shape)[token.id] if rule else False
                assert token.deferred == defer
            kept = sum(token.accepted for token in step.drafted)
            assert [token.accepted for token in step.drafted] == [i < kept for i in range(len(ids))]
            events = ["accepted"] * kept + ["bonus" if kept == len(ids) else "residual"]
            assert [token.event for token in step.emitted] == events
            assert [token.id for token in step.emitted][:kept] == ids[:kept]
            for token in step.emitted:
                pair = tables(done)
                tv = total_variation(target(name, alpha)(pair), pair.p)
                assert token.tv == pytest.approx(tv, abs=EXACT)
                done += (token.id,)
        assert list(done) == run.token_ids and len(done) == 7


def test_the_prompt_is_read() -> None:
    assert logits(5, 1, ())[0].tolist() != logits(5, 1, PROMPT)[0].tolist()


@pytest.mark.parametrize("name", rules.names())
def test_the_engine_follows_the_pi_of_every_rule(name: str) -> None:
    """Rules that are added later are enumerated too: the law is the product of the pi that they return."""
    fields = dataclasses.fields(rules.load(name))
    values = {field.name: 0.3 for field in fields if field.default is dataclasses.MISSING}

    def rule(pair: Pair) -> np.ndarray:
        d = distributions.Dists(*(torch.tensor(row).unsqueeze(0) for row in pair))
        return rules.load(name)(**values).apply(d)[0].numpy()

    spec = ",".join([f"rule={name}", *(f"{key}={value}" for key, value in values.items())])
    assert_law(f"speculative-cascade:{spec},k=2", rule, 3, WARPED)
    assert_law(f"token-cascade:{spec}", rule, 2, WARPED)


@pytest.mark.parametrize("rule", OF_ONES_OWN, ids=lambda rule: type(rule).__name__)
@BOTH
def test_custom_rules_are_followed(rule: rules.Rule, sampling: Settings) -> None:
    """Mixtures and token rules that read only q, in both strategies: what docs/add-a-rule.md invites users to write."""
    for strategy, length in ((TokenCascade(rule), 2), (SpeculativeCascade(rule, k=2), 3)):
        assert_law(strategy, pi_of(rule), length, sampling)


@pytest.mark.parametrize("rule", OF_ONES_OWN, ids=lambda rule: type(rule).__name__)
def test_a_token_cascade_traces_custom_rules_correctly(rule: rules.Rule) -> None:
    tables = model_tables(5, 2, **PLAIN)
    known = 0
    for seed in range(6):
        request = {"strategy": TokenCascade(rule), "max_new_tokens": 6, "seed": seed, **PLAIN}
        run = generate(tiny_pair(5, 2), prompt_ids=PROMPT, **request)
        assert run.oracle is (type(rule) is not DraftToken)
        for i, token in enumerate(run.emitted):
            pair = tables(tuple(run.token_ids[:i]))
            d = distributions.Dists(*(torch.tensor(row).unsqueeze(0) for row in pair))
            pi, defer = rule.apply(d), rule.deferred(d)
            assert (defer is None) is (token.deferral is None) is (type(rule) is not DraftToken)
            if defer is not None:
                assert token.deferral == pytest.approx(float((d.q * defer).sum()), abs=EXACT)
            if token.tv is not None:
                known += 1
                assert token.tv == pytest.approx(float(distributions.total_variation(pi, d.p)), abs=EXACT)
            else:
                assert token.event == "draft" and not run.oracle
    assert known > 3


def test_a_token_cascade_that_reads_the_mask_at_token_0_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the mask of a token rule is read at id 0, whatever was drawn."""
    rule = DraftToken()
    right = engine_law(TokenCascade(rule), 2, **PLAIN)
    monkeypatch.setattr(token_cascade, "_of_token", lambda defer, token: defer[0, :1])
    assert distance(engine_law(TokenCascade(rule), 2, **PLAIN), right) > 0.01


def test_a_token_cascade_that_follows_only_the_mask_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a rule's own pi is treated as a choice between the models (not possible for a rule without a mask)."""
    rule = MinP()
    assert rule.deferred(distributions.Dists(*torch.full((4, 1, 3), 1 / 3))) is None
    right = engine_law(TokenCascade(rule), 2, **PLAIN)
    monkeypatch.setattr(type(rule), "chooses", True)
    with pytest.raises(RunError, match="pi is not what deferred makes"):  # checked if the rule is another package's
        engine_law(TokenCascade(rule), 2, **PLAIN)
    monkeypatch.setattr(plugin_checks, "is_own", lambda each: True)
    assert distance(engine_law(TokenCascade(rule), 2, **PLAIN), right) > 0.01
