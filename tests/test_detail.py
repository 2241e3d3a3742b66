from __future__ import annotations

import json

import pytest
import torch

from cascli import Pair, Run, generate, load_pair
from cascli.errors import UsageError
from cascli.jobs.compare import compare
from cascli.rules._alphas import rules_in_alpha
from cascli.sampling.distributions import base, total_variation, warp
from cascli.sampling.parameters import Sampling
from cascli.trace import Detail, Drafted
from tests.pairs import pair
from tests.test_graph_runner import recorded

STRATEGIES = [
    "target",
    "draft",
    "cascade:threshold=-99",
    "cascade:threshold=0",
    "token-cascade:rule=chow,alpha=0.3",
    "token-cascade:rule=diff,alpha=0.1",
    "token-cascade:rule=token-v3,alpha=0.5",
    "speculative:k=3",
    "speculative:draft=prompt-lookup,k=2",
    "speculative-cascade:rule=chow,alpha=0.5",
    "speculative-cascade:rule=opt,alpha=0.2,k=2",
    "speculative-cascade:rule=token-v1,alpha=0.2",
    "speculative-cascade:rule=token-v3,draft=prompt-lookup",
]


def answer(pair: Pair, strategy: str, temperature: float = 0.8, **more: object) -> Run:
    return generate(pair, "one two one two", strategy=strategy, temperature=temperature, max_new_tokens=14, **more)


def logits(pair: Pair, role: str, ids: list[int]) -> torch.Tensor:
    """Logits after these tokens, from the model itself, without cursors, blocks or caches."""
    with torch.inference_mode():
        return pair.models[role].model(torch.tensor([ids])).logits[0, -1:, : pair.vocab]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_detail_changes_no_token_and_is_absent_without_top(text_pair: Pair, strategy: str, temperature: float) -> None:
    without, with_top = answer(text_pair, strategy, temperature), answer(text_pair, strategy, temperature, top=3)
    assert without.token_ids == with_top.token_ids
    assert "detail" not in without.to_json() and "turned_down" not in without.to_json()
    assert Run.from_json(with_top.to_json()) == with_top
    bare = json.loads(with_top.to_json())["rounds"]
    for step in bare:
        del step["seconds"]
        for token in (*step["drafted"], *step["emitted"]):
            assert len(token.pop("detail")) == 9
            token.pop("turned_down", None)
    expected = json.loads(without.to_json())["rounds"]
    for step in expected:
        del step["seconds"]
    assert bare == expected


@pytest.mark.parametrize(
    "strategy", ["speculative:k=3", "speculative-cascade:rule=opt,alpha=0.2,k=3", "token-cascade:rule=diff"]
)
def test_detail_equals_values_recomputed_from_the_models(text_pair: Pair, strategy: str) -> None:
    """Positions along drafted prefixes and along the answer are recomputed from the models alone."""
    sampling = Sampling(0.8)
    run = answer(text_pair, strategy, top=4)
    assert run.prompt_token_ids is not None
    text = list(run.prompt_token_ids)
    for step in run.rounds:
        prefix = list(text)
        for draft in step.drafted:
            check(text_pair, prefix, draft.id, draft.detail, sampling, both=True)
            prefix.append(draft.id)
        for token in step.emitted:
            check(text_pair, text, token.id, token.detail, sampling, both=token.event not in ("bonus",))
            if token.turned_down is not None:
                check(text_pair, text, token.turned_down.id, token.turned_down.detail, sampling, both=True)
            text.append(token.id)


