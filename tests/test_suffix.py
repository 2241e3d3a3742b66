"""Drafts by counts of what followed: the counts, that tokens are drawn from q, and greedy text."""

from __future__ import annotations

import io
import random
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from cascli import Pair, compare, generate, load_pair
from cascli.decoding import speculation
from cascli.drafters import suffix
from cascli.drafters.suffix import Before, Suffix, followers
from cascli.errors import ConfigError, UsageError
from cascli.jobs.compare import Repeats
from cascli.jobs.generate import texts_of
from cascli.prompts import Prompt
from cascli.render.comparison import print_results
from cascli.render.console import Screen
from cascli.settings import Resolved
from cascli.strategies import parse
from cascli.sweeps.plan import load_plan
from tests.laws.integration import exact_law
from tests.laws.models import engine_law, reference_law, tiny_pair
from tests.laws.tables import target
from tests.pairs import pair
from tests.reference import process
from tests.reference.distributions import softmax, warp
from tests.reference.process import distance

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 2, "top_p": 0.95}


def counted(text: list[int], eos: set[int], longest: int, shortest: int) -> Counter[int]:
    """An independent count: places are compared with the end of the text, and those that agree longest are counted."""
    agree = {}
    for place in range(1, len(text)):
        n = 0
        while n < min(longest, place) and text[place - 1 - n] == text[-1 - n]:
            n += 1
        agree[place] = n
    best = max(agree.values(), default=0)
    at_best = [text[place] for place, n in agree.items() if n == best >= shortest]
    return Counter(token for token in at_best if token not in eos)


def test_tokens_after_the_longest_suffix_are_counted() -> None:
    rng, several = random.Random(0), 0
    for _ in range(2000):
        text = [rng.randrange(rng.choice([2, 3, 300])) for _ in range(rng.randrange(1, 40))]
        longest = rng.randrange(1, 6)
        shortest, eos = rng.randint(1, longest), set(rng.sample(range(3), rng.randrange(2)))
        found = followers(text, eos, longest, shortest)
        assert found == counted(text, eos, longest, shortest), text
        several += len(found) > 1
    assert several > 200  # otherwise this only tests a lookup


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("k", [1, 3])
def test_it_is_lossless(k: int, sampling: dict[str, Any]) -> None:
    law = engine_law(f"speculative:draft=suffix,k={k}", 5, 3, 2, **sampling)
    assert distance(law, reference_law(target("exact"), 5, 3, 2, **sampling)) < 1e-6


SEEN = (1, 2, 1, 3, 1)
"""After it, 2 and 3 are equally likely; the token drafted then decides which counts come next."""


def counts_as_a_model(sampling: dict[str, Any]) -> process.Tables:
    """p from full forward passes of the target; q from the counts of a prefix, or zeros if there are none."""
    model = tiny_pair(5, 2).target.model

    @cache
    def tables(prefix: process.Tokens) -> process.Pair:
        text = [*SEEN, *prefix]
        with torch.inference_mode():
            y = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].numpy()
        counts = counted(text, set(), 24, 1)
        if not counts:
            return process.Pair(np.zeros(5), warp(y, **sampling), np.zeros(5), softmax(y))
        with np.errstate(divide="ignore"):
            x = np.log([float(counts[token]) for token in range(5)])
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    return tables


def of_counts(name: str, alpha: float) -> process.Target:
    """The rule where there are counts, and the target where there are none."""
    rule = target(name, alpha)
    return lambda pair: rule(pair) if pair.q.any() else pair.p


