"""`speculation_profile.json` by the rules of the programs that read it, reimplemented here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cascli import Pair, compare, load_pair
from cascli.analysis.comparison import Comparison
from cascli.analysis.speculation_profile import Checkpoint, Drafting, Kept, described, of_comparison, profile
from cascli.cli.app import app
from cascli.decoding.session import Session
from cascli.errors import UsageError
from cascli.prompts import Prompt
from cascli.strategies import Strategy, parse
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Call, Record
from cascli.sweeps.speculation_profile import of_sweep
from cascli.trace import Emitted, Round
from tests.sweeps import header_of, plan_of

Document = dict[str, Any]
PROMPTS = [
    Prompt(("one", "and then?"), "a", "writing"),
    Prompt(("another",), "b", "maths"),
    Prompt(("a third one",), "c", "writing"),
    Prompt(("why?",), "d", ""),
]
SPECS = ["target", "speculative-cascade:rule=opt,alpha=0.3,k=7", "speculative:k=3", "speculative:k=5"]
TARGET = Checkpoint(id="someone/large", dtype="float32")
HOW: Document = {
    **{"draft": None, "target": TARGET, "date": None, "lossless": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    **{"max_new_tokens": 8, "concurrency": 1, "hardware": None},
}


def synthetic_sampler_takes(n: int, rates: Sequence[float]) -> None:
    """Assert what vLLM requires of `synthetic_acceptance_rates`."""
    assert len(rates) == n
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(rates[i] <= rates[i - 1] for i in range(1, n))


def simulator_takes(n: int, text: str) -> None:
    """Assert what Dynamo's mocker requires of `aic_nextn_accept_rates`; it supports drafts of up to 5 tokens."""
    assert 1 <= n <= 5
    assert all(math.isfinite(float(rate)) and 0 <= float(rate) <= 1 for rate in text.split(","))


def consistent(document: Document) -> None:
    """Assert what the schema's own producer checks, and how its fields must relate."""
    assert isinstance(document["schema_version"], str) and document["schema_version"]
    k, counts = document["num_speculative_tokens"], document["acceptance_length_histogram"]
    lengths = {int(length): count for length, count in counts.items()}
    rounds = sum(lengths.values())
    assert document["measured"] is (rounds > 0) and rounds == document["measurement_conditions"]["num_decode_steps"]
    mean = document["mean_accept_length"]
    assert mean == pytest.approx(sum(length * count for length, count in lengths.items()) / rounds, abs=1e-6)
    assert document["accept_length_by_k"].get(str(k)) == mean
    if document["verification_method"] == "block":
        assert document["conditional_accept_rates"] is document["marginal_accept_rates"] is None
        assert "longest-prefix" in document["vectors_unavailable_reason"]
        return
    marginal, conditional = document["marginal_accept_rates"], document["conditional_accept_rates"]
    assert len(marginal) == len(conditional) == k
    for i in range(k):  # lengths include the target's own token: place i is reached by lengths of at least i + 2
        beyond = sum(count for length, count in lengths.items() if length >= i + 2)
        assert marginal[i] == pytest.approx(beyond / rounds, abs=1e-6)
        assert math.prod(conditional[: i + 1]) == pytest.approx(marginal[i], abs=1e-5)
    checks = document["validation"]
    assert abs(1 + sum(marginal) - mean) <= checks["mean_consistency"]["tolerance"] == 0.02
    assert checks["mean_consistency"]["passed"] and checks["marginal_monotonicity"] == {
        "passed": True,
        "violations": [],
    }
    synthetic_sampler_takes(k, marginal)
    if k <= 5:
        simulator_takes(k, ",".join(map(str, conditional)))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """A comparison of models that agree often, as their distributions are nearly flat."""
    return compare(
        load_pair("tiny-random"), PROMPTS, SPECS, max_new_tokens=24, temperature=1.0, measure=False, warm_up=False
    )