def check(pair: Pair, prefix: list[int], token: int, seen: Detail | None, sampling: Sampling, *, both: bool) -> None:
    assert seen is not None
    q, p = logits(pair, "draft", prefix), logits(pair, "target", prefix)
    for probs, own, rank, best, top in (
        (base(q)[0], seen.q1, seen.draft_rank, seen.max_q1, seen.draft_top),
        (base(p)[0], seen.p1, seen.target_rank, seen.max_p1, seen.target_top),
    ):
        if own is None:
            assert not both
            assert rank is None and best is None and top is None
            continue
        order = probs.argsort(descending=True)
        assert own == pytest.approx(probs[token].item(), abs=1e-5)
        assert rank == order.tolist().index(token) + 1
        assert best == pytest.approx(probs.max().item(), abs=1e-5)
        assert [each.id for each in top or []] == order[:4].tolist()
        assert [each.prob for each in top or []] == pytest.approx(probs[order[:4]].tolist(), abs=1e-5)
    if both:
        distance = total_variation(warp(q, sampling), warp(p, sampling)).item()
        assert seen.disagreement == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_values_that_were_not_read_are_none(text_pair: Pair, strategy: str) -> None:
    run = answer(text_pair, strategy, top=1)
    lookup, alone = "prompt-lookup" in strategy, {"target": "p1", "draft": "q1"}.get(run.emitted[0].event)
    for token in run.emitted:
        assert token.detail is not None
        if run.strategy == "cascade" or run.strategy in ("target", "draft"):
            assert (token.detail.q1 is None, token.detail.p1 is None) == (alone == "p1", alone == "q1")
            assert token.detail.disagreement is None
        if lookup:
            assert token.detail.draft_top is None and token.detail.q1 is None and token.detail.p1 is not None
    if lookup:
        drafts = [draft for step in run.rounds for draft in step.drafted]
        assert drafts
        # For a draft that is certain of one token, TV(p, q) is the target's mass on the others.
        assert all(each.detail.disagreement == pytest.approx(1 - each.p, abs=1e-5) for each in drafts if each.detail)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["chow", "diff", "opt", "token-v1", "token-v2", "token-v3"])
def test_the_range_of_alpha_matches_the_decisions_of_the_round(text_pair: Pair, rule: str, temperature: float) -> None:
    """Every draft of real rounds was deferred iff the run's alpha is outside the range given by the five numbers."""
    line = rules_in_alpha()[rule]
    decided = set()
    for alpha in (0.02, 0.15, 0.4, 0.8, 0.999):
        run = answer(text_pair, f"speculative-cascade:rule={rule},alpha={alpha},k=3", temperature, top=1)
        for draft in (draft for step in run.rounds for draft in step.drafted):
            decided.add(draft.deferred)
            assert draft.deferred is not (alpha in alphas_of(draft, rule)), (alpha, draft, line)
    assert decided == {True, False}


def alphas_of(draft: Drafted, rule: str):
    assert draft.detail is not None
    found = rules_in_alpha()[rule].keeps(draft.detail)
    assert found is not None
    return found


def test_top_tokens_are_limited_by_a_small_vocabulary(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2, 3], strategy="speculative:k=2", max_new_tokens=5, top=20)
    tops = [draft.detail.draft_top for step in run.rounds for draft in step.drafted if draft.detail]
    assert tops and all(top is not None and len(top) == 8 for top in tops)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_detail_of_captured_steps_equals_that_of_eager_ones(text_pair: Pair, strategy: str) -> None:
    taped = recorded(load_pair(pair(300)))
    wanted, found, without = answer(text_pair, strategy, top=3), answer(taped, strategy, top=3), answer(taped, strategy)
    assert found.token_ids == wanted.token_ids == without.token_ids
    for ours, plain in zip(found.emitted, wanted.emitted, strict=True):
        assert ours.detail is not None and plain.detail is not None
        assert ours.detail.draft_rank == plain.detail.draft_rank
        assert ours.detail.target_rank == plain.detail.target_rank
        for name in ("q1", "p1", "max_q1", "max_p1", "disagreement"):
            assert getattr(ours.detail, name) == pytest.approx(getattr(plain.detail, name), abs=1e-5)


def test_top_has_a_range(text_pair: Pair) -> None:
    with pytest.raises(UsageError, match="top: Input should be less than or equal to 20"):
        generate(text_pair, "hi", top=21)


def test_compare_keeps_detail(text_pair: Pair) -> None:
    found = compare(text_pair, "hi", ["target", "speculative:k=2"], max_new_tokens=4, top=2, measure=False)
    assert all(token.detail is not None for run in found.runs for token in run.emitted)
