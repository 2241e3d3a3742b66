"""`cascli eval` on our own task files, with the installed lm-evaluation-harness."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from cascli import Pair, files, generate, load_pair  # noqa: E402
from cascli.cli.app import app  # noqa: E402
from cascli.errors import UsageError  # noqa: E402
from cascli.evaluation.harness import EvaluationOptions  # noqa: E402
from cascli.evaluation.model import Notes, StrategyModel  # noqa: E402
from cascli.evaluation.run import Evaluating, evaluate  # noqa: E402
from cascli.settings import Settings  # noqa: E402
from cascli.strategies import parse  # noqa: E402

SPECS = ["target", "speculative:k=3", "speculative-cascade:rule=token-v3,alpha=0.6,k=3"]
QUESTIONS = ["one and two", "what now", "a third", "and so on"]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def own() -> Pair:
    return load_pair("tiny-random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, own: Pair) -> Path:
    """One task with written answers, one with choices, and one about whole texts."""
    place = tmp_path_factory.mktemp("tasks")
    right = _answers(own, "target")
    documents = [
        {"question": q, "answer": right[i] if i % 2 else "wrong", "choices": ["yes", "no", f"no {q}"], "label": i % 3}
        for i, q in enumerate(QUESTIONS)
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    data: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}, "cache_dir": str(place / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    tasks = {
        "own_answers": {
            "output_type": "generate_until",
            "doc_to_text": "Q: {{question}}\nA:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **mean}],
        },
        "own_choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}?",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", **mean}],
        },
        "own_texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
    }
    for name, task in tasks.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    return place


def _prompt(question: str) -> str:
    return f"Q: {question}\nA:"


def _answers(pair: Pair, spec: str) -> list[str]:
    how: dict[str, Any] = {"raw": True, "temperature": 0.0, "max_new_tokens": 12, "stop": ["\n"]}
    return [generate(pair, _prompt(q), strategy=spec, **how).text for q in QUESTIONS]


def cascli(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", "-c", "tiny-random", *arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("out") / "results"
    specs = [part for spec in SPECS for part in ("-s", spec)]
    tasks = "own_answers,own_choices,own_texts"
    return cascli("--tasks", tasks, "--include-path", str(folder), *specs, "-o", str(out)), out


def test_scores_are_computed_from_each_strategys_own_answers(
    done: tuple[Result, Path], own: Pair, folder: Path
) -> None:
    result, out = done
    assert result.exit_code == 0, result.output
    document = json.loads((out / "eval.json").read_text())
    assert document["schema"] == "cascli.eval/1.3" and document["strategies"] == SPECS
    answers, choices, texts = document["tasks"]
    right = [json.loads(line)["answer"] for line in (folder / "data.jsonl").read_text().splitlines()]
    for spec, score, row in zip(SPECS, answers["scores"], answers["rows"], strict=True):
        said = _answers(own, spec)
        wanted = sum(a == b for a, b in zip(said, right, strict=True)) / 4
        assert (score["strategy"], score["value"]) == (spec, wanted)
        assert (row["strategy"], row["quality"], row["answers"], row["temperature"]) == (spec, wanted, 4, 0.0)
    assert answers["scores"][0]["value"] == answers["scores"][1]["value"] >= 0.5  # lossless: the target's own answers
    assert answers["rows"][1]["prompts_same"] == 4 and answers["rows"][1]["draft_acceptance_rate"] is not None
    assert all(row["costs"]["target_calls_per_answer"] > 0 for row in answers["rows"])
    assert answers["rows"][0]["mean_tv_to_target"] == 0
    for task in (choices, texts):
        assert not task["written"] and [score["strategy"] for score in task["scores"]] == ["target"]


def test_files_of_lm_eval_are_written_next_to_ours(done: tuple[Result, Path], own: Pair) -> None:
    _, out = done
    for spec in SPECS:
        place = out / spec.replace(":", "_").replace(",", "_")
        [results] = [json.loads(each.read_text()) for each in place.glob("results_*.json")]
        assert results["config"]["model_args"]["strategy"] == spec
        assert {"results", "configs", "n-samples", "versions", "higher_is_better"} <= results.keys()
        assert "samples" not in results
        [answers] = place.glob("samples_own_answers_*.jsonl")
        logged = [json.loads(line) for line in answers.read_text().split("\n")[:-1]]
        assert [each["resps"][0][0] for each in logged] == _answers(own, spec)
        assert logged[1]["arguments"]["gen_args_0"]["arg_0"] == _prompt(QUESTIONS[1])
        [choices] = place.glob("samples_own_choices_*.jsonl")
        assert len(choices.read_text().split("\n")) == 5


def test_the_output_states_whose_scores_they_are(done: tuple[Result, Path]) -> None:
    result, out = done
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "exact_match" in result.stdout and "target*" in result.stdout
    assert "likelihoods are the target's" in result.stderr and "wrote eval.json" in result.stderr
    shown = CliRunner().invoke(app, ["show", str(out / "eval.json")], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == result.stdout


def test_likelihoods_come_from_the_target(folder: Path, done: tuple[Result, Path], own: Pair) -> None:
    """Accuracy and byte perplexity, from one forward of the transformers module per text."""
    _, out = done
    document = json.loads((out / "eval.json").read_text())
    hits = []
    for i, question in enumerate(QUESTIONS):
        totals = [_by_hand(own, f"{question}?", f" {choice}")[0] for choice in ("yes", "no", f"no {question}")]
        hits.append(totals.index(max(totals)) == i % 3)
    assert document["tasks"][1]["scores"][0]["value"] == sum(hits) / 4
    total = sum(_by_hand(own, "", question)[0] for question in QUESTIONS)
    bits = -total / sum(len(question.encode()) for question in QUESTIONS)
    assert document["tasks"][2]["scores"][0]["value"] == pytest.approx(float(torch.tensor(bits).exp()), rel=1e-4)


def _by_hand(pair: Pair, context: str, continuation: str) -> tuple[float, bool]:
    """With bytes as tokens, the tokens of a joined text are those of its two parts."""
    before = pair.tokenizer(context)["input_ids"] or [pair.tokenizer.eos_token_id]
    answer = pair.tokenizer(continuation)["input_ids"]
    with torch.inference_mode():
        logits = pair.target.model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1, : pair.vocab]
    logs = torch.log_softmax(logits.double(), -1)[range(len(answer)), answer]
    return float(logs.sum()), bool((logits.argmax(-1) == torch.tensor(answer)).all())


def model(pair: Pair, spec: str = "target", given: Settings | None = None, **how: Any) -> StrategyModel:
    return StrategyModel(pair, parse(spec), given or Settings(), how.pop("notes", Notes()), **how)


def asked(*arguments: Any, document: int = 0) -> Instance:
    return Instance("generate_until", {}, arguments, 0, metadata=("task", document, 1))


def test_a_likelihood_reports_whether_the_target_would_write_the_text(own: Pair) -> None:
    """The greedy flag is for all tokens, and spaces before the continuation belong to it, even all of a context."""
    written = generate(own, "hello", strategy="target", raw=True, temperature=0.0, max_new_tokens=6)
    text = own.tokenizer.decode(written.token_ids[:3])
    assert own.tokenizer(text)["input_ids"] == written.token_ids[:3], "choose a prompt whose answer is text"
    found = model(own).loglikelihood(
        [asked("hello", text), asked("hello ", "x"), asked("hello", " x"), asked("", "a"), asked("  ", "b")]
    )
    assert [greedy for _, greedy in found] == [_by_hand(own, *each)[1] for each in _pairs(text)]
    assert found[0][1] is True
    assert [total for total, _ in found] == pytest.approx([_by_hand(own, *each)[0] for each in _pairs(text)], abs=1e-4)
    assert found[1] == found[2]


def _pairs(text: str) -> list[tuple[str, str]]:
    return [("hello", text), ("hello", " x"), ("hello", " x"), ("", "a"), ("", "  b")]


def test_an_encoder_decoder_scores_the_whole_continuation_and_nothing_more() -> None:
    """T5's tokenizer adds an end to every text: it is not part of a choice, and no token of the choice is lost."""
    from tokenizers.processors import TemplateProcessing

    pair = load_pair("tiny-t5")
    tokenizer = pair.tokenizer
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    start = pair.target.model.config.decoder_start_token_id
    found = model(pair).loglikelihood([asked("hello", "yes"), asked("hello", "n"), asked("hello", "m")])
    for (total, _), choice in zip(found, ("yes", "n", "m"), strict=True):
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = pair.target.model(
                input_ids=torch.tensor([[*tokenizer("hello")["input_ids"]]]),
                decoder_input_ids=torch.tensor([[start, *answer[:-1]]]),
            ).logits[0, :, : pair.vocab]
        logs = torch.log_softmax(logits.double(), -1)
        assert total == pytest.approx(float(logs[range(len(answer)), answer].sum()), abs=1e-3)
    assert found[1] != found[2]
    with pytest.raises(UsageError, match="an encoder-decoder cannot compute"):
        model(pair).loglikelihood_rolling([asked("ab")])


