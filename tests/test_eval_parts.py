"""The parts of `cascli eval` that do not need lm-evaluation-harness."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from cascli import Pair, generate
from cascli.cli.app import app
from cascli.cli.common import requested_settings
from cascli.evaluation.generation import Generation
from cascli.evaluation.run import file_names, folder_name
from cascli.evaluation.scores import evaluated_tasks, main_metric, with_quality, without_samples
from cascli.evaluation.table import EvaluatedTask, Evaluation, Score
from cascli.render.console import Screen
from cascli.render.evaluation import print_evaluation
from cascli.settings import Settings
from cascli.sweeps import likelihood
from cascli.sweeps.likelihood import Likelihood, Reader
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Record
from cascli.version import __version__
from tests.test_screen import console

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("task", "temperature", "tokens"),
    [
        ({}, 0.0, 256),
        ({"do_sample": False, "temperature": 0.7, "max_gen_toks": 9}, 0.0, 9),
        ({"temperature": 0.7, "max_new_tokens": 8}, 0.7, 8),
        ({"do_sample": True, "temperature": 0.7, "max_tokens": 7, "max_gen_toks": 6}, 0.7, 6),
        ({"do_sample": True, "max_completion_tokens": 5}, 1.0, 5),
        ({"do_sample": True, "temperature": 0.0}, 0.0, 256),
    ],
)
def test_tasks_determine_the_generation_settings(task: dict[str, Any], temperature: float, tokens: int) -> None:
    found = Generation.of(task, Settings())
    assert (found.sampling.temperature, found.max_new_tokens) == (temperature, tokens)
    assert found.not_honoured == ()


@pytest.mark.parametrize("width", [40, 80])
def test_scores_are_printed_whole_even_in_narrow_terminals(width: int) -> None:
    names = ("target", "speculative:k=4", "speculative-cascade:rule=token-v3,alpha=0.3,k=4")
    scores = [
        Score(strategy=name, metric="exact_match", filter="flexible-extract", value=0.512 + i / 10, stderr=0.044)
        for i, name in enumerate(names)
    ]
    task = EvaluatedTask(name="gsm8k_cot_zeroshot", written=True, samples=9, scores=scores)
    values = dict.fromkeys(Evaluation.model_fields) | {"tasks": [task], "strategies": list(names)}
    view = console(width, color=False)
    print_evaluation(Evaluation.model_construct(**values), Screen(view, view, quiet=True))
    lines = view.file.getvalue().splitlines()
    for i in range(3):
        assert any(f"{0.512 + i / 10:.3f}" in line and "±0.044" in line for line in lines)
    if width == 40:
        assert all(
            any(line.startswith(word) for line in lines) for word in ("speculative k=4", "spec-cascade token-v3")
        )
    assert "gsm8k_cot_zeroshot" in "".join(lines)


def test_stops_seeds_and_truncation_come_from_the_task() -> None:
    found = Generation.of({"until": "\n", "seed": 3, "top_k": 5, "top_p": 0.9}, Settings())
    assert (found.stop, found.seed, found.sampling.top_k, found.sampling.top_p) == (("\n",), 3, 5, 0.9)
    assert Generation.of({"until": ["a", "", "b"], "top_k": -1}, Settings()).stop == ("a", "b")
    assert Generation.of({"until": None, "top_k": -1}, Settings()).sampling.top_k == 0


def test_flags_go_before_tasks() -> None:
    task = {"until": ["a"], "do_sample": False, "max_gen_toks": 9, "seed": 3, "top_k": 5, "top_p": 0.9}
    given = Settings(temperature=0.5, max_new_tokens=4, seed=0, top_k=0, top_p=1.0, stop=["b"])
    found = Generation.of(task, given)
    assert (found.sampling.temperature, found.sampling.top_k, found.sampling.top_p) == (0.5, 0, 1.0)
    assert (found.max_new_tokens, found.seed, found.stop) == (4, 0, ("a", "b"))


def test_unsupported_task_settings_are_named() -> None:
    task = {"until": [], "repetition_penalty": 1.2, "num_beams": 1, "min_p": 0.0, "typical_p": None, "use_cache": False}
    assert Generation.of(task, Settings()).not_honoured == ("repetition_penalty=1.2", "use_cache=False")


def _by_hand(pair: Pair, prompt: list[int], answer: list[int]) -> Likelihood:
    """Computed with one forward of the transformers module, then in float64."""
    with torch.inference_mode():
        logits = pair.target.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, : pair.vocab]
    logs = torch.log_softmax(logits.double(), -1)
    return Likelihood(
        float(logs[range(len(answer)), answer].sum()), bool((logits.argmax(-1) == torch.tensor(answer)).all())
    )


def test_answers_to_the_same_prompt_reuse_the_common_prefix(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices, a longer prompt, a shorter one, another: the same as one forward each, with fewer tokens read."""
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    prompt = [3, 1, 2, 9, 9]
    own = generate(text_pair, prompt_ids=prompt, strategy="target", temperature=0.0, max_new_tokens=7).token_ids
    asked = [
        *((prompt, answer) for answer in (own, own[:4], [*own[:3], (own[3] + 1) % 300], [5], own)),
        *([[*prompt, *own[:2]], own[2:]], [prompt[:3], [9, 9, *own]], [[8], [8]], [prompt[:2], [7]]),
    ]
    read, tokens = Reader(text_pair.target), 0
    forward = text_pair.target.runner.forward

    def counted(ids: torch.Tensor, rows: int) -> torch.Tensor:
        nonlocal tokens
        tokens += len(ids)
        return forward(ids, rows)

    monkeypatch.setattr(text_pair.target.runner, "forward", counted)
    found = [read(each, answer) for each, answer in asked]
    read.end()
    wanted = [_by_hand(text_pair, list(each), list(answer)) for each, answer in asked]
    assert [each.total for each in found] == pytest.approx([each.total for each in wanted], abs=1e-4)
    assert [each.greedy for each in found] == [each.greedy for each in wanted]
    assert [each.greedy for each in found[:6]] == [True, True, False, False, True, True]
    assert tokens < sum(len(each) + len(answer) - 1 for each, answer in asked) - 5 * (len(prompt) - 1)
    assert text_pair.target.runner.length == 0


