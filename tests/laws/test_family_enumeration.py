"""The exact joint law of texts through the real engine: the rules beyond the paper's six, and the options of rules.

The engine runs once in every box of its random numbers (see `integration`); the reference is the law of the sampler
that the rule's authors describe, along the text. Whole texts of three tokens have rounds of up to two drafts. Rounds of
three and five drafts are enumerated alone, and the reference completes them to k + 1 tokens. The vocabulary is three
tokens for k = 3, and two for k = 5, where three would take minutes; k = 5 has one setting per rule.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cascli import generate, load_pair
from cascli.decoding import speculation, thinking
from cascli.engine import Decoding, Request
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.pair import Pair
from cascli.rules import _tail
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse
from tests.laws.integration import exact_law
from tests.laws.models import PROMPT, engine_law, model_tables, remembering, tiny_pair
from tests.laws.of_recorded import MIDDLE
from tests.pairs import pair
from tests.reference import lossy
from tests.reference.distributions import total_variation
from tests.reference.process import Law, Tables, Target, Tokens, distance, sequential_law

EXACT = 1e-12
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
BOTH = pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
LAYERS = 2
Case = tuple[str, dict[str, Any]]  # a rule and its parameters

FAMILY: list[Case] = [
    ("head", {"alpha": 0.8}),
    ("mentored", {"alpha": 0.3}),
    ("lenience", {"lenience": 0.6}),
    ("lenience", {"lenience": 0.6, "shape": "exp"}),
    ("mixture", {"target_weight": 0.4}),
    ("typical", {"epsilon": 0.45, "delta": 0.9}),
    ("fuzzy", {"threshold": 0.02}),
    ("bild", {"alpha": 1.0}),
    ("opt-log", {"alpha": 0.3}),
    ("cactus", {"delta": 0.05}),
    ("min-p", {"alpha": 0.5}),
    ("top-k", {"n": 2}),
    ("top-p", {"mass": 0.7}),
    ("eta", {"epsilon": 0.45, "delta": 0.9}),
]
OPTIONS: list[Case] = [
    ("token-v1", {"alpha": 0.2, "tail": "exact"}),
    ("token-v2", {"alpha": 0.2, "tail": "exact"}),
    ("token-v3", {"alpha": 0.7, "tail": "exact"}),
    ("typical", {"epsilon": 0.25, "delta": 0.9, "tail": "exact"}),
    ("token-v2", {"alpha": 0.9, "top": 1}),
    ("token-v3", {"alpha": 0.9, "top": 2}),
    ("token-v3", {"alpha": 0.9, "top": 2, "tail": "exact"}),
    ("head", {"alpha": 0.9, "top": 2}),
]
OVER_TWO = {"opt-log": {"alpha": 0.02}, "token-v1": {"alpha": 0.0}, "fuzzy": {"threshold": 0.01}, "top-k": {"n": 1}}
"""Parameters for a vocabulary of two tokens, where those of `FAMILY` and `OPTIONS` would change nothing."""
WHERE: list[Case] = [
    ("token-v2", {"alpha": 0.6}),
    ("token-v3", {"alpha": 0.7, "top": 2}),
    ("head", {"alpha": 0.7}),
]
OPENING, CLOSING = 0, 1
BETWEEN = [(1, 0), (0, 1), (2, 0)]
"""Opening and closing tokens; with the first and the last pair, the prompt ends inside."""


def named(case: Case) -> str:
    name, params = case
    return ",".join([f"rule={name}", *(f"{key}={value}" for key, value in params.items())])


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=named)


def law_of(case: Case) -> Target:
    """The reference's pi."""
    name, params = case
    if name in ("head", "typical") or name.startswith("token"):
        rule = lossy.token_rule(name, params)
        return lambda pair: rule(*pair)
    return lambda pair: lossy.FAMILY[name](*pair, **params)


def over_two(case: Case) -> Case:
    name, params = case
    limit = {"top": 1} if "top" in params else {}
    return name, params | OVER_TWO.get(name, {}) | limit


def tables_of(vocab: int, sampling: dict[str, Any]) -> Tables:
    return model_tables(vocab, LAYERS, **sampling)