def law_after_seen(strategy: str, length: int, sampling: dict[str, Any]) -> process.Law:
    def run(uniforms: Any) -> process.Tokens:
        told = {"strategy": strategy, "max_new_tokens": length, "uniforms": uniforms, **sampling}
        return tuple(generate(tiny_pair(5, 2), prompt_ids=[*SEEN], **told).token_ids)

    return exact_law(run)


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("name", "alpha"), [("chow", 0.6), ("diff", 0.1), ("opt", 0.5), ("token-v3", 0.4)])
def test_rules_that_read_q_follow_the_counts(name: str, alpha: float, k: int, sampling: dict[str, Any]) -> None:
    """q is a function of the prefix, including drafted tokens, wherever a round begins."""
    strategy = f"speculative-cascade:rule={name},alpha={alpha},draft=suffix,k={k}"
    law = law_after_seen(strategy, 3, sampling)
    tables = counts_as_a_model(sampling)
    assert distance(law, process.sequential_law(tables, of_counts(name, alpha), 3)) < 1e-6
    exact = process.sequential_law(tables, lambda pair: pair.p, 3)
    assert distance(law, exact) > 1e-3  # the rule makes a difference here


def test_counts_that_ignore_earlier_drafts_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: every draft of a round is counted after the text at the start of the round."""
    right, began = suffix.followers, len(SEEN)
    monkeypatch.setattr(suffix, "followers", lambda text, *rest: right(text[:began], *rest))
    law = law_after_seen("speculative-cascade:rule=chow,alpha=0.6,draft=suffix,k=2", 3, PLAIN)
    wanted = process.sequential_law(counts_as_a_model(PLAIN), of_counts("chow", 0.6), 3)
    assert distance(law, wanted) > 1e-3


def test_greedy_drafts_with_the_counts_as_q_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the likeliest token is proposed, as in published code, with the q of a token that was drawn."""
    right = Suffix.propose

    def propose(*given: Any) -> speculation.Block:
        block = right(*given)
        n = block.tokens.shape[0]
        return block._replace(tokens=block.q[:n].argmax(-1))

    monkeypatch.setattr(Suffix, "propose", propose)
    law = engine_law("speculative:draft=suffix,k=1", 5, 3, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 5, 3, 2, **PLAIN)) > 1e-3


def test_q_is_spread_over_all_continuations_seen() -> None:
    """Of eight 1s, four are followed by 2, two by 3, one by 1, and the last one by nothing."""
    text = [1, 2, 1, 2, 1, 3, 1, 2, 1, 3, 1, 1, 2, 1]
    assert followers(text, (), 1) == {2: 4, 3: 2, 1: 1}
    run = generate(tiny_pair(4, 2), prompt_ids=text, strategy="speculative:draft=suffix,k=1,max_suffix=1",
                   max_new_tokens=2, **PLAIN)  # fmt: skip
    [drafted] = run.rounds[0].drafted
    assert drafted.q == pytest.approx({2: 4, 3: 2, 1: 1}[drafted.id] / 7, abs=1e-6)
    greedy = generate(tiny_pair(4, 2), prompt_ids=text, strategy="speculative:draft=suffix,k=1,max_suffix=1",
                      max_new_tokens=2, temperature=0.0)  # fmt: skip
    assert [(token.id, token.q) for token in greedy.rounds[0].drafted] == [(2, 1.0)]