FOUND: dict[str, Any] = {
    "results": {
        "sums": {
            "alias": "sums",
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": 0.25,
            "exact_match,loose": 1.0,
            "exact_match_stderr,loose": "N/A",
        },
        "all": {"alias": "all", "acc,none": 0.75, "acc_stderr,none": 0.1},
        "choices": {"alias": " - choices", "acc,none": 0.75, "acc_stderr,none": 0.1},
    },
    "group_subtasks": {"all": ["choices"], "sums": []},
    "configs": {"sums": {"output_type": "generate_until"}, "choices": {"output_type": "multiple_choice"}},
    "n-samples": {"sums": {"original": 9, "effective": 2}, "choices": {"original": 4, "effective": 4}},
    "samples": {
        "sums": [
            {
                "doc_id": 0,
                "filter": "strict",
                "metrics": ["bleu", "exact_match"],
                "bleu": ("a", "b"),
                "exact_match": 1.0,
            },
            {
                "doc_id": 1,
                "filter": "strict",
                "metrics": ["bleu", "exact_match"],
                "bleu": ("a", "b"),
                "exact_match": 0.0,
            },
            {"doc_id": 0, "filter": "loose", "metrics": ["exact_match"], "exact_match": 1.0},
            {"doc_id": 1, "filter": "loose", "metrics": ["exact_match"], "exact_match": 1.0},
        ],
        "choices": [],
    },
}


def test_scores_are_listed_with_the_strategies_that_earned_them() -> None:
    cells = [Cell(strategy=spec, temperature=0.0, seed=0) for spec in ("target", "speculative:k=2")]
    records = [
        Record(
            cell=cell, problem=str(n), category="sums", token_ids=[1, 2], target_calls=2, finish_reason="eos", turns=1
        )
        for cell in cells
        for n in range(2)
    ]
    mains = {task: main_metric(FOUND, task) for task in FOUND["samples"]}
    judged = with_quality(records, FOUND, mains)
    assert [record.quality for record in judged] == [1.0, 0.0, 1.0, 0.0]
    sums, group, choices = evaluated_tasks({cell.strategy: without_samples(FOUND, mains) for cell in cells}, judged)
    assert (sums.name, sums.written, sums.samples, sums.metric) == ("sums", True, 2, "exact_match")
    told = [(each.strategy, each.metric, each.filter, each.value, each.stderr) for each in sums.scores]
    assert told[0] == ("target", "exact_match", "strict", 0.5, 0.25)
    assert told[3] == ("speculative:k=2", "exact_match", "loose", 1.0, None)
    assert [(row.strategy, row.quality, row.answers) for row in sums.rows] == [
        ("target", 0.5, 2),
        ("speculative:k=2", 0.5, 2),
    ]
    for task in (group, choices):  # likelihoods are the target's alone, and reported once
        assert not task.written and [each.strategy for each in task.scores] == ["target"] and task.rows == []