def test_the_metric_of_the_first_strategy_is_used_for_all(own: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(bleu: float) -> dict[str, Any]:
        sample = {"doc_id": 0, "filter": "none", "metrics": ["bleu", "acc"], "bleu": bleu, "acc": 1.0}
        return {"samples": {"truth": [sample]}}

    found = iter([of(37.0), of(0.5)])
    monkeypatch.setattr("cascli.evaluation.run.evaluated", lambda *_: next(found))
    evaluating = Evaluating(own, EvaluationOptions(["truth"]), None, Settings())
    for spec in SPECS[:2]:
        evaluating.run(parse(spec))
    assert [each["main_metrics"] for each in evaluating.results.values()] == [{"truth": ("acc", "none")}] * 2


def test_permission_to_run_code_is_passed_to_the_harness_and_revoked(
    own: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    seen = []
    real = lm_eval.simple_evaluate
    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda **how: seen.append(os.environ.get("HF_ALLOW_CODE_EVAL")) or real(**how)
    )
    for unsafe in (False, True):
        evaluate(own, ["own_answers"], [parse("target")], include_path=folder, limit=1, unsafe=unsafe)
    assert seen == [None, "1"] and "HF_ALLOW_CODE_EVAL" not in os.environ


def test_texts_get_one_start_token(own: Pair) -> None:
    """The tokenizer adds a beginning of text, but not twice if a context is empty or brings its own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_pair("tiny-random").tokenizer
    end = tokenizer.eos_token
    tokenizer.bos_token = end
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    begun = replace(own, tokenizer=tokenizer)
    assert tokenizer("ab")["input_ids"] == [256, 97, 98]
    assert model(begun).tok_encode("ab") == model(begun).tok_encode(f"{end}ab") == [256, 97, 98]
    assert model(begun, chat=True).tok_encode("ab") == [97, 98]
    found = model(begun).loglikelihood([asked("", "ab"), asked("a", "b")])
    assert [each for each, _ in found] == pytest.approx([_window(own, [256, 97, 98], n) for n in (2, 1)], abs=1e-4)
    assert model(begun).loglikelihood_rolling([asked("ab")]) == pytest.approx([found[0][0]])


def test_long_texts_are_read_in_windows(own: Pair) -> None:
    """With a context of 8, every token is predicted once, the last ones after a full window."""
    short, text = replace(own, context=8), "abcdefghijklmnopqrst"
    ids = [own.tokenizer.eos_token_id, *own.tokenizer(text)["input_ids"]]
    wanted = _window(own, ids[:9], 8) + _window(own, ids[8:17], 8) + _window(own, ids[12:21], 4)
    assert model(short).loglikelihood_rolling([asked(text)]) == pytest.approx([wanted], abs=1e-4)
    [(total, _)] = model(short).loglikelihood([asked(text, "uvw")])
    assert total == pytest.approx(_window(own, [*ids[-6:], *own.tokenizer("uvw")["input_ids"]], 3), abs=1e-4)


def _window(pair: Pair, ids: list[int], last: int) -> float:
    with torch.inference_mode():
        logits = pair.target.model(torch.tensor([ids[:-1]])).logits[0, -last:, : pair.vocab]
    return float(torch.log_softmax(logits.double(), -1)[range(last), ids[-last:]].sum())


def test_prompts_that_do_not_fit_lose_their_beginning(own: Pair) -> None:
    notes, short = Notes(), replace(own, context=20)
    long, end = "a long prompt of many bytes", "f many bytes"
    settings = {"until": [], "max_gen_toks": 8}
    answers = [
        model(pair, notes=notes).generate_until([asked(text, settings)]) for pair, text in [(short, long), (own, end)]
    ]
    assert answers[0] == answers[1] and len(notes.shortened) == 1
    model(short, SPECS[1], notes=notes).generate_until([asked(long, settings)])
    assert len(notes.shortened) == 1, "the same prompt for another strategy"
    model(short, notes=notes).generate_until([asked(long[::-1], settings)])
    assert len(notes.shortened) == 2, "another prompt of the same length"
    assert model(own).generate_until([asked("", settings)]) != [""]
    with pytest.raises(UsageError, match="no room for a prompt"):
        model(short).generate_until([asked(long, {"max_gen_toks": 20})])


@pytest.mark.parametrize("spec", SPECS)
def test_batches_and_orders_give_the_same_answers(own: Pair, spec: str) -> None:
    """At a temperature, random numbers belong to the document, and each repeat has different ones."""
    settings = {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 1.0}
    requests = [asked(q, settings, document=i) for i, q in enumerate(QUESTIONS) for _ in range(2)]
    alone = model(own, spec).generate_until(requests)
    assert model(own, spec, batch_size=3).generate_until(requests) == alone
    assert model(own, spec).generate_until(requests[::-1][::2])[::-1] == alone[::2]
    assert alone[0] != alone[1] and len(set(alone)) == 8
    assert model(own, spec, Settings(seed=1)).generate_until(requests) != alone


def test_lossless_strategies_share_their_draws_with_compare(own: Pair) -> None:
    """The same seed, id and temperature give the same answer as `generate`."""
    from cascli.jobs.generate import decode, request_for
    from cascli.settings import Resolved

    settings = {"until": [], "max_gen_toks": 10, "temperature": 0.8, "top_k": 20, "seed": 5}
    [text] = model(own, "speculative:k=3").generate_until([asked("hello", settings, document=7)])
    how = Resolved(temperature=0.8, top_k=20, seed=5, max_new_tokens=10, raw=True)
    ids = own.tokenizer("hello")["input_ids"]
    assert decode(own, parse("speculative:k=3"), request_for(how, ids, prompt_id="task/7")).text == text


def test_few_shot_examples_become_earlier_turns_of_a_chat(own: Pair, folder: Path, tmp_path: Path) -> None:
    """The prompt that the strategy reads is the template's, and has one beginning."""
    tokenizer = load_pair("tiny-random").tokenizer
    tokenizer.chat_template = CHAT
    chatty = replace(own, tokenizer=tokenizer)
    _with(folder, tmp_path, "own_shown", num_fewshot=1, fewshot_split="test")
    evaluate(
        chatty,
        ["own_shown"],
        [parse("target")],
        output=tmp_path / "out",
        **{"include_path": tmp_path, "chat": True, "system": "Be brief.", "limit": 1},
    )
    [samples] = (tmp_path / "out" / "target").glob("samples_own_shown_*.jsonl")
    prompt = json.loads(samples.read_text())["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("<system>Be brief.|<user>Q: ") and prompt.endswith("\nA:|<assistant>")
    assert prompt.count("<user>") == 2 and prompt.count("<assistant>") == 2


def test_folders_may_be_strings(own: Pair, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    evaluate(own, ["own_answers"], [parse("target")], output=str(place), include_path=str(folder), limit=1)
    assert (place / "eval.json").is_file()


def test_the_samples_of_every_task_are_kept(own: Pair, folder: Path, tmp_path: Path) -> None:
    for name in ("own a", "own_a"):
        _with(folder, tmp_path, name)
    place = tmp_path / "out"
    evaluate(own, ["own a", "own_a"], [parse("target")], output=place, include_path=tmp_path, limit=1)
    assert len(list((place / "target").glob("samples_own_a*.jsonl"))) == 2


def _with(folder: Path, place: Path, name: str, **more: Any) -> None:
    """Write the task with written answers under another name, with changes."""
    task = yaml.safe_load((folder / "own_answers.yaml").read_text())
    (place / f"{name}.yaml").write_text(yaml.safe_dump(task | {"task": name, **more}))


def test_apply_chat_template_is_refused_without_a_template(folder: Path) -> None:
    refused = cascli("--tasks", "own_answers", "--include-path", str(folder), "--apply-chat-template")
    assert refused.exit_code == 2 and "has no chat template" in refused.stderr


def test_errors_of_lm_eval_are_reported_in_at_most_two_lines(folder: Path, tmp_path: Path) -> None:
    _with(folder, tmp_path, "own_absent", dataset_path="nobody/nothing", dataset_kwargs={})
    _with(folder, tmp_path, "own_code", unsafe_code=True)
    for name, code, words in (
        ("own_absent", 3, "documents of task own_absent cannot be loaded"),
        ("own_code", 2, "--unsafe-code-execution"),
    ):
        refused = cascli("--tasks", name, "--include-path", str(tmp_path), "-s", "target", "--offline")
        assert refused.exit_code == code and words in refused.stderr, refused.stderr
        assert len(refused.stderr.strip().splitlines()) <= 2 and refused.stdout == ""


@pytest.mark.parametrize(
    "change",
    [
        {"doc_to_text": "{{ question.no.such }}"},
        {"doc_to_text": "{% if %}"},
        {"doc_to_target": "{{ 1 / 0 }}"},
        {"metric_list": [{"metric": "no-such-metric"}]},
        {"metric_list": ["exact_match"]},
        {"generation_kwargs": ["until"]},
        {"generation_kwargs": {"until": 5}},
        {"generation_kwargs": {"until": [["x"]]}},
        {"generation_kwargs": {"until": ["x"], "temperature": -1.0}},
        {"generation_kwargs": {"until": ["x"], "temperature": "hot", "do_sample": True}},
        {"generation_kwargs": {"until": ["x"], "max_gen_toks": "many"}},
        {"filter_list": [{"name": "x", "filter": [{"function": "no-such"}]}]},
        {"filter_list": [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}]},
        {"filter_list": [{"name": "x", "filter": [{"function": "take_first_k", "k": 9}]}]},
        {"test_split": "nowhere"},
        {"output_type": "guess"},
    ],
    ids=str,
)
def test_a_malformed_task_is_reported_in_at_most_two_lines(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    _with(folder, tmp_path, "own_malformed", **change)
    refused = cascli("--tasks", "own_malformed", "--include-path", str(tmp_path), "-s", "target", "--limit", "1")
    assert refused.exit_code == 2 and "cascli: task own_malformed: " in refused.stderr, refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2 and "Traceback" not in refused.output


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("assert False", 2),
        ("unknown", 2),
        ("next(iter([]))", 2),
        ("raise SystemExit(3)", 2),
        ("raise RuntimeError('x')", 2),
        ("open('no-such-file')", 3),
    ],
)
def test_mistakes_in_a_tasks_python_name_the_task(folder: Path, tmp_path: Path, line: str, code: int) -> None:
    (tmp_path / "utils.py").write_text(f"def judged(doc, results):\n    {line}\n")
    for name in ("own_first", "own_last"):
        _with(folder, tmp_path, name)
    _with(folder, tmp_path, "own_mistaken", process_results="!function utils.judged")
    file = tmp_path / "own_mistaken.yaml"
    file.write_text(file.read_text().replace("'!function utils.judged'", "!function utils.judged"))
    tasks = ("--tasks", "own_first,own_mistaken,own_last", "--include-path", str(tmp_path))
    refused = cascli(*tasks, "-s", "target", "--limit", "1")
    assert refused.exit_code == code and "cascli: task own_mistaken: " in refused.stderr, refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2 and refused.stdout == ""


def test_documents_that_cannot_be_read_are_reported_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("hello {")
    kwargs = {"data_files": {"test": str(tmp_path / "data.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    _with(folder, tmp_path, "own_damaged", dataset_kwargs=kwargs)
    refused = cascli("--tasks", "own_damaged", "--include-path", str(tmp_path), "-s", "target")
    assert refused.exit_code == 3 and "documents of task own_damaged cannot be loaded: " in refused.stderr
    assert "JSON parse error" in refused.stderr.splitlines()[-1]


def test_a_group_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own_group.yaml").write_text(yaml.safe_dump({"group": "own_group", "task": []}))
    refused = cascli("--tasks", "own_group", "--include-path", str(tmp_path), "-s", "target")
    assert refused.exit_code == 2 and "task own_group: this is a group or tag without any tasks" in refused.stderr


def test_the_name_of_a_task_must_be_text(folder: Path, tmp_path: Path) -> None:
    for name in ("own_named", "5"):
        _with(folder, tmp_path, name)
    file = tmp_path / "5.yaml"
    file.write_text(file.read_text().replace("task: '5'", "task: 5"))
    refused = cascli("--tasks", "own_named", "--include-path", str(tmp_path), "-s", "target")
    assert refused.exit_code == 2 and "the name of a task, group or tag is not a text" in refused.stderr


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_a_bug_of_our_own_is_not_blamed_on_the_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def answers(*_: object) -> None:
        raise kind("ours")

    monkeypatch.setattr("cascli.evaluation.model.StrategyModel._answers", answers)
    ended = cascli("--tasks", "own_answers", "--include-path", str(folder), "-s", "target", "--limit", "1")
    assert ended.exit_code == 3 and f"unexpected {kind.__name__}: ours" in ended.stderr, ended.stderr


@pytest.mark.slow
def test_unknown_tasks_are_refused_with_the_closest_match(folder: Path, tmp_path: Path) -> None:
    refused = cascli("--tasks", "own_answer", "--include-path", str(folder))
    assert refused.exit_code == 2 and "did you mean 'own_answers'" in refused.stderr
    assert refused.stderr.count("\n") <= 2
    refused = cascli("--tasks", "own_answers", "--include-path", str(tmp_path / "none"))
    assert refused.exit_code == 2 and "no such folder" in refused.stderr


def test_results_before_an_interruption_are_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Evaluating.run

    def interrupted(self: Evaluating, strategy: Any, on_progress: Any = None) -> None:
        if strategy.name == "speculative":
            raise KeyboardInterrupt
        run(self, strategy, on_progress)

    monkeypatch.setattr(Evaluating, "run", interrupted)
    out = tmp_path / "out"
    ended = cascli(
        *("--tasks", "own_answers", "--include-path", str(folder), "-o", str(out), "--limit", "2"),
        *("-s", "target", "-s", "speculative:k=2", "-s", "draft"),
    )
    assert ended.exit_code == 130
    assert "no results are kept for speculative k=2, draft" in ended.stderr
    assert "exact_match" in ended.stdout
    document = json.loads((out / "eval.json").read_text())
    assert document["strategies"] == ["target"] and document["tasks"][0]["samples"] == 2
    assert list((out / "target").glob("results_*.json")) and not (out / "speculative_k=2").exists()


def test_results_that_could_not_be_saved_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write

    def full(path: Path, *rest: Any, **more: Any) -> None:
        if "speculative" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *rest, **more)

    monkeypatch.setattr(files, "write", full)
    asked = ("--tasks", "own_answers", "--include-path", str(folder), "-o", str(tmp_path / "out"), "--limit", "2")
    ended = cascli(*asked, "-s", "target", "-s", "speculative:k=2")
    told = " ".join(ended.stderr.split())
    assert ended.exit_code == 3 and "no space left" in told
    assert "not saved in" in told and "the results of speculative k=2" in told
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["strategies"] == ["target"]
    assert "wrote eval.json" in told
    none = cascli(*asked[:-4], "-o", str(tmp_path / "none"), "--limit", "2", "-s", "speculative:k=2")
    assert none.exit_code == 3 and "wrote eval.json" not in none.stderr


def test_unsupported_settings_are_reported(folder: Path, tmp_path: Path) -> None:
    _with(folder, tmp_path, "own_penalised", generation_kwargs={"until": ["\n"], "repetition_penalty": 1.5})
    told = cascli("--tasks", "own_penalised", "--include-path", str(tmp_path), "--limit", "1", "-s", "target", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["not_honoured"] == ["own_penalised: repetition_penalty=1.5"]


def test_repeats_are_independent_answers(own: Pair, folder: Path, tmp_path: Path) -> None:
    """Each is drawn independently and compared with the same repeat of the target."""
    task = yaml.safe_load((folder / "own_answers.yaml").read_text())
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(task | {"task": "twice", "repeats": 2}))
    found = evaluate(
        own, ["twice"], [parse("target")], Settings(temperature=1.0, max_new_tokens=6), include_path=tmp_path, limit=2
    )
    [row] = found.tasks[0].rows
    assert (row.answers, row.num_prompts, row.prompts_compared, row.prompts_same) == (4, 2, 4, 4)