def test_a_profile_matches_the_traces_of_its_comparison(comparison: Comparison) -> None:
    """Every number is recounted from the traces of the exact strategy at its longest k."""
    found = json.loads(of_comparison(comparison).to_json())
    consistent(found)
    assert found["measurement_conditions"]["strategy"] == "speculative:k=5"
    assert found["measurement_conditions"]["lossless"] is True
    runs = [run for run in comparison.runs if run.spec == "speculative:k=5"]
    of_runs = [[1 + sum(token.accepted for token in each.drafted) for each in run.rounds] for run in runs]
    assert found["acceptance_length_histogram"] == {
        str(length): count for length, count in sorted(Counter(chain(*of_runs)).items())
    }
    assert len(found["acceptance_length_histogram"]) > 2
    means = [sum(part) / len(part) for part in (of_runs[0] + of_runs[1], *of_runs[2:])]
    assert found["mean_accept_length_per_request"] == pytest.approx(sum(means) / 4, abs=1e-6)
    assert found["per_category"] == pytest.approx({"maths": means[1], "writing": (means[0] + means[2]) / 2}, abs=1e-6)
    assert list(found["accept_length_by_k"]) == ["3", "5"]
    assert (found["method"], found["accept_length_model"]) == ("draft_model", "chain_analytic")
    assert found["draft_checkpoint"]["id"].startswith("random:llama") and found["producer"].startswith("cascli ")


def test_the_profile_records_the_concurrency(comparison: Comparison) -> None:
    """Acceptance rates do not depend on the batch size, but speed does."""
    many = comparison.model_copy(update={"batch_size": 4})
    told = [of_comparison(each).measurement_conditions.concurrency for each in (comparison, many)]
    assert told == [1, 4]


MUTATIONS: dict[str, Callable[[Document], object]] = {
    "rates moved by one": lambda d: d["marginal_accept_rates"].insert(0, 1.0) or d["marginal_accept_rates"].pop(),
    "one convention for the other": lambda d: d.update(marginal_accept_rates=d["conditional_accept_rates"]),
    "a shorter draft than was measured": lambda d: d.update(num_speculative_tokens=4),
    "the mean over prompts": lambda d: d.update(mean_accept_length=d["mean_accept_length_per_request"]),
    "accepted drafts as lengths": lambda d: d.update(
        acceptance_length_histogram={str(int(k) - 1): v for k, v in d["acceptance_length_histogram"].items()}
    ),
    "a draft that was never tested": lambda d: d["conditional_accept_rates"].append(0.0),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_consistency_rules_detect_mutations(comparison: Comparison, mutation: str) -> None:
    found = json.loads(of_comparison(comparison).to_json())
    MUTATIONS[mutation](found)
    with pytest.raises(AssertionError):
        consistent(found)


def test_acceptance_lengths_that_never_occurred_are_not_rejections() -> None:
    """No round kept exactly one of three drafts, about half kept two: the first passed as often as the second."""
    kept = [Kept("1", "", [40, 0, 60]), Kept("2", "", [10])]
    found = profile(Drafting("speculative", {"k": 3}), kept, {3: kept}, **HOW)
    assert found.marginal_accept_rates == pytest.approx([60 / 110, 60 / 110, 0.0], abs=1e-6)
    assert found.conditional_accept_rates == pytest.approx([60 / 110, 1.0, 0.0], abs=1e-6)
    assert found.mean_accept_length == pytest.approx((50 + 180) / 110, abs=1e-6)
    assert found.mean_accept_length_per_request == pytest.approx((2.2 + 1) / 2)
    assert found.per_category is None
    consistent(json.loads(found.to_json()))


@pytest.mark.parametrize(
    ("spec", "method", "model"),
    [
        ("speculative:k=2", "draft_model", "chain_analytic"),
        ("speculative:draft=prompt-lookup,k=2", "ngram", "measured_per_k"),
        ("speculative:draft=suffix,k=2", "suffix", "measured_per_k"),
        ("speculative:stop=rate,k=auto", "draft_model", "measured_per_k"),
        ("speculative:stop=max-q,k=2", "draft_model", "measured_per_k"),
        ("speculative:verify=block,k=2", "draft_model", "measured_per_k"),
        ("speculative-cascade:rule=opt,alpha=0.3,k=2", "draft_model", "chain_analytic"),
    ],
)
def test_method_and_accept_length_model_match_the_strategy(spec: str, method: str, model: str) -> None:
    strategy = parse(spec)
    kept = [Kept("1", "", [1, 2, 3])]
    [drafting] = described([Drafting(strategy.name, strategy.params)])
    found = profile(drafting, kept, {2: kept}, **HOW)
    assert (found.method, found.accept_length_model) == (method, model)
    if strategy.params["k"] == 2:
        consistent(json.loads(found.to_json()))


def test_the_right_strategy_is_profiled() -> None:
    def chosen(*specs: str) -> list[str]:
        places = {parse(spec).spec: spec for spec in specs}
        found = described(Drafting(parse(spec).name, parse(spec).params) for spec in specs)
        return [places[each.spec] for each in found]

    assert chosen("target", "draft") == []
    assert chosen(*SPECS) == ["speculative:k=5", "speculative:k=3"]
    assert chosen("speculative:draft=suffix,k=2", "speculative:k=8") == ["speculative:draft=suffix,k=2"]
    by_rate = "speculative:stop=rate,k="
    assert chosen(f"{by_rate}auto", f"{by_rate}3", "speculative:k=3") == [f"{by_rate}auto"]
    lenient = "speculative-cascade:rule=opt,alpha=0.3,k=2"
    assert chosen("target", lenient, "speculative-cascade:rule=opt,alpha=0.5,k=8") == [lenient]


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("path:/lustre/team/hf/nvidia/Large-8B", "Large-8B", None),
        (r"path:C:\models\mine", "mine", None),
        ("path:/home/alice/llama", "llama", None),
        ("path:/", "/", None),
        ("path:mine", "mine", None),
        ("path:./mine.gguf", "mine.gguf", None),
        ("hub:Qwen/Qwen3-8B@main#0123abc", "Qwen/Qwen3-8B", "0123abc"),
        ("hub:Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B", "main"),
        ("eagle3:hub:some/head@main#0123abc", "some/head", "0123abc"),
        ("pypi:some-weights", "pypi:some-weights", None),
        ("random:llama#1", "random:llama#1", None),
    ],
)
def test_model_names_do_not_reveal_local_folders(source: str, name: str, revision: str | None) -> None:
    found = Checkpoint.of(source, "int8")
    assert (found.id, found.revision) == (name, revision)