def round_law(strategy: str, k: int, vocab: int, sampling: dict[str, Any]) -> Law:
    """The law of what the first round emits."""
    pair, parsed = remembering(tiny_pair(vocab, LAYERS)), parse(strategy)

    def run(uniforms: Any) -> Tokens:
        prompt = [token % vocab for token in PROMPT]
        request = Request(prompt, Sampling(**sampling), max_new_tokens=k + 1, uniforms=uniforms)
        decoding = Decoding(pair, parsed, request)
        for event in decoding.steps():
            return tuple(token.id for token in event.round.emitted)
        raise AssertionError

    return exact_law(run)


def completed(law: Law, tables: Tables, rule: Target, length: int, **how: Any) -> Law:
    """The law of texts of a length that begin with `law` and are continued by the reference."""
    whole: Law = defaultdict(float)
    for emitted, weight in law.items():
        for tail, more in sequential_law(tables, rule, length - len(emitted), emitted, **how).items():
            whole[emitted + tail] += weight * more
    return dict(whole)


# ---------------------------------------------------------------- rules and options that are a function of (q, p)


@BOTH
@each(FAMILY + OPTIONS)
def test_the_cases_are_worth_testing(case: Case, sampling: dict[str, Any]) -> None:
    """pi differs from p somewhere and from q somewhere, so both what is kept and what is not matter."""
    for vocab, each in ((3, case), (2, over_two(case))):
        tables, rule, tokens = tables_of(vocab, sampling), law_of(each), range(vocab)
        pairs = [tables(prefix) for prefix in [(), *((a,) for a in tokens), *((a, b) for a in tokens for b in tokens)]]
        apart = [(total_variation(rule(pair), pair.p), total_variation(rule(pair), pair.q)) for pair in pairs]
        assert max(to_p for to_p, _ in apart) > 1e-3 and max(to_q for _, to_q in apart) > 1e-3


@BOTH
@each(FAMILY + OPTIONS)
def test_token_cascade(case: Case, sampling: dict[str, Any]) -> None:
    law = engine_law(f"token-cascade:{named(case)}", 2, 3, LAYERS, caches=False, **sampling)
    assert distance(law, sequential_law(tables_of(3, sampling), law_of(case), 2)) < EXACT


@pytest.mark.parametrize("k", [1, 2])
@each(FAMILY + OPTIONS)
def test_texts_of_three_tokens(case: Case, k: int) -> None:
    """Across rounds; each rule is plain at one k and warped at the other, alternating over the rules."""
    sampling = PLAIN if ((FAMILY + OPTIONS).index(case) + k) % 2 else WARPED
    law = engine_law(f"speculative-cascade:{named(case)},k={k}", 3, 3, LAYERS, caches=False, **sampling)
    assert sum(law.values()) == pytest.approx(1.0, abs=EXACT)
    assert distance(law, sequential_law(tables_of(3, sampling), law_of(case), 3)) < EXACT


@pytest.mark.parametrize(("k", "vocab", "sampling"), [(3, 3, WARPED), (5, 2, PLAIN)], ids=["k=3", "k=5"])
@each(FAMILY + OPTIONS)
def test_a_round_of_many_drafts(case: Case, k: int, vocab: int, sampling: dict[str, Any]) -> None:
    case = case if vocab > 2 else over_two(case)
    tables, rule = tables_of(vocab, sampling), law_of(case)
    law = round_law(f"speculative-cascade:{named(case)},k={k}", k, vocab, sampling)
    assert {len(emitted) for emitted in law} > {k + 1}
    assert distance(completed(law, tables, rule, k + 1), sequential_law(tables, rule, k + 1)) < EXACT


# ---------------------------------------------------------------- where=thinking: pi also depends on the text


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], Pair]:
    """The tiny pair, with two of its tokens as the thinking markers."""

    def use(tokens: tuple[int, int]) -> Pair:
        loaded = thinks(tiny_pair(3, LAYERS), tokens)
        monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: loaded)
        monkeypatch.setattr(f"{__name__}.tiny_pair", lambda *_: loaded)
        return loaded

    return use


def thinks(loaded: Pair, tokens: tuple[int, int]) -> Pair:
    return dataclasses.replace(loaded, config=loaded.config.model_copy(update={"thinking": tokens}))


def holds(tokens: tuple[int, int]) -> Callable[[Tokens], bool]:
    """Whether a prefix ends inside a thinking section, by walking over prompt and text."""

    def inside(prefix: Tokens) -> bool:
        state = False
        for token in (*PROMPT, *prefix):
            state = token == tokens[0] or (state and token != tokens[1])
        return state

    return inside