def test_drafts_before_a_position_count_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draft is counted after the drafts before it, so q is a function of the prefix, wherever a round began."""
    seen: list[list[int]] = []
    right = suffix.followers
    monkeypatch.setattr(suffix, "followers", lambda text, *rest: seen.append(list(text)) or right(text, *rest))
    run = generate(tiny_pair(3, 2), prompt_ids=[1, 2, 1, 2, 1], strategy="speculative:draft=suffix,k=3",
                   max_new_tokens=4, **PLAIN)  # fmt: skip
    ids = [token.id for token in run.rounds[0].drafted]
    assert len(ids) == 3 and seen[:3] == [[1, 2, 1, 2, 1, *ids[:i]] for i in range(3)]


def test_greedy_texts_are_the_targets() -> None:
    loaded = load_pair(pair(8))
    ask = {"prompt_ids": [5, 6, 7], "max_new_tokens": 60, "temperature": 0.0}
    wanted, run = (generate(loaded, strategy=s, **ask) for s in ("target", "speculative:draft=suffix,k=4"))
    assert run.token_ids == wanted.token_ids
    assert run.metrics.target_calls < 40 and run.metrics.draft_calls == 0


def test_its_lengths_are_checked() -> None:
    with pytest.raises(UsageError, match="min_suffix: 5 is more than max_suffix, 4"):
        parse("speculative:draft=suffix,min_suffix=5,max_suffix=4")
    assert torch.equal(torch.tensor([*followers([1], ())]), torch.tensor([]))


# ---- earlier texts

EARLIER = ((3, 1, 4, 1, 2), (1, 4), (2, 4, 1))
"""In them, 1 is followed twice by 4, once by 2, and once by nothing."""


def counted_in(texts: list[list[int]], text: list[int], longest: int, shortest: int) -> Counter[int]:
    """Places of all texts are compared with the end of the last one, and those that agree longest are counted."""
    agree = []
    for each in [*texts, text]:
        for place in range(1, len(each)):
            n = 0
            while n < min(longest, place, len(text)) and each[place - 1 - n] == text[-1 - n]:
                n += 1
            agree.append((n, each[place]))
    best = max((n for n, _ in agree), default=0)
    return Counter(token for n, token in agree if n == best >= shortest)


def test_earlier_texts_are_searched_and_matches_do_not_cross_their_ends() -> None:
    rng, several, theirs = random.Random(1), 0, 0
    for _ in range(2000):
        size = rng.choice([2, 3, 300])
        text, *before = ([rng.randrange(size) for _ in range(rng.randrange(1, 20))] for _ in range(rng.randrange(1, 5)))
        longest = rng.randrange(1, 6)
        shortest = rng.randint(1, longest)
        found = followers(text, (), longest, shortest, Before.of(before))
        assert found == counted_in(before, text, longest, shortest), (text, before)
        several += len(found) > 1
        theirs += found != followers(text, (), longest, shortest)
    assert several > 200 and theirs > 500


def run_of(text: tuple[int, ...], answer: int = 0) -> Any:
    """An earlier run whose answer is the last `answer` tokens of its text."""
    cut = len(text) - answer
    return SimpleNamespace(prompt_id="", turn=0, prompt_token_ids=list(text[:cut]), token_ids=list(text[cut:]))


def counts_with(earlier: tuple[tuple[int, ...], ...], sampling: dict[str, Any]) -> process.Tables:
    """Like `counts_as_a_model`, but with earlier texts."""
    alone = counts_as_a_model(sampling)

    @cache
    def tables(prefix: process.Tokens) -> process.Pair:
        counts = counted_in([list(each) for each in earlier], [*SEEN, *prefix], 24, 1)
        if not counts:
            return alone(prefix)._replace(q=np.zeros(5), q1=np.zeros(5))
        with np.errstate(divide="ignore"):
            x = np.log([float(counts[token]) for token in range(5)])
        return alone(prefix)._replace(q=warp(x, **sampling), q1=softmax(x))

    return tables


@pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
@pytest.mark.parametrize(("name", "alpha"), [(None, 0.0), ("chow", 0.6), ("token-v3", 0.4)])
def test_laws_hold_with_earlier_texts(name: str | None, alpha: float, sampling: dict[str, Any]) -> None:
    """Speculation is lossless whatever texts came before; rules that read q follow the counts over all texts."""
    rule = "speculative:" if name is None else f"speculative-cascade:rule={name},alpha={alpha},"

    def run(uniforms: Any) -> process.Tokens:
        told = {"strategy": f"{rule}draft=suffix,remember=2,k=2", "max_new_tokens": 3, "uniforms": uniforms, **sampling}
        earlier = [run_of(each, answer=1) for each in EARLIER]
        return tuple(generate(tiny_pair(5, 2), prompt_ids=[*SEEN], earlier=earlier, **told).token_ids)

    law, tables = exact_law(run), counts_with(EARLIER[1:], sampling)
    exact = process.sequential_law(tables, lambda pair: pair.p, 3)
    wanted = exact if name is None else process.sequential_law(tables, of_counts(name, alpha), 3)
    assert distance(law, wanted) < 1e-6
    if name is not None and sampling is PLAIN:  # WARPED keeps two tokens: not all counts matter
        others = (counts_as_a_model(sampling), counts_with(EARLIER, sampling))  # no earlier texts, and one too many
        assert all(distance(law, process.sequential_law(each, of_counts(name, alpha), 3)) > 1e-3 for each in others)


def test_each_strategy_has_its_own_earlier_answers_in_prompt_order(text_pair: Pair) -> None:
    """They are those of the same repeat, without those to the prompt that is being answered."""
    asked = ["speculative:draft=suffix,remember=9,k=3", "speculative:draft=suffix,k=3"]
    prompts = [Prompt(("hello there",), "a"), Prompt(("hello there", "and you?"), "b"), Prompt(("hello there",), "c")]
    found = compare(text_pair, prompts, asked, max_new_tokens=12, temperature=0.0, runs=2, measure=False)
    with_memory = [run for run in found.runs if "remember" in run.params]
    assert [(run.prompt_id, run.turn, run.earlier_texts) for run in with_memory] == [
        ("a", 0, 0), ("b", 0, 1), ("b", 1, 1), ("c", 0, 2),
    ]  # fmt: skip
    assert {run.earlier_texts for run in found.runs if "remember" not in run.params} == {None}
    first, last = with_memory[0], with_memory[-1]
    assert first.token_ids == last.token_ids and last.metrics.target_calls < first.metrics.target_calls
    settings = Resolved(max_new_tokens=12, temperature=0.0)
    repeats = Repeats(text_pair, prompts, [parse(asked[0])], settings, runs=2)
    repeats.run()
    assert [run.earlier_texts for run in repeats.all_runs] == [0, 1, 1, 2] * 2
    said = io.StringIO()
    console = Console(file=said, width=200)
    print_results(found, Screen(console, console), "none")
    assert "the order of the prompts matters: speculative by suffix" in said.getvalue()


def test_later_turns_replace_earlier_turns_but_separate_runs_do_not() -> None:
    """Prompt ids repeat across calls, because they are places in a file."""
    runs = [
        SimpleNamespace(prompt_id=each, turn=turn, prompt_token_ids=[place], token_ids=[7])
        for place, (each, turn) in enumerate([("1", 0), ("2", 0), ("2", 1), ("1", 0), ("", 0), ("", 0)])
    ]
    assert texts_of(runs) == [[0, 7], [2, 7], [3, 7], [4, 7], [5, 7]]
    assert texts_of([runs[0], runs[2]]) == [[0, 7], [2, 7]]  # only the last turn of that conversation was given


def test_only_texts_that_were_searched_are_counted(text_pair: Pair) -> None:
    ask: dict[str, Any] = {"strategy": "speculative:draft=suffix,remember=2,k=2", "max_new_tokens": 3}
    before = [generate(text_pair, text, strategy="target", max_new_tokens=3) for text in ("a", "b", "c")]
    told = [generate(text_pair, "hi", earlier=before[:n], **ask).earlier_texts for n in range(4)]
    assert told == [0, 1, 2, 2]


def test_commands_that_keep_no_answers_refuse_remember(text_pair: Pair) -> None:
    """They raise an error instead of drafting from fewer answers than requested."""
    loaded, asked = text_pair, "speculative:draft=suffix,remember=3,k=2"
    with pytest.raises(UsageError, match="drafts from earlier answers: only compare"):
        generate(loaded, "hi", strategy=asked, max_new_tokens=4)
    with pytest.raises(UsageError, match="drafts from earlier answers: only compare"):
        compare(loaded, ["hi", "ho"], ["target", asked], max_new_tokens=4, batch_size=2)
    with pytest.raises(ConfigError, match="must not depend on each other; leave out 'remember'"):
        load_plan({"strategies": [asked]})
    assert generate(loaded, "hi", strategy=asked, max_new_tokens=4, earlier=[]).earlier_texts == 0
