"""A pair without a draft model, through every command; and the account of drafts that cost no model step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascli import Pair, compare, generate, load_pair
from cascli.analysis import theory
from cascli.analysis.comparison import Comparison
from cascli.analysis.explanation import account
from cascli.analysis.profile import Profile, timing
from cascli.render.explanation import sentence, steps_line
from tests.commands import invoke
from tests.pairs import model, pair, with_seconds

LOOKUP = "speculative:draft=prompt-lookup,k=4"
REPEATS = [5, 6, 7, 8, 9] * 6


@pytest.fixture
def alone(tmp_path: Path) -> str:
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump({"target": model(2, 300, max_position_embeddings=1024)}))
    return str(file)


def test_generate_and_compare_draft_without_a_model(alone: str, tmp_path: Path) -> None:
    asked = ("a rose is a rose is a rose", "-c", alone, "--max-new-tokens", "12", "--color", "never")
    said = invoke("generate", *asked, "--json")
    assert said.exit_code == 0, said.output
    document = json.loads(said.stdout)
    assert document["params"]["draft"] == "prompt-lookup" and document["pair"]["draft"] is None
    assert document["metrics"]["draft_calls"] == 0 and document["metrics"]["total_flops"] > 0
    shown = invoke("compare", *asked, "-o", str(tmp_path / "c.json"))
    assert shown.exit_code == 0, shown.output
    assert "speculative by prompt-lookup" in " ".join(shown.stdout.split()) and "alone: target float32" in shown.stdout
    again = invoke("show", str(tmp_path / "c.json"))
    assert again.exit_code == 0 and "prompt-lookup" in again.stdout


def test_strategies_that_need_a_draft_model_are_refused_in_one_sentence(alone: str) -> None:
    for strategy in ("speculative", "cascade"):
        said = invoke("generate", "hi", "-c", alone, "-s", strategy)
        assert said.exit_code == 2 and "pair 'alone' has none" in said.stderr and len(said.stderr.splitlines()) <= 2
    said = invoke("bench", "-c", alone, "--context", "20", "--repeats", "1", "--synthetic-acceptance", "0.5")
    assert said.exit_code == 2 and "needs a draft model" in said.stderr


def test_bench_times_the_target(alone: str, tmp_path: Path) -> None:
    said = invoke("bench", "-c", alone, "--context", "20", "--repeats", "2", "--json")
    assert said.exit_code == 0, said.output
    [profile] = json.loads(said.stdout)["profiles"]
    assert profile["draft"] == {} and len(profile["target"]) > 5
    shown = invoke("bench", "-c", alone, "--context", "20", "--repeats", "2", "--plot", str(tmp_path / "b.png"))
    assert shown.exit_code == 0 and "alone: target float32" in shown.stdout, shown.output
    assert (tmp_path / "b.png").stat().st_size > 10_000


def flat(v: dict[int, float], c: float | None = None) -> Profile:
    target = {n: timing([value]) for n, value in {1: 1.0, **v}.items()}
    return Profile(context=10, draft={} if c is None else {1: timing([c])}, target=target)


@pytest.mark.parametrize("draft", [None, 0.4])
def test_the_account_of_drafts_without_model_steps(text_pair: Pair, draft: float | None) -> None:
    """It uses the blocks' actual lengths, no draft steps whatever one costs, and predicts nothing for longer blocks."""
    ask = {"prompt_ids": REPEATS, "max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    target, lookup = (generate(text_pair, strategy=each, **ask) for each in ("target", LOOKUP))
    target, lookup = (with_seconds(run, other=0.0) for run in (target, lookup))
    lengths = [len(round_.drafted) for round_ in lookup.rounds]
    assert min(lengths) < 4 and max(lengths) == 4
    steps = flat({2: 1.5, 3: 1.5, 5: 2.0, 17: 4.0}, draft)
    why = account([lookup], [target, lookup], steps)
    tokens = sum(theory.expected_tokens(why.acceptance, n) for n in lengths) / len(lengths)
    cost = sum(steps.v(n + 1) for n in lengths) / len(lengths)
    assert why.c == 0 and why.v == pytest.approx(cost) and why.drafted_per_round == sum(lengths) / len(lengths)
    assert why.predicted_speed_up == pytest.approx(tokens / cost)
    assert why.best_k is None or why.best_k <= 4
    needed = why.break_even_acceptance
    assert needed is None or sum(theory.expected_tokens(needed, n) for n in lengths) == pytest.approx(
        cost * len(lengths)
    )
    assert "drafts cost no model step" in sentence(why) and "draft" in steps_line(flat({2: 1.5}, 0.4))
    assert "draft" not in steps_line(flat({2: 1.5}))


def test_drafters_can_be_compared_side_by_side() -> None:
    found: Comparison = compare(load_pair(pair()), "one one one", ["target", "speculative", LOOKUP], max_new_tokens=12)
    rows: dict[str, Any] = {row.strategy: row for row in found.summary}
    assert len(rows) == 3 and rows["speculative:k=4"].draft_calls_per_token > 0
    free = next(row for name, row in rows.items() if "prompt-lookup" in name)
    assert free.draft_calls_per_token == 0 and free.lossless and free.weight_bytes_per_token is not None
    assert found.explanation is not None


def test_a_draft_without_a_source_is_an_error(tmp_path: Path) -> None:
    """`draft:` may be omitted, or null; anything else is a model."""
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"draft": {"sorce": 1}, "target": model(2, 300)}))
    said = invoke("generate", "hi", "-c", str(file))
    assert said.exit_code == 2 and "draft" in said.stderr and "source" in said.stderr