def where_law(strategy: str, case: Case, tokens: tuple[int, int], length: int, **sampling: Any) -> tuple[Law, Law]:
    law = engine_law(strategy, length, 3, LAYERS, caches=False, **sampling)
    tables = tables_of(3, sampling)
    return law, sequential_law(tables, law_of(case), length, holds=holds(tokens))


def speculating(case: Case, k: int) -> str:
    return f"speculative-cascade:{named(case)},where=thinking,k={k}"


@pytest.mark.parametrize("tokens", BETWEEN, ids=str)
@each(WHERE)
def test_rules_apply_only_inside_thinking(case: Case, tokens: tuple[int, int], between: Callable[..., Pair]) -> None:
    """In a token cascade a choice rule uses one more uniform per token, so it is enumerated over fewer tokens."""
    between(tokens)
    place = BETWEEN.index(tokens)
    k, sampling = 1 + place % 2, PLAIN if (place + WHERE.index(case)) % 2 else WARPED
    alone = f"token-cascade:{named(case)},where=thinking"
    for strategy, length in ((speculating(case, k), 3), (alone, 3 if case[0] == "head" else 2)):
        law, wanted = where_law(strategy, case, tokens, length, **sampling)
        assert distance(law, wanted) < EXACT
        for other in (law_of(case), lambda pair: pair.p):  # everywhere; nowhere
            assert distance(wanted, sequential_law(tables_of(3, sampling), other, length)) > 1e-3


@pytest.mark.parametrize("k", [3, 5])
@each(WHERE)
def test_a_round_of_many_drafts_may_cross_a_thinking_boundary(case: Case, k: int, between: Callable[..., Pair]) -> None:
    """Over a vocabulary of three: all rules at k = 3, only one at k = 5."""
    if k == 5 and case is not WHERE[0]:
        pytest.skip("one rule is enough for the mask")
    tokens = (1, 0)
    between(tokens)
    tables, rule, how = tables_of(3, WARPED), law_of(case), {"holds": holds(tokens)}
    law = round_law(speculating(case, k), k, 3, WARPED)
    assert distance(completed(law, tables, rule, k + 1, **how), sequential_law(tables, rule, k + 1, **how)) < EXACT


def test_the_mask_of_a_text() -> None:
    text = torch.tensor([5, 8, 5, 9, 9, 8, 8, 5])
    assert thinking.inside(text, False, (8, 9)).tolist() == [bool(x) for x in (0, 0, 1, 1, 0, 0, 1, 1, 1)]
    assert thinking.inside(text, True, (8, 9)).tolist() == [bool(x) for x in (1, 1, 1, 1, 0, 0, 1, 1, 1)]
    assert thinking.inside(text[:0], True, (8, 9)).tolist() == [True]
    assert [thinking.opened(ids, (8, 9)) for ids in ([], [1], [8, 1], [8, 9], [9, 8], [8, 9, 1])] == [
        *(False, False, True, False, True, False)
    ]


