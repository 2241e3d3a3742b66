"""Drafts without a model: the exact joint law of texts by enumeration, and what a lookup copies.

The reference plans each round with its own search and enumerates every outcome; the engine runs once in every box of
its random numbers (see `integration`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cascli import drafters, generate, load_pair, rules
from cascli.decoding import speculation
from cascli.drafters.model import Model
from cascli.drafters.prompt_lookup import continuation
from cascli.errors import UsageError
from cascli.sampling import rejection
from cascli.strategies import parse
from cascli.strategies.base import validated
from cascli.strategies.speculative_cascade import SpeculativeCascade
from tests.laws.models import PROMPT, engine_law, model_tables, reference_law, tiny_pair
from tests.laws.tables import target
from tests.pairs import model, pair
from tests.reference.process import Law, Pair, Tokens, distance, planned_law

EXACT = 1e-12
ROUNDING = 1e-6
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 2, "top_p": 0.95}
VOCAB = 3
CASES = [("exact", 0.0), ("token-v2", 0.2), ("token-v3", 0.0), ("token-v3", 0.4)]


def looked_up(text: Tokens, count: int, largest: int = 3, smallest: int = 1) -> list[int]:
    """The rule of `prompt_lookup`, restated: try every earlier position; the longest match wins, then the latest."""
    best = max(
        (
            (n, end)
            for end in range(1, len(text))
            for n in range(smallest, min(largest, end) + 1)
            if text[end - n : end] == text[len(text) - n :]
        ),
        default=None,
    )
    copied = list(text)
    for i in range(count if best is not None else 0):
        copied.append(copied[best[1] + i])
    return copied[len(text) :]


def plan(count: int, ngram: int) -> Callable[[Tokens], Tokens]:
    prompt = tuple(token % VOCAB for token in PROMPT)
    return lambda prefix: tuple(looked_up((*prompt, *prefix), count, ngram))


def by_lookup(rule: str, alpha: float, k: int, length: int, ngram: int = 3, **sampling: Any) -> tuple[Law, Law]:
    name = "speculative:" if rule == "exact" else f"speculative-cascade:rule={rule},alpha={alpha},"
    law = engine_law(f"{name}draft=prompt-lookup,max_ngram={ngram},k={k}", length, VOCAB, 2, **sampling)
    tables = model_tables(VOCAB, 2, **sampling)
    return law, planned_law(tables, target(rule, alpha), length, k, plan(k + 1, ngram), exact=rule == "exact")


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("rule", "alpha"), CASES)
def test_the_law_matches_planned_rounds(rule: str, alpha: float, k: int, sampling: dict[str, Any]) -> None:
    """Five tokens: rounds with drafts of every length, with and without a proposal for the bonus position."""
    law, wanted = by_lookup(rule, alpha, k, 5, **sampling)
    assert distance(law, wanted) < EXACT


@pytest.mark.parametrize("rule", ["speculative:", "speculative-cascade:rule=token-v2,alpha=0.25,"])
@pytest.mark.parametrize("stop", ["rate", "heuristic,start=2"])
def test_a_stop_cuts_the_plan_of_a_round(rule: str, stop: str) -> None:
    """Looking the text up again after each drafted token would plan other tokens, and change the law."""
    texts = random.Random(0)
    again = 0
    for seed in range(40):
        prompt = [texts.randrange(VOCAB) for _ in range(14)]
        run = generate(
            tiny_pair(VOCAB, 3), prompt_ids=prompt, strategy=f"{rule}draft=prompt-lookup,k=6,stop={stop}",
            max_new_tokens=12, seed=seed, **PLAIN,
        )  # fmt: skip
        text = list(prompt)
        for step in run.rounds:
            drafted = [token.id for token in step.drafted]
            planned = looked_up(tuple(text), 6)
            assert drafted == planned[: len(drafted)]
            by_token = list(text)
            for _ in drafted:
                by_token += looked_up(tuple(by_token), 1)
            again += by_token[len(text) :] != drafted
            text += [token.id for token in step.emitted]
    assert again > 3, "the two ways have to differ somewhere"


def test_the_exact_rule_is_lossless_whatever_is_drafted() -> None:
    law, _ = by_lookup("exact", 0.0, 3, 5, **PLAIN)
    assert distance(law, reference_law(target("exact"), 5, VOCAB, 2, **PLAIN)) < EXACT


def test_a_lossy_law_depends_on_where_rounds_begin() -> None:
    """As `by_prefix` declares, another k plans other positions, and the law of the text changes."""
    assert not drafters.load("prompt-lookup").by_prefix
    (one, wanted), (three, _) = (by_lookup("token-v3", 0.4, k, 6, ngram=1, **PLAIN) for k in (1, 3))
    assert distance(one, wanted) < EXACT
    assert distance(one, three) > 1e-3


def test_the_cases_disagree_in_the_middle() -> None:
    """Keeps the laws above sensitive: drafts pass with any probability, in blocks of any length."""
    chances, lengths = [], set()
    for seed in range(40):
        run = generate(
            tiny_pair(VOCAB, 2), prompt_ids=[1, 2], strategy="speculative:draft=prompt-lookup,k=3", max_new_tokens=6,
            seed=seed, **PLAIN,
        )  # fmt: skip
        chances += [token.accept_prob for step in run.rounds for token in step.drafted]
        lengths |= {len(step.drafted) for step in run.rounds}
    assert lengths >= {0, 1, 2, 3}
    assert sum(0.1 < chance < 0.9 for chance in chances) > len(chances) / 2


def residual_keeps_the_draft(patch: pytest.MonkeyPatch) -> None:
    """A rejected token can be drawn again."""
    patch.setattr(rejection, "residual", lambda pi, q: pi)


def as_if_sampled(patch: pytest.MonkeyPatch) -> None:
    """A deterministic draft verified as if drawn from a flat q (like an argmax draft verified with its softmax)."""
    right = speculation.Block.certain.__func__

    def certain(cls: Any, *given: Any) -> speculation.Block:
        block = right(cls, *given)
        return block._replace(q=torch.full_like(block.q, 1 / VOCAB), q1=torch.full_like(block.q1, 1 / VOCAB))

    patch.setattr(speculation.Block, "certain", classmethod(certain))


def bonus_from_p(patch: pytest.MonkeyPatch) -> None:
    """The proposal for the position after the block is ignored."""
    right = speculation.plain_round

    def round_(rule: Any, sampling: Any, logits: Any, tokens: Any, q: Any, q1: Any, *u: Any, **how: Any) -> Any:
        n = tokens.shape[0]
        return right(rule, sampling, logits, tokens, q[:n], q1[:n], *u, **how)

    patch.setattr(speculation, "plain_round", round_)


def q_where_nothing_was_proposed(patch: pytest.MonkeyPatch) -> None:
    """The rule is applied where nothing was proposed, with the target in place of the draft."""
    right = speculation.plain_round

    def round_(rule: Any, sampling: Any, logits: Any, tokens: Any, q: Any, q1: Any, *u: Any, **how: Any) -> Any:
        if rule.reads_draft and q.shape[0] < logits.shape[0]:
            p = logits[q.shape[0] :].softmax(-1).to(q.dtype)
            q = q1 = torch.cat([q, p])
        return right(rule, sampling, logits, tokens, q, q1, *u, **how)

    patch.setattr(speculation, "plain_round", round_)


@pytest.mark.parametrize(
    ("bug", "rule"),
    [
        (residual_keeps_the_draft, "exact"),
        (as_if_sampled, "exact"),
        (bonus_from_p, "token-v3"),
        (q_where_nothing_was_proposed, "token-v3"),
    ],
)
def test_planted_bugs_are_detected(bug: Callable[..., None], rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    law, wanted = by_lookup(rule, 0.4, 2, 4, **PLAIN)
    assert distance(law, wanted) > 1e-3


# ---------------------------------------------------------------- the contract of every drafter


@dataclass(frozen=True)
class Asking(SpeculativeCascade):
    """A speculative cascade that gets its drafts from `how`."""

    how: Any = None

    def decode(self, s: Any) -> Any:
        yield from speculation.speculate(s, self.rule, self.k, self.how)


def blocks_are_what_was_asked_for(name: str) -> None:
    """At most n tokens, each possible under its q, whose rows sum to 1; the text is left unchanged."""
    strategy = parse(f"speculative-cascade:rule=token-v3,draft={name},k=3")
    drafter, seen = strategy.draft, []

    def propose(s: Any, n: int, rule: Any) -> speculation.Block:
        before = s.text.clone(), s.length
        block = drafter.propose(s, n, rule)
        assert torch.equal(s.text, before[0]) and s.length == before[1]
        tokens, rows = block.tokens, block.q.shape[0]
        assert len(tokens) <= n and len(tokens) <= rows <= len(tokens) + 1 and block.q.shape == block.q1.shape
        assert torch.allclose(block.q.sum(-1), torch.ones(rows).to(block.q), atol=1e-5)
        assert bool((block.q[torch.arange(len(tokens)), tokens] > 0).all())
        assert not drafter.one_hot or bool((block.q.amax(-1) == 1).all())
        seen.append(len(tokens))
        return block

    loaded = tiny_pair(VOCAB, 2)
    for seed in range(6):
        watched = Asking(rule=strategy.rule, draft=drafter, k=3, how=propose)
        generate(loaded, prompt_ids=[1, 2], strategy=watched, max_new_tokens=8, seed=seed, **PLAIN)
    assert max(seen) == 3  # the drafter does draft full blocks


def the_exact_rule_is_lossless(name: str) -> None:
    """Up to the rounding of a q in float32, whose rows sum to 1 only in float32."""
    law = engine_law(f"speculative:draft={name},k=2", 4, VOCAB, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 4, VOCAB, 2, **PLAIN)) < ROUNDING


def a_rule_is_followed_where_q_is_a_function_of_the_prefix(name: str) -> None:
    """The law is the product of pi along the text, with pi = p where nothing is proposed."""
    drafter = drafters.load(name)()
    if isinstance(drafter, Model) or not drafter.by_prefix:
        return  # models are tested everywhere and in test_early_exit, planned rounds above
    tables = model_tables(VOCAB, 2, **PLAIN)

    def law(length: int, prefix: Tokens = ()) -> Law:
        if length == 0:
            return {(): 1.0}
        there, q = tables(prefix), proposed(drafter, prefix)
        pi = there.p if q is None else target("token-v3", 0.4)(Pair(q, there.p, q, there.p1))
        return {
            (x, *tail): share * more
            for x, share in enumerate(pi)
            if share > 0
            for tail, more in law(length - 1, (*prefix, x)).items()
        }

    for k in (1, 3):
        ours = engine_law(
            f"speculative-cascade:rule=token-v3,alpha=0.4,draft={name},k={k}", 4, VOCAB, 2, caches=False, **PLAIN
        )
        assert distance(ours, law(4)) < ROUNDING


def proposed(drafter: Any, prefix: Tokens) -> np.ndarray | None:
    """q after a prefix, in a session that contains only this prefix."""
    there = SimpleNamespace(
        prompt_ids=[token % VOCAB for token in PROMPT],
        answer_ids=list(prefix),
        length=len(prefix),
        vocab=VOCAB,
        eos_ids=frozenset(),
        text=torch.tensor([*prefix, 0, 0]),
        uniforms=SimpleNamespace(draw=lambda _, n: torch.full((n,), 0.5, dtype=torch.float64)),
        warp=lambda logits: logits.softmax(-1),
    )
    q = drafter.propose(there, 0, rules.load("token-v3")()).q
    return q[0].double().numpy() if len(q) else None


def its_defaults_are_in_its_ranges(name: str) -> None:
    kind = drafters.load(name)
    assert validated(kind, vars(kind())) == kind()


CONTRACT = [
    blocks_are_what_was_asked_for,
    the_exact_rule_is_lossless,
    a_rule_is_followed_where_q_is_a_function_of_the_prefix,
    its_defaults_are_in_its_ranges,
]


@pytest.mark.parametrize("contract", CONTRACT)
@pytest.mark.parametrize("name", drafters.names())
def test_every_drafter_keeps_the_contract(name: str, contract: Callable[[str], None]) -> None:
    contract(name)


# ---------------------------------------------------------------- what is copied


def test_the_longest_match_wins_then_the_latest() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = [rng.randrange(rng.choice([2, 3, 260])) for _ in range(rng.randrange(1, 30))]
        count, largest = rng.randrange(6), rng.randrange(1, 5)
        smallest = rng.randint(1, largest)
        wanted = looked_up(tuple(text), count, largest, smallest)
        assert continuation(text, count, (), largest, smallest) == wanted, text


def test_matches_are_aligned_to_whole_tokens() -> None:
    """The search compares bytes: 1 and 256 have the same ones, shifted by one place."""
    assert continuation([256, 256, 1], 2, ()) == []
    assert continuation([1, 256, 65536, 256], 1, ()) == [65536]


def test_a_copy_goes_on_in_itself_and_ends_before_an_end_of_text() -> None:
    assert continuation([7, 1, 2, 1, 2], 6, ()) == [1, 2, 1, 2, 1, 2]
    assert continuation([1, 2, 9, 3, 1, 2], 6, (9,)) == []
    assert continuation([1, 2, 3, 9, 1, 2], 6, (9,)) == [3]
    assert continuation([1], 6, ()) == [] == continuation([1, 2, 3], 6, ())


# ---------------------------------------------------------------- pairs and strategies


@pytest.mark.parametrize("name", rules.names())
def test_rules_that_read_confidence_are_refused_on_drafts_that_are_certain(name: str) -> None:
    spec = f"speculative-cascade:rule={name},draft=prompt-lookup"
    if rules.load(name).reads_confidence:
        with pytest.raises(UsageError, match="certain of every token"):
            parse(spec)
    else:
        assert parse(spec).spec.endswith(",draft=prompt-lookup,max_ngram=3,min_ngram=1,k=4")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_alone_decodes_as_in_a_pair(temperature: float) -> None:
    """The draft model has no effect, whether it is loaded or not."""
    alone = load_pair({"name": "alone", "target": model(2, 300)})
    both = load_pair(pair())
    for strategy in (
        "target",
        "speculative:draft=prompt-lookup",
        "speculative-cascade:rule=token-v3,draft=prompt-lookup",
    ):
        ask = {"prompt_ids": [5, 6, 7] * 5, "strategy": strategy, "max_new_tokens": 30, "temperature": temperature}
        ours, theirs = generate(alone, **ask), generate(both, **ask)
        assert ours.token_ids == theirs.token_ids
        assert ours.metrics.draft_calls == theirs.metrics.draft_calls == 0
        assert ours.metrics.total_flops == theirs.metrics.total_flops
    assert generate(alone, prompt_ids=[5] * 9, max_new_tokens=4).spec.startswith("speculative-cascade:rule=token-v3")


@pytest.mark.parametrize("strategy", ["draft", "cascade", "token-cascade", "speculative"])
def test_strategies_that_need_a_draft_model_report_it(strategy: str) -> None:
    alone = load_pair({"name": "alone", "target": model(2, 300)})
    with pytest.raises(UsageError, match="needs a draft model, but pair 'alone' has none"):
        generate(alone, prompt_ids=[5], strategy=strategy, max_new_tokens=4)


def test_greedy_lookups_equal_the_target_and_draft_its_repetitions() -> None:
    """A tiny model at temperature 0 soon repeats itself; then every draft passes, and rounds are full."""
    loaded = load_pair(pair(8))
    ask = {"prompt_ids": [5, 6, 7], "max_new_tokens": 60, "temperature": 0.0}
    target_run, run = (generate(loaded, strategy=s, **ask) for s in ("target", "speculative:draft=prompt-lookup,k=4"))
    assert run.token_ids == target_run.token_ids
    assert run.metrics.target_calls < 40 and run.metrics.draft_calls == 0
    assert run.metrics.lossless is True and {len(step.drafted) for step in run.rounds} >= {0, 4}
