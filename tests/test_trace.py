from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascli import Pair, Run, generate, load_pair
from cascli.analysis.comparison import Comparison, first_divergence
from cascli.analysis.metrics import acceptance_histogram, per_position_acceptance
from cascli.errors import UsageError
from cascli.jobs.compare import compare
from cascli.prompts import Prompt
from cascli.strategies import parse
from cascli.trace import Drafted, Emitted, Round
from tests.commands import invoke
from tests.pairs import pair
from tests.sweeps import folder_of, header_of, plan_of, records_of

FIELDS = {
    "schema", "strategy", "params", "pair", "sampling", "prompt", "prompt_tokens", "text", "token_ids",
    "finish_reason", "metrics", "rounds", "environment",
}  # fmt: skip
METRICS = {
    "num_rounds", "num_draft_tokens", "num_accepted_draft_tokens", "draft_acceptance_rate",
    "mean_acceptance_length", "acceptance_histogram", "per_position_acceptance", "target_calls", "draft_calls",
    "target_calls_per_token", "deferral_rate", "mean_tv_to_target", "max_tv_to_target", "lossless", "seconds",
    "tokens_per_second", "ttft_seconds", "peak_memory_bytes",
}  # fmt: skip


def test_json_has_the_promised_names(text_pair: Pair) -> None:
    run = generate(text_pair, "hello", strategy="speculative-cascade:rule=opt,alpha=0.3,k=3", max_new_tokens=9)
    data = json.loads(run.to_json())
    assert data.keys() >= FIELDS
    assert data["metrics"].keys() >= METRICS
    assert data["schema"] == "cascli.run/1.8"
    assert data["params"] == {"rule": "opt", "alpha": 0.3, "k": 3}
    assert data["metrics"]["seconds"].keys() == {"total", "prefill", "draft", "verify", "other"}
    assert data["rounds"][0]["drafted"][0].keys() == {
        "id", "text", "q", "p", "pi", "accept_prob", "accepted", "deferred", "exact"
    }  # fmt: skip
    assert data["rounds"][0]["emitted"][0].keys() >= {"id", "text", "event"}
    assert data["rounds"][0]["seconds"].keys() == {"draft", "verify", "total"}
    assert run.metrics["num_rounds"] == run.metrics.num_rounds


def test_documents_of_later_minor_versions_are_read(text_pair: Pair, tmp_path: Path) -> None:
    """A later minor version has more fields, which are left out."""
    run = generate(text_pair, "hello", strategy="draft", max_new_tokens=2)
    later = json.loads(run.to_json()) | {"schema": "cascli.run/1.12", "mood": "good"}
    assert Run.from_json(json.dumps(later)) == run
    (tmp_path / "later.json").write_text(json.dumps(later))
    assert invoke("show", str(tmp_path / "later.json")).exit_code == 0
    for schema in ("cascli.run/2", "cascli.run/2.1", "cascli.run/11", "cascli.run/1.x", "cascli.runs/1.12"):
        with pytest.raises(UsageError, match="not a saved cascli run"):
            Run.from_json(json.dumps(later | {"schema": schema}))
    folder = folder_of(tmp_path / "sweep", header_of(plan_of()), records_of(plan_of()))
    header = folder / "sweep.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"schema": "cascli.sweep/1.99", "mood": "good"}))
    assert invoke("show", str(folder)).exit_code == 0


def test_what_was_not_counted_is_null(text_pair: Pair) -> None:
    run = generate(text_pair, "hello", strategy="speculative:k=4,verify=block", max_new_tokens=12, temperature=5)
    assert run.metrics.num_accepted_draft_tokens
    assert run.metrics.distances is not None and run.metrics.distances.kept_drafts is None
    target = load_pair({"target": pair(300)["target"]})
    assert generate(target, "hello", strategy="target", max_new_tokens=2).pair.masked_rows == (None, 300 - 257)


@pytest.mark.parametrize(
    "strategy", ["token-cascade:rule=chow", "token-cascade:rule=diff", "speculative-cascade:rule=opt"]
)
def test_rules_over_whole_distributions_defer_exactly_all_or_nothing(strategy: str, text_pair: Pair) -> None:
    runs = [generate(text_pair, "hello", strategy=strategy, max_new_tokens=24, seed=seed) for seed in range(4)]
    values = [
        token.deferral for run in runs for each in run.rounds for token in each.emitted if token.deferral is not None
    ]
    assert values and set(values) <= {0.0, 1.0}


def test_other_documents_are_refused() -> None:
    for text in ("{}", "[]", "nonsense", '{"schema": "cascli.run/2"}'):
        with pytest.raises(UsageError, match="not a saved cascli run"):
            Run.from_json(text)


def drafted(flags: str) -> list[Drafted]:
    return [
        Drafted(id=0, text="", q=0.5, p=0.5, pi=0.5, accept_prob=1, accepted=flag == "y", deferred=False)
        for flag in flags
    ]


def test_acceptance_conventions() -> None:
    end = [Emitted(id=0, text="", event="bonus")]
    rounds = [Round(drafted=drafted(flags), emitted=end) for flags in ("yyn", "nnn", "yyy", "y")]
    assert acceptance_histogram(rounds, 3) == [1, 1, 1, 1]
    assert per_position_acceptance(rounds) == [3 / 4, 2 / 3, 1 / 3]


def test_compare_totals_over_totals(text_pair: Pair) -> None:
    strategies = [parse(text) for text in ("target", "speculative:k=2", "draft")]
    ended: list[int] = []
    found = compare(
        text_pair,
        [Prompt(("one",), "1"), Prompt(("two", "three"), "2")],
        strategies,
        max_new_tokens=8,
        temperature=0,
        runs=2,
        on_event=lambda column, event: ended.append(column) if isinstance(event, Run) else None,
    )
    assert found.schedule == "fair" and sorted(ended) == sorted([0, 1, 2] * 3 * 2)  # three turns, twice
    assert len(found.runs) == 9
    assert [run.strategy for run in found.runs[:3]] == ["target", "speculative", "draft"]
    target, speculative, draft = found.summary
    assert target.speed_vs_target == 1
    assert target.tokens == 24
    assert speculative.same_as_target
    assert speculative.first_divergence is None
    assert speculative.lossless
    assert draft.first_divergence is not None
    assert draft.mean_tv_to_target is None
    assert speculative.target_calls_per_token == sum(r.metrics.target_calls for r in found.runs[1::3]) / 24
    assert speculative.speed_interval is not None
    assert (speculative.speed_interval_kind, speculative.speed_interval_over) == ("range", "prompts")
    assert speculative.tested_acceptance_rate is not None
    assert Comparison.from_json(found.to_json()) == found


def test_first_divergence(text_pair: Pair) -> None:
    long = generate(text_pair, "hello", strategy="target", max_new_tokens=9, temperature=0)
    short = generate(text_pair, "hello", strategy="target", max_new_tokens=5, temperature=0)
    assert first_divergence(long, long) is None
    assert first_divergence(short, long) == 5