class Stale(GraphCache):
    """Planted: a captured round reads the mask it was captured with."""

    def run(self, key: Any, function: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        stale = inputs[-1]
        for places, _ in self._graphs.values():
            stale = places[-1] if places[-1].shape == stale.shape else stale
        return super().run(key, function, *inputs[:-1], stale.clone())


@each(WHERE)
def test_a_captured_round_is_given_its_mask(case: Case) -> None:
    loaded = thinks(load_pair(pair(12, **MIDDLE), dtype="float32"), (1, 0))

    def texts(graphs: GraphCache) -> list[list[int]]:
        through = dataclasses.replace(loaded, graphs=graphs)
        ask = {"strategy": speculating(case, 3), "max_new_tokens": 16, "temperature": 0.8}
        return [generate(through, prompt_ids=[2, 3, seed], seed=seed, **ask).token_ids for seed in range(4)]

    wanted = texts(GraphCache())
    assert texts(GraphCache(Uncaptured())) == wanted
    assert texts(Stale(Uncaptured())) != wanted


@each(WHERE)
def test_the_trace_shows_where_a_rule_does_not_apply(case: Case, between: Callable[..., Pair]) -> None:
    """Outside, pi is p: a rule that chooses between the models defers to the target, any other defers nothing."""
    tokens = (1, 0)
    loaded, tables, inside = between(tokens), tables_of(3, PLAIN), holds(tokens)
    outside = 0
    for seed in range(6):
        run = generate(loaded, prompt_ids=PROMPT, strategy=speculating(case, 3), max_new_tokens=9, seed=seed, **PLAIN)
        done: Tokens = ()
        for step in run.rounds:
            for i, token in enumerate(step.drafted):
                prefix = done + tuple(each.id for each in step.drafted[:i])
                both = tables(prefix)
                pi = law_of(case)(both) if inside(prefix) else both.p
                assert token.pi == pytest.approx(pi[token.id], abs=EXACT)
                if not inside(prefix):
                    outside += 1
                    assert token.deferred is (case[0] != "head")
            for token in step.emitted:
                if not inside(done):
                    assert token.tv == pytest.approx(0, abs=EXACT)
                    assert token.deferral == (None if case[0] == "head" else pytest.approx(1))
                done += (token.id,)
    assert outside > 10


# ---------------------------------------------------------------- what these laws detect


def late_by_one(patch: pytest.MonkeyPatch) -> None:
    """The opening token counts as inside, the closing token as outside."""
    right = thinking.inside
    patch.setattr(thinking, "inside", lambda text, before, tokens: right(text, before, tokens).roll(-1))


def prompt_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thinking, "opened", lambda ids, tokens: False)


def drafts_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The mask of the first position is used for the whole round."""
    right = thinking.where

    def where(*given: Any) -> tuple[torch.Tensor, ...]:
        return tuple(each[:1].expand(each.shape) for each in right(*given))

    patch.setattr(thinking, "where", where)


def bonus_is_always_lenient(patch: pytest.MonkeyPatch) -> None:
    right = speculation.plain_round

    def round_(*given: Any, **how: Any) -> torch.Tensor:
        mask = given[-1].clone()
        mask[-1] = True
        return right(*given[:-1], mask, **how)

    patch.setattr(speculation, "plain_round", round_)


def never_masked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thinking, "where", lambda *_: ())


def residual_from_p(patch: pytest.MonkeyPatch) -> None:
    """A token that the exact test rejects is replaced by a draw from p."""
    patch.setattr(_tail, "completed", lambda accepted, d: accepted + (d.q - accepted).sum(-1, keepdim=True) * d.p)


def one_rank_too_many(patch: pytest.MonkeyPatch) -> None:
    right = Dists.nth_largest
    patch.setattr(Dists, "nth_largest", lambda d, of, n: right(d, of, n + 1))


def planted() -> Iterator[Any]:
    masked = (late_by_one, prompt_is_forgotten, drafts_are_forgotten, bonus_is_always_lenient, never_masked)
    yield from (pytest.param(bug, WHERE[0], True, id=bug.__name__) for bug in masked)
    yield from (
        pytest.param(bug, case, False, id=f"{bug.__name__} {named(case)}")
        for bug, cases in ((residual_from_p, (OPTIONS[0], OPTIONS[3], FAMILY[0])), (one_rank_too_many, OPTIONS[5:8:2]))
        for case in cases
    )


@pytest.mark.parametrize(("bug", "case", "masked"), list(planted()))
def test_the_bug_is_detected(
    bug: Callable[..., None],
    case: Case,
    masked: bool,
    between: Callable[..., Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = (1, 0)
    if masked:
        between(tokens)
    wanted = sequential_law(tables_of(3, PLAIN), law_of(case), 3, holds=holds(tokens) if masked else lambda _: True)
    strategy = speculating(case, 2) if masked else f"speculative-cascade:{named(case)},k=2"
    assert distance(engine_law(strategy, 3, 3, LAYERS, caches=False, **PLAIN), wanted) < EXACT
    bug(monkeypatch)
    assert distance(engine_law(strategy, 3, 3, LAYERS, caches=False, **PLAIN), wanted) > 1e-3


def test_a_token_cascade_without_its_mask_is_detected(
    between: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    between((1, 0))
    never_masked(monkeypatch)
    law, wanted = where_law(f"token-cascade:{named(WHERE[0])},where=thinking", WHERE[0], (1, 0), 2, **PLAIN)
    assert distance(law, wanted) > 1e-3