def cascli(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "-c", "tiny-random"] if arguments[0] != "show" else [*arguments])


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    file = tmp_path / "asked.jsonl"
    lines = [{"id": str(i), "prompt": text, "category": "ab"[i % 2]} for i, text in enumerate(["hello", "why", "so"])]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_compare_and_sweep_write_the_same(asked: Path, tmp_path: Path) -> None:
    """Two commands with the same prompts, seed and strategies write one profile, and so does `show` of the sweep."""
    common = ["--temperature", "1", "--max-new-tokens", "16", "-s", "target", "-s", "speculative:k=3"]
    profiles = tmp_path / "of-compare.speculation_profile.json"
    made = cascli("compare", "--prompts", str(asked), *common, "--no-measure", "-o", str(profiles))
    assert made.exit_code == 0, made.output
    first = json.loads(profiles.read_text())
    consistent(first)
    assert list(first["per_category"]) == ["a", "b"]

    plan = tmp_path / "plan.yaml"
    plan.write_text(f"strategies: [target]\ntask: {{kind: jsonl, path: {asked}, metric: agreement}}\n")
    made = cascli("sweep", str(plan), *common, "-o", str(tmp_path / "out"))
    assert made.exit_code == 0, made.output
    assert "speculation_profile.json" in made.stderr
    second = json.loads((tmp_path / "out" / "speculation_profile.json").read_text())
    consistent(second)
    for each in (first, second):
        each["measurement_conditions"] = {
            key: value for key, value in each["measurement_conditions"].items() if key not in ("date", "dataset")
        }
    assert first == second

    again = cascli("show", str(tmp_path / "out"), "--format", "speculation-profile")
    assert again.exit_code == 0, again.output
    assert again.stdout == (tmp_path / "out" / "speculation_profile.json").read_text()
    refused = cascli("show", str(tmp_path / "out"), "-s", "target", "--format", "speculation-profile")
    assert refused.exit_code == 2 and "no strategy drafts ahead" in refused.stderr


