"""What is reported of runs verified by blocks: only numbers that keep their meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascli import Pair, Run, generate, load_pair
from cascli.analysis.comparison import summarise
from cascli.analysis.explanation import ACCEPTANCE, account
from cascli.analysis.profile import Profile, timing
from cascli.analysis.tidy import of_comparison as tidy_of
from cascli.audit import default_strategies, joint, law, rounds, tables
from cascli.jobs.compare import compare
from cascli.render.explanation import sentence
from cascli.render.html_trace import data
from cascli.render.run import _round
from cascli.render.summary import lines, totals
from cascli.rules.base import Exact
from cascli.sampling.uniforms import LookingAhead
from cascli.strategies import parse
from tests.laws.of_recorded import MIDDLE
from tests.laws.test_block_verification import BUGS
from tests.pairs import pair

SPEC = "speculative:k=4,verify=block"


@pytest.fixture(scope="module")
def loaded() -> Pair:
    """Two models that partly agree."""
    return load_pair(pair(12, **MIDDLE), dtype="float32")


@pytest.fixture(scope="module")
def runs(loaded: Pair) -> list[Run]:
    """Eight answers by blocks, then eight by tokens."""
    return [
        generate(loaded, prompt_ids=[1, 2], strategy=spec, max_new_tokens=24, temperature=1.0, seed=seed)
        for spec in (SPEC, "speculative:k=4")
        for seed in range(8)
    ]


def test_block_verification_omits_per_token_test_counts(runs: list[Run]) -> None:
    for run in runs[:8]:
        m = run.metrics
        assert (m.num_tested_draft_tokens, m.rejection_rate) == (None, None)
        assert m.distances is not None and m.distances.out_of_head is None
        assert all(token.exact is None for step in run.rounds for token in step.drafted)
        kept = [sum(token.accepted for token in step.drafted) for step in run.rounds]
        assert m.num_accepted_draft_tokens == sum(kept) == sum(e.event == "accepted" for e in run.emitted)
        assert m.mean_acceptance_length == pytest.approx(1 + sum(kept) / len(kept))
        assert m.acceptance_histogram == [kept.count(j) for j in range(5)]
        assert m.lossless is True and Run.from_json(run.to_json()) == run and run.params["verify"] == "block"
    rows = summarise([[runs[:8], runs[8:]]])
    assert rows[0].tested_acceptance_rate is None and rows[1].tested_acceptance_rate is not None
    assert rows[0].draft_acceptance_rate is not None and rows[0].mean_acceptance_length is not None
    assert "tested" not in totals(runs[:8]) and "tested" in totals(runs[8:])
    assert any("drafted tokens accepted" in line for line in lines(runs[0], verbose=True))


def test_a_token_may_be_kept_although_its_own_prefix_failed(runs: list[Run]) -> None:
    """So the probability of its prefix is not a rate: its mean is far from the share of tokens that are kept."""
    drafted = [token for run in runs[:8] for step in run.rounds for token in step.drafted]
    told = sum(token.accept_prob for token in drafted) / len(drafted)
    stands = sum(token.accepted for token in drafted) / len(drafted)
    assert stands - told > 0.05


def costs() -> Profile:
    steps = {n: timing([value]) for n, value in {1: 1.0, 2: 1.0, 3: 1.1, 5: 1.2}.items()}
    return Profile(context=10, draft={1: timing([0.1])}, target=steps)


def without_overhead(run: Run) -> Run:
    seconds = run.metrics.seconds
    seconds = seconds.model_copy(update={"total": seconds.total - seconds.other, "other": 0.0})
    return run.model_copy(update={"metrics": run.metrics.model_copy(update={"seconds": seconds})})


def test_the_prediction_uses_the_tokens_actually_written(loaded: Pair, runs: list[Run], any_noise: None) -> None:
    target = generate(loaded, prompt_ids=[1, 2], strategy="target", max_new_tokens=24, temperature=1.0)
    # A pause of the machine outside the models would count as the target's overhead.
    target, *drafting = [without_overhead(run) for run in (target, *runs[:8])]
    why = account(drafting, [target, *drafting], costs(), noise=1e9)
    assert (why.acceptance, why.break_even_acceptance, why.best_k, why.best_speed_up) == (None, None, None, None)
    blocks = [len(step.drafted) for run in drafting for step in run.rounds]
    mean = sum(0.1 * n + costs().v(n + 1) for n in blocks) / len(blocks)  # the last ones are what fits before the limit
    assert min(blocks) < 4 and why.predicted_speed_up == pytest.approx(why.tokens_per_round / mean)
    said = sentence(why)
    assert "Checked as blocks, drafts give" in said and "What a k other than 4 would give is not known." in said
    assert "tested" not in said and "best k" not in said and "breaks even" not in said
    assert why.bottleneck is not None and (why.bottleneck != ACCEPTANCE or (why.without_it or 0) < 5 / 1.6)
    by_token = account(runs[8:], [target, *runs[8:]], costs(), noise=1e9)
    assert by_token.acceptance is not None and "of the tested drafts pass" in sentence(by_token)


def test_the_trace_page_and_the_terminal_show_prefix_probabilities(runs: list[Run]) -> None:
    view = data(runs[:1], [], [], None)["prompts"][0]["runs"][0]
    assert view["params"] == {"k": "4", "verify": "block"}  # the page chooses its wording by these
    shown = [token for step in view["rounds"] for token in step["tokens"] if "accept_prob" in token]
    drafted = [token for step in runs[0].rounds for token in step.drafted]
    assert [token["accept_prob"] for token in shown] == pytest.approx(
        [token.accept_prob for token in drafted], rel=1e-8
    )
    step = next(step for run in runs[:8] for step in run.rounds if not all(token.accepted for token in step.drafted))
    first = next(token for token in step.drafted if not token.accepted)
    assert f", h {first.accept_prob:.2f})" in _round(step, colored=False, by_block=True).plain
    assert ", h " not in _round(step, colored=False, by_block=False).plain


def test_tables_have_a_dash(text_pair: Pair) -> None:
    found = compare(text_pair, "hello", ["target", SPEC], max_new_tokens=12, temperature=1.0)
    row = found.summary[1]
    assert row.strategy == SPEC and row.tested_acceptance_rate is None
    table = tidy_of(found)
    assert table.records[1]["verify"] == "block" and table.records[1]["tested_acceptance_rate"] is None


# ---------------------------------------------------------------- verify


@pytest.fixture(scope="module")
def tree(text_pair: Pair) -> tables.Tree:
    return tables.tabulate(text_pair, [72, 105], width=6, depth=1)


def test_verify_covers_it_by_default() -> None:
    assert sum("verify=block" in spec for spec in default_strategies()) == 1


def test_verify_passes(text_pair: Pair, tree: tables.Tree) -> None:
    strategies = [parse(SPEC), parse("speculative-cascade:rule=token-v3,k=3,verify=block"), parse("speculative:k=3")]
    exact = list(law.of_blocks([tree], strategies))
    assert [check.subject for check in exact] == [each.spec for each in strategies[:2]]
    checks = [*exact, *rounds.rounds(text_pair, tree, strategies)]
    checks += joint.joint_laws(text_pair, tree, strategies[:1], 600)
    assert all(check.status == "pass" for check in checks), checks


def together(tree: tables.Tree) -> tables.Tree:
    """The tree with models that partly agree."""
    target = rounds.drawn_together(rounds.of_tree(tree), tree.dtype).target
    return replace(tree, target=dict(zip(tree.target, target, strict=True)))


@pytest.mark.parametrize("bug", BUGS)
def test_verify_fails_on_planted_bugs(bug: object, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(bug)
    bug(monkeypatch)
    tree = together(tree)
    [check] = law.of_blocks([tree], [parse(SPEC)])
    assert check.status == "fail", check


def test_verify_samples_whole_blocks(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """If texts ended after two tokens, no round would draft more than one, and reused numbers would not show."""
    tree = together(tables.tabulate(text_pair, [72, 105], width=4, depth=1))
    small, wanted = tables.tabulated(text_pair, tree), joint.joint_law(tree, Exact(), 2)
    strategy = parse("speculative:k=3,verify=block")
    assert joint.deviation(joint.sampled(small, strategy, 2, 1500)[0], wanted, 1500) < joint.SIGMAS
    monkeypatch.setattr(LookingAhead, "mark_used", lambda self, end: None)
    assert joint.deviation(joint.sampled(small, strategy, 2, 1500)[0], wanted, 1500) > joint.SIGMAS