def test_a_score_that_is_not_a_number_is_none() -> None:
    found = {
        "own": {"alias": "own", "f1,none": math.nan, "f1_stderr,none": math.nan, "acc,none": 1, "bleu,none": "N/A"}
    }
    results = {"results": found, "configs": {"own": {"output_type": "loglikelihood"}}, "samples": {}}
    [task] = evaluated_tasks({"target": without_samples(results, {})}, [])
    assert [(each.metric, each.value, each.stderr) for each in task.scores] == [
        ("f1", None, None), ("acc", 1.0, None), ("bleu", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind", [bool, np.float32, np.int64, np.bool_, np.array, torch.tensor, lambda n: np.array([n]), np.atleast_2d]
)
def test_a_score_may_be_a_number_of_numpy_or_torch(kind: Callable[[int], Any]) -> None:
    samples = [
        {"doc_id": place, "filter": "none", "metrics": ["acc"], "acc": kind(right)}
        for place, right in enumerate((1, 0))
    ]
    found = {
        "results": {"own": {"acc,none": kind(1), "acc_stderr,none": kind(0)}},
        "configs": {"own": {"output_type": "generate_until"}},
        "samples": {"own": samples},
    }
    mains = {"own": main_metric(found, "own")}
    assert mains == {"own": ("acc", "none")}
    cell = Cell(strategy="target", temperature=0.0, seed=0)
    records = [Record(cell=cell, problem=str(place), category="own") for place in range(2)]
    assert [record.quality for record in with_quality(records, found, mains)] == [1.0, 0.0]
    [task] = evaluated_tasks({"target": without_samples(found, mains)}, [])
    assert [(each.value, each.stderr) for each in task.scores] == [(1.0, 0.0)]


def test_a_score_that_a_strategy_lacks_for_a_document_is_none() -> None:
    samples = [{"doc_id": 0, "filter": "none", "metrics": ["other"], "other": 1.0}]
    record = Record(cell=Cell(strategy="draft", temperature=0.0, seed=0), problem="0", category="own")
    [judged] = with_quality([record], {"samples": {"own": samples}}, {"own": ("acc", "none")})
    assert judged.quality is None


def test_the_parts_of_a_group_decide_whose_its_scores_are() -> None:
    """Likelihoods alone are the target's; together with answers, each strategy has a score, marked as partly theirs."""
    own = {"alias": "mixed", "acc,none": 0.5, "exact_match,strict": 0.5, "f1,none": 0.5}
    sums, choices = (FOUND["results"][each] | {"f1,none": 0.5} for each in ("sums", "choices"))
    found = FOUND | {
        "results": {"mixed": own, **FOUND["results"], "sums": sums, "choices": choices},
        "group_subtasks": {"mixed": ["choices", "all", "sums"], **FOUND["group_subtasks"]},
    }
    told = {spec: without_samples(found, {}) for spec in ("speculative:k=2", "draft")}
    told["draft"]["results"] = found["results"] | {"mixed": own | {"exact_match,strict": 0.25, "f1,none": 0.375}}
    group = evaluated_tasks(told, [])[0]
    assert group.written and [(each.strategy, each.metric, each.value, each.likelihoods) for each in group.scores] == [
        ("target", "acc", 0.5, True),
        ("speculative:k=2", "exact_match", 0.5, False),
        ("speculative:k=2", "f1", 0.5, True),
        ("draft", "exact_match", 0.25, False),
        ("draft", "f1", 0.375, True),
    ]
    lines = _shown([group])
    assert [any("*" in line for line in lines if value in line) for value in ("0.250", "0.375")] == [False, True]
    assert "also within groups" in " ".join(lines)


def _shown(tasks: list[EvaluatedTask]) -> list[str]:
    values = dict.fromkeys(Evaluation.model_fields) | {"tasks": tasks}
    view = console(80, color=False)
    print_evaluation(Evaluation.model_construct(**values), Screen(view, view))
    return view.file.getvalue().splitlines()


def test_older_documents_mark_likelihoods_too() -> None:
    score = Score(strategy="target", metric="acc", filter="none", value=0.5, stderr=None)
    for written in (True, False):
        task = EvaluatedTask(name="own", written=written, samples=1, scores=[score])
        assert any("target*" in line for line in _shown([task])) != written


def test_without_scores_there_is_no_table() -> None:
    assert _shown([EvaluatedTask(name="own", written=False, samples=1, scores=[])]) == [
        "lm-evaluation-harness gave no scores"
    ]


def test_documents_without_some_metric_are_counted() -> None:
    samples = [{"doc_id": place, "filter": "none", "metrics": [name], name: 1.0} for place, name in enumerate("aab")]
    found = {
        "results": {"own": {"a,none": 1.0, "b,none": 1.0}},
        "configs": {"own": {"output_type": "generate_until"}},
        "n-samples": {"own": {"original": 3, "effective": 2}},
        "samples": {"own": [*samples, samples[0] | {"filter": "other"}]},
    }
    [task] = evaluated_tasks({"target": without_samples(found, {})}, [])
    assert task.samples == 3


def test_a_flag_overrides_the_environment_and_the_pair_file_is_ignored(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_TEMPERATURE", "0.75")
    clean_env.setenv("CASCLI_SEED", "4")
    flags: Any = SimpleNamespace(given=Settings(temperature=0.25, limit=3))
    given = requested_settings(flags)
    assert (given.temperature, given.seed, given.limit, given.max_new_tokens) == (0.25, 4, 3, None)


def test_all_strategies_are_scored_by_the_metric_of_the_first() -> None:
    """If a strategy's first metric happens to be between 0 and 1, it is not used while the target has another."""

    def samples(bleu: float) -> dict[str, Any]:
        sample = {"doc_id": 0, "filter": "none", "metrics": ["bleu", "acc"], "bleu": bleu, "acc": 1.0}
        return {"samples": {"truth": [sample]}}

    first, second = samples(37.0), samples(0.5)
    mains = {"truth": main_metric(first, "truth")}
    assert mains == {"truth": ("acc", "none")} and main_metric(second, "truth") == ("bleu", "none")
    record = Record(cell=Cell(strategy="target", temperature=0.0, seed=0), problem="0", category="truth")
    assert [with_quality([record], found, mains)[0].quality for found in (first, second)] == [1.0, 1.0]
    by_bleu = {"truth": ("bleu", "none")}
    assert with_quality([record], first, by_bleu)[0].quality is None  # not a score between 0 and 1


def test_folders_are_named_after_strategies() -> None:
    assert folder_name("speculative-cascade:rule=opt,alpha=0.3,k=4") == "speculative-cascade_rule=opt_alpha=0.3_k=4"
    assert folder_name("../x") == ".._x"


def test_tasks_do_not_share_a_file() -> None:
    """Whatever their order; a task whose name can be that of a file keeps it."""
    assert file_names(["a b", "a_b", "a/b", "a_b-2"]) == {
        "a_b": "a_b",
        "a_b-2": "a_b-2",
        "a b": "a_b-3",
        "a/b": "a_b-4",
    }


def test_without_lm_eval_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused = CliRunner().invoke(app, ["eval", "--tasks", "gsm8k", "-c", "tiny-random"])
    assert refused.exit_code == 2 and "pip install 'cascli[eval]'" in refused.stderr


def test_a_folder_with_results_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    refused = CliRunner().invoke(app, ["eval", "--tasks", "gsm8k", "-c", "tiny-random", "-o", str(tmp_path)])
    assert refused.exit_code == 2 and "holds an evaluation" in refused.stderr
    refused = CliRunner().invoke(app, ["eval", "--tasks", " , ", "-c", "tiny-random"])
    assert refused.exit_code == 2 and "name at least one" in refused.stderr


def test_the_citation_matches_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = (ROOT / "docs" / "citing.md").read_text()
    assert cited["version"] == __version__ and f"version = {{{__version__}}}" in page
    [paper] = cited["references"]
    assert f"{{{cited['title']}}}" in page and f"{{{paper['title']}}}" in page
    for author in paper["authors"]:
        assert f"{author['given-names']} {author['family-names']}" in " ".join(page.split())