def test_a_saved_comparison_can_be_exported_as_a_profile(comparison: Comparison, tmp_path: Path) -> None:
    file, out = tmp_path / "c.json", tmp_path / "speculation_profile.json"
    file.write_text(comparison.to_json())
    shown = cascli("show", str(file), "-s", "speculative:k=3", "-o", str(out))
    assert shown.exit_code == 0, shown.output
    consistent(json.loads(out.read_text()))
    assert json.loads(out.read_text())["num_speculative_tokens"] == 3


def test_a_profile_without_a_drafting_strategy_is_refused_up_front(tmp_path: Path) -> None:
    refused = cascli("compare", "hi", "-s", "target", "-o", str(tmp_path / "speculation_profile.json"))
    assert refused.exit_code == 2 and "-s speculative:k=4" in refused.stderr
    plan = tmp_path / "plan.yaml"
    plan.write_text("strategies: [target]\ntask: {kind: builtin, metric: agreement}\n")
    refused = cascli("sweep", str(plan), "-o", str(tmp_path / "speculation_profile.json"))
    assert refused.exit_code == 2 and "is a folder" in refused.stderr


def test_without_drafts_there_is_no_profile(text_pair: Pair) -> None:
    alone = compare(text_pair, "hi", ["target", "draft"], max_new_tokens=4, measure=False)
    with pytest.raises(UsageError, match="no strategy drafts ahead"):
        of_comparison(alone)


@dataclass(frozen=True)
class InTurns(Strategy):
    """The two models write k tokens each in turn: a `k` that does not count drafts."""

    k: int = 2

    def decode(self, s: Session) -> Iterator[Round]:
        while not s.finished:
            writer = s.draft if s.length // self.k % 2 else s.target
            token = s.draw(s.warp(writer.read(s.length)))
            s.append(token)
            yield Round(emitted=[Emitted(id=int(token), text="x", event="draft")])


def test_a_k_alone_makes_no_profile(text_pair: Pair) -> None:
    """A strategy that reports no drafts has no acceptance rates, not even rates of 0."""
    strategies = [InTurns(), "speculative-cascade:rule=chow,alpha=0.1,k=2"]
    found = compare(text_pair, "hi", strategies, max_new_tokens=4, measure=False, warm_up=False)
    assert of_comparison(found).measurement_conditions.strategy.startswith("speculative-cascade")
    with pytest.raises(UsageError, match="no strategy drafts ahead"):
        of_comparison(found.model_copy(update={"runs": found.runs[:1]}))
    cell = Cell(strategy="in-turns:k=2", temperature=0.0, seed=0)
    record = Record(cell=cell, problem="a", acceptance_histogram=[4], rounds=4)
    with pytest.raises(UsageError, match="no strategy drafts ahead"):
        of_sweep([record], header_of(plan_of()), [cell.strategy])
    drafts = record.model_copy(update={"acceptance_histogram": [1, 0, 1], "rounds": 2, "drafted": 4})
    assert of_sweep([drafts], header_of(plan_of()), [cell.strategy]).marginal_accept_rates == [0.5, 0.5]


def test_a_sweep_profile_uses_the_first_temperature_and_any_single_batch_size() -> None:
    spec = "speculative:k=2"
    plan = plan_of(strategies=[spec], temperatures=[1.0, 0.0])

    def record(temperature: float, problem: str, kept: list[int], size: int) -> Record:
        cell = Cell(strategy=spec, temperature=temperature, seed=0)
        return Record(cell=cell, problem=problem, acceptance_histogram=kept, batch_size=size, draft_calls=1)

    records = [record(1.0, "a", [1, 2, 3], 4), record(1.0, "b", [0, 0, 5], 4), record(0.0, "a", [9, 0, 0], 1)]
    found = of_sweep(records, header_of(plan), [spec])
    assert found.acceptance_length_histogram == {"1": 1, "2": 2, "3": 8}
    how = found.measurement_conditions
    assert (how.temperature, how.concurrency, how.num_prompts) == (1.0, 4, 2)
    assert how.hardware == "x86_64 cpu"
    one = Call.of(header_of(plan), None)
    calls = [one, one.model_copy(update={"environment": {"device": "another"}})]
    elsewhere = of_sweep(records, header_of(plan, calls=calls), [spec])
    assert elsewhere.measurement_conditions.hardware is None
    mixed = of_sweep([*records, record(1.0, "c", [1, 0, 0], 2)], header_of(plan), [spec])
    assert mixed.measurement_conditions.concurrency is None
