"""EAGLE-3 heads: their files, their logits compared with a reference, and the commands on pairs that use one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cascli import Pair, compare, generate, generate_many, load_pair
from cascli.audit import draws, numerics
from cascli.audit import run as audits
from cascli.cli import evaluate
from cascli.cli.app import app
from cascli.cli.common import Plan
from cascli.config import load_config, pair_of_models
from cascli.engine import check_models
from cascli.errors import ConfigError, RunError, UsageError
from cascli.evaluation import harness
from cascli.jobs.bench import bench
from cascli.models.eagle3.runners import Eagle3Runner
from cascli.models.survey import survey
from cascli.render.console import Screen
from cascli.strategies import parse
from tests.eagle3 import LAYER, TAPS, WIDTH, pair_with_head, target, write_head
from tests.pairs import ARCHITECTURES
from tests.reference.eagle3 import Head

VOCAB = 300
IDS = [*range(0, 90, 3), *range(200, 257)]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    write_head(folder, VOCAB, IDS)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return load_pair(pair_with_head(folder, VOCAB))


def logits(pair: Pair) -> torch.Tensor:
    """Logits after the last four tokens of a text that the target has read except for its last token."""
    pair.draft.runner.reset()
    return pair.draft.runner.forward(torch.arange(9), 4)


# ---------------------------------------------------------------- numbers


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "norm_before_residual": ({"norm_before_residual": True}, {}),
    "norm_before_fc": ({"norm_before_fc": True}, {}),
    "eagle 3.1": ({"fc_norm": True, "norm_output": True}, {}),
    "all taps": ({"taps": [1, 2, 3, 4, 5]}, {}),
    "out of order": ({"taps": [4, 1, 2]}, {}),
    "qwen3": ({}, {"model_type": "qwen3"}),
    "biases": ({}, {"attention_bias": True, "mlp_bias": True}),
    "two layers": ({"norm_output": True}, {"num_hidden_layers": 2, "num_key_value_heads": 2}),
    "wide heads": ({}, {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "theta": ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "width of its own": ({"target_hidden_size": WIDTH}, {"hidden_size": 20, "intermediate_size": 28}),
    "shared embedding": ({"own_embedding": False}, {}),
}


def hidden(pair: Pair, ids: torch.Tensor, taps: list[int]) -> np.ndarray:
    """The target's states `[n, taps, width]` by a full forward of transformers."""
    model, seen = pair.target.model, list[torch.Tensor]()
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        states = model(input_ids=ids.unsqueeze(0), use_cache=False, output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([(states[n] if n < len(states) - 1 else seen[0])[0] for n in taps], dim=1).double().numpy()


@pytest.mark.parametrize("case", CASES)
def test_results_match_the_reference(case: str, tmp_path: Path) -> None:
    """A block that the target has read, then drafts from the head's own states, then again after a rejection."""
    given, layer = CASES[case]
    weights = write_head(tmp_path, VOCAB, IDS, layer=layer, **given)
    pair = load_pair(pair_with_head(tmp_path, VOCAB))
    for each in pair.models.values():
        each.model.double()
    flags = {key: value for key, value in given.items() if key not in ("taps", "own_embedding")}
    table = pair.target.model.get_input_embeddings().weight.numpy()
    own = given.get("own_embedding", True)
    reference = Head(weights, LAYER | layer, None if own else table, **flags)
    taps, text = sorted(given.get("taps", TAPS)), torch.arange(3, 14) * 23 % VOCAB

    def check(got: torch.Tensor, ids: torch.Tensor, known: int) -> None:
        states = hidden(pair, ids, taps)[:known]
        wanted = reference.logits(ids.tolist(), states, VOCAB)[-len(got) :, : pair.vocab]
        assert np.array_equal(np.isfinite(wanted), np.isfinite(got.numpy()))
        there = np.isfinite(wanted)
        assert np.abs(wanted[there] - got.numpy()[there]).max() < 1e-10

    draft, runner = pair.draft.runner, pair.target.runner
    runner.forward(text[:6], 1)
    check(draft.forward(text[:7], 5), text[:7], 6)
    check(draft.forward(text[7:9], 2), text[:9], 6)
    check(draft.forward(text[9:], 2), text, 6)
    runner.forward(text[6:], 5)  # the target reads the draft, of which two tokens are kept
    for each in (draft, runner):
        each.truncate(9)
    assert draft.length == 7
    anew = torch.cat([text[:9], torch.tensor([77, 5])])
    check(draft.forward(anew[7:], 2), anew, 9)


def test_the_default_layers_match_the_package(tmp_path: Path) -> None:
    write_head(tmp_path, VOCAB, IDS, taps=None)
    pair = load_pair(pair_with_head(tmp_path, VOCAB, num_hidden_layers=9))
    assert pair.draft.model.layout.taps == (2, 4, 6)
    with pytest.raises(
        ConfigError, match=r"the default of eagle_aux_hidden_state_layer_ids, \[2, 2, 2\], does not suit"
    ):
        load_pair(pair_with_head(tmp_path, VOCAB, num_hidden_layers=5))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_greedy_speculation_matches_the_target_for_each_family(name: str, folder: Path) -> None:
    loaded = load_pair(pair_with_head(folder, VOCAB, **ARCHITECTURES[name] | {"num_hidden_layers": 5}))
    ask = {"prompt_ids": [5, 6, 7, 8], **GREEDY}
    for strategy in ("speculative:k=3", "speculative-cascade:rule=mentored", "speculative-cascade:rule=cactus"):
        ours, theirs = (generate(loaded, strategy=each, **ask) for each in (strategy, "target"))
        assert ours.token_ids == theirs.token_ids and ours.metrics.draft_calls > 10
    assert ours.pair.draft.output_rows == len(IDS) and ours.pair.masked_rows == (VOCAB - 257, VOCAB - 257)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_precisions(dtype: str, folder: Path) -> None:
    loaded = load_pair(pair_with_head(folder, VOCAB), dtype=dtype)
    assert loaded.draft.dtype == dtype
    ours, theirs = (generate(loaded, "hello", strategy=each, **GREEDY) for each in ("speculative", "target"))
    assert dtype == "bfloat16" or ours.token_ids == theirs.token_ids


def test_a_head_with_shuffled_rows_gives_the_same_logits(folder: Path, pair: Pair, tmp_path: Path) -> None:
    """The map decides, not the order of the rows."""
    found, order = load_file(folder / "model.safetensors"), torch.randperm(len(IDS))
    found["lm_head.weight"] = found["lm_head.weight"][order]
    found["d2t"] = torch.tensor(IDS)[order] - torch.arange(len(IDS))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(found, tmp_path / "model.safetensors")
    other = load_pair(pair_with_head(tmp_path, VOCAB))
    assert torch.equal(*map(logits, (other, pair)))


def test_older_files_are_read(folder: Path, pair: Pair, tmp_path: Path) -> None:
    """A flat config without flags, and another layer name."""
    found = load_file(folder / "model.safetensors")
    del found["t2d"]
    renamed = {name.replace("layers.0.", "midlayer."): value for name, value in found.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    config = LAYER | {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": VOCAB, "draft_vocab_size": len(IDS)}
    nested = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": TAPS, "use_aux_hidden_state": True}}
    (tmp_path / "config.json").write_text(json.dumps(config | nested))
    other = load_pair(pair_with_head(tmp_path, VOCAB))
    assert torch.equal(*map(logits, (other, pair)))


def test_a_head_for_all_tokens_needs_no_map(tmp_path: Path) -> None:
    found = write_head(tmp_path, 257, range(257))
    save_file(
        {name: value for name, value in found.items() if name not in ("d2t", "t2d")}, tmp_path / "model.safetensors"
    )
    loaded = load_pair(pair_with_head(tmp_path, 257))
    assert bool(logits(loaded).isfinite().all())


# ---------------------------------------------------------------- rounds


def test_the_audit_checks_a_head_together_with_its_target(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in numerics.numerics(pair, 8)] == ["pass", "skipped", "pass", "pass"]
    assert all(check.status == "pass" for check in draws.draws(pair))
    monkeypatch.setattr(Eagle3Runner, "length", property(lambda self: self._read))
    assert next(iter(numerics.numerics(pair, 8))).status == "fail"


def test_the_target_reads_the_prompt_first_and_once(pair: Pair) -> None:
    run = generate(pair, prompt_ids=[1, 2, 3, 4], strategy="speculative:k=2", max_new_tokens=2, temperature=0.0)
    assert run.metrics.target_calls == len(run.rounds)
    alone = generate(pair, prompt_ids=[1, 2, 3, 4], strategy="target", max_new_tokens=2, temperature=0.0)
    assert run.token_ids == alone.token_ids


def test_answers_do_not_depend_on_earlier_answers(pair: Pair) -> None:
    ask: dict[str, Any] = {"strategy": "speculative-cascade:rule=token-v3,alpha=0.5,k=3", "max_new_tokens": 20}
    first = generate(pair, "one", seed=1, **ask)
    generate(pair, "two", seed=2, **ask)
    generate(pair, "two", strategy="target", max_new_tokens=5)
    assert generate(pair, "one", seed=1, **ask).token_ids == first.token_ids


def test_batches_and_fair_schedules_follow_the_right_target(pair: Pair) -> None:
    """Texts run concurrently, and each head reads its own target."""
    spec, texts = "speculative-cascade:rule=token-v3,alpha=0.5,k=3", ["one", "two words", "and three more"]
    how: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0, "seed": 3}
    with pytest.warns(UserWarning, match="reads hidden states of each target pass"):
        many = generate_many(pair, texts, strategy=spec, batch_size=3, **how)
    alone = generate_many(pair, texts, strategy=spec, batch_size=1, **how)
    assert [run.token_ids for run in many] == [run.token_ids for run in alone]
    rows = [compare(pair, "hello", [spec, "speculative:k=2"], schedule=kind, **how) for kind in ("fair", "sequential")]
    fair, sequential = ([run.token_ids for run in each.runs] for each in rows)
    assert fair == sequential


def test_strategies_that_write_with_the_draft_are_refused(pair: Pair) -> None:
    for spec in ("draft", "cascade", "token-cascade:rule=opt"):
        with pytest.raises(UsageError, match="has an EAGLE-3 head"):
            check_models(pair, parse(spec))
    for spec in ("target", "speculative", "speculative-cascade:rule=opt", "speculative:draft=prompt-lookup"):
        check_models(pair, parse(spec))


def test_early_exit_drafts_are_refused_with_an_eagle3_head(pair: Pair) -> None:
    with pytest.raises(UsageError, match="without an EAGLE-3 head"):
        generate(pair, prompt_ids=[1, 2], strategy="speculative:draft=early-exit,layers=1,k=2", **GREEDY)


def test_default_strategies_are_those_the_pair_supports(pair: Pair) -> None:
    assert generate(pair, "hello", max_new_tokens=4).strategy == "speculative"
    found = compare(pair, "hello", max_new_tokens=4)
    assert [row.strategy for row in found.summary][:2] == ["target", "speculative:k=4"] and len(found.summary) == 4


def test_eval_adds_what_generate_runs_by_default(
    pair: Pair, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair_with_head(folder, VOCAB)))
    asked: list[str] = []
    monkeypatch.setattr(harness, "task_manager", lambda request: None)
    monkeypatch.setattr(Plan, "load", lambda _: pair)
    monkeypatch.setattr(evaluate, "_run", lambda _, chosen, *__, **___: asked.extend(each.spec for each in chosen))
    app(["eval", "--tasks", "any", "-c", str(tmp_path / "pair.yaml")], standalone_mode=False)
    assert asked == ["target", "speculative:k=4"]


def test_rules_that_rely_on_confidence_are_warned_of_wherever_they_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plan = tmp_path / "pair.yaml", tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(pair_with_head(folder, VOCAB)))
    task = {"kind": "jsonl", "path": str(tmp_path / "asked.jsonl")}
    (tmp_path / "asked.jsonl").write_text('{"prompt": "one", "answer": "two"}\n')
    rule = {"speculative-cascade": {"rule": "chow", "k": 2}}
    asked = {"pair": str(file), "strategies": ["target", rule], "task": task, "max_new_tokens": 2}
    plan.write_text(yaml.safe_dump(asked))
    few = ["-c", str(file), "--max-new-tokens", "2"]
    for command in (
        ["generate", "hi", *few, "-s", "speculative-cascade:rule=chow"],
        ["compare", "hi", *few, "-s", "target", "-s", "speculative-cascade:rule=chow"],
        ["compare", "hi", *few, "--rules", "chow,token-v3"],
        ["sweep", str(plan), "-o", str(tmp_path / "out")],
    ):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 0, ended.output
        assert ended.stderr.count("chow: relies on the draft's confidence") == 1, command
    heard = list[str]()
    monkeypatch.setattr(harness, "task_manager", lambda request: None)
    monkeypatch.setattr(evaluate, "_run", lambda *_, **__: None)
    monkeypatch.setattr(Screen, "note", lambda _, text: heard.append(text))
    CliRunner().invoke(app, ["eval", "--tasks", "any", "-c", str(file), "-s", "speculative-cascade:rule=chow"])
    assert any(text.startswith("chow: relies on") for text in heard)
    monkeypatch.undo()
    ended = CliRunner().invoke(app, ["chat", *few], input="/strategy speculative-cascade:rule=chow\n")
    assert ended.stderr.count("chow: relies on the draft's confidence") == 1


def test_verify_and_bench_support_a_pair_with_a_head(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "QUICK", replace(audits.QUICK, runs=300))
    found = audits.audit(pair, [parse("speculative:k=2"), parse("speculative-cascade:rule=token-v3,k=2")], quick=True)
    assert found.passed, [check for check in found.checks if check.status == "fail"]
    measured = bench(pair, contexts=[32], blocks=[1, 2, 5], repeats=1)
    assert measured.profiles[0].draft[1].median > 0 and measured.pair.draft.source.startswith("eagle3:path:")


# ---------------------------------------------------------------- pair files


def test_a_pair_file_can_name_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_head(tmp_path / "head", VOCAB, IDS)
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump({"draft": {"eagle3": "./head"}, "target": target(VOCAB)}))
    config = load_config(tmp_path / "pair.yaml")
    assert config.draft.eagle3 == f"path:{tmp_path / 'head'}" and config.by_head
    assert load_config(config.recorded).model_dump() == config.model_dump()
    monkeypatch.chdir(tmp_path)
    named = pair_of_models("eagle3:head", None, {"target": target(VOCAB)})
    assert named.draft.model_dump() == config.draft.model_dump() and not load_config("tiny-random").by_head
    hub = load_config({"draft": {"eagle3": "RedHatAI/Qwen3-8B-speculator.eagle3"}, "target": target(VOCAB)})
    assert str(hub.draft.source) == "hub:RedHatAI/Qwen3-8B-speculator.eagle3@main"
    found = survey(config)
    assert found.models["draft"].kind == "eagle3" and found.models["draft"].rows == len(IDS)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ({"eagle3": 3}, "draft.eagle3: expected a folder or a repository name (got 3)"),
        ({"eagle3": ""}, "draft.eagle3: expected a folder or a repository name"),
        ({"eagle3": "a b"}, "draft.eagle3: expected a model folder"),
        ({"eagle3": "./x", "source": {"path": "./y"}}, "draft: give 'eagle3' or 'source', not both"),
        ({"eagle3": "./x", "vocab": 3}, "draft.vocab: an EAGLE-3 head has a vocabulary of its own"),
        (
            {"eagle3": "./x", "device_map": "auto"},
            "draft.device_map: an EAGLE-3 head is placed with its target; leave it out",
        ),
        ({"eagle3": "./x.gguf"}, "not a .gguf file"),
        ({"eagle3": "./x", "layers": 3}, "unknown key 'layers'"),
        ({"eagle3": "./absent"}, "no such file or folder"),
    ],
)
def test_bad_pair_files(draft: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump({"draft": draft, "target": target(VOCAB)}))
    with pytest.raises(UsageError) as error:
        load_pair(file)
    assert words in str(error.value) and str(file) in str(error.value)


def test_the_error_for_a_head_named_as_a_model_shows_the_right_form(folder: Path) -> None:
    with pytest.raises(RunError, match="not a model on its own: name it with 'eagle3:'"):
        load_pair({"draft": {"source": {"path": str(folder)}}, "target": target(VOCAB)})
    with pytest.raises(UsageError, match=r"draft: expected a head's folder .* not a .gguf file"):
        pair_of_models("eagle3:./x.gguf", None, {"target": target(VOCAB)})


def test_a_target_cannot_be_a_head() -> None:
    with pytest.raises(UsageError, match=r"target.*'eagle3'|target\.source"):
        load_config({"target": {"eagle3": "./x"}})


# ---------------------------------------------------------------- files written by others


def of_config(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | more
        (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value != "-"}))

    return change


def of_layer(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values["transformer_layer_config"] |= more
        (folder / "config.json").write_text(json.dumps(values))

    return change


def of_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return changed


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return of_weights(lambda found: found.update({name: change(found[name]).contiguous()}))


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


HOSTILE: list[tuple[Callable[[Path], None], str]] = [
    (of_config(speculators_model_type="dflash"), "a head of type 'dflash'"),
    (of_config(speculators_model_type="-", draft_vocab_size="-"), "not an EAGLE-3 head"),
    (of_config(transformer_layer_config="-"), "has no 'transformer_layer_config'"),
    (of_config(norm_before_fc=True, fc_norm=True), "exclude each other"),
    (of_config(norm_output="yes"), "norm_output: expected true or false"),
    (of_config(draft_vocab_size=0), "draft_vocab_size: expected a number, 1 or more"),
    (of_config(draft_vocab_size=10**9), "draft_vocab_size: 1000000000 is more than any model has"),
    (of_config(draft_vocab_size=VOCAB + 1), "is more than the target's 300 token ids"),
    (
        of_config(draft_vocab_size=50),
        "'lm_head.weight' has shape [87, 32], but its config and its target require [50, 32]",
    ),
    (of_config(target_hidden_size=64), "made for a target of width 64, but this one's is 32"),
    (of_config(eagle_aux_hidden_state_layer_ids=[1, 2, 9]), "does not suit a target of 5 layers"),
    (of_config(eagle_aux_hidden_state_layer_ids=[1, 2, 2]), "expected distinct numbers"),
    (of_config(eagle_aux_hidden_state_layer_ids=[0, 2, 3]), "numbers from 1 to 5"),
    (of_config(eagle_aux_hidden_state_layer_ids=[]), "numbers from 1 to 5"),
    (of_config(eagle_aux_hidden_state_layer_ids="all"), "does not suit a target of 5 layers"),
    (of_config(eagle_aux_hidden_state_layer_ids=[1, 2]), "'fc.weight' has shape [32, 96]"),
    (of_config(eagle_config={"use_aux_hidden_state": False}), "last hidden state only"),
    (of_config(norm_before_fc=True), "'input_norm.weight' is missing"),
    (of_layer(model_type="mamba"), "its layers are of type 'mamba'; only llama and qwen3 are supported"),
    (of_layer(model_type="qwen3"), "norm.weight' is missing (and 1 more)"),
    (of_layer(vocab_size=301), "made for a target of 301 token ids, but this one has 300"),
    (of_layer(hidden_size=-3), "expected a number, 1 or more"),
    (of_layer(hidden_size=10**12), "is more than any model has"),
    (of_layer(num_hidden_layers=2), "'layers.1."),
    (of_layer(num_hidden_layers=0), "num_hidden_layers: expected a number, 1 or more"),
    (of_layer(hidden_act="magic"), "hidden_act 'magic'"),
    (of_layer(num_attention_heads=3, num_key_value_heads=2), "are inconsistent"),
    (of_layer(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "position encoding"),
    (of_layer(rope_parameters={"rope_type": "spiral"}), "config.json"),
    (of_weights(lambda found: found.pop("fc.weight")), "'fc.weight' is missing."),
    (of_weights(lambda found: found.pop("d2t")), "'d2t' is missing, which maps its 87 rows to tokens"),
    (of_weights(lambda found: found.update(mask_hidden=torch.ones(3))), "'mask_hidden' is not part of the head"),
    (put("fc.weight", lambda w: w[:, :-1]), "'fc.weight' has shape [32, 95]"),
    (put("embed_tokens.weight", lambda w: w[:-1]), "'embed_tokens.weight' has shape [299, 32]"),
    (put("norm.weight", lambda w: w.long()), "'norm.weight' is of torch.int64"),
    (put("d2t", lambda w: w[:-1]), "'d2t' has shape [86]"),
    (put("d2t", lambda w: w + 100), "'d2t' maps to token"),
    (put("d2t", lambda w: w - 1), "'d2t' maps to token -1"),
    (put("d2t", lambda w: w.float()), "'d2t' is of torch.float32"),
    (put("d2t", lambda w: w.clone().index_fill_(0, torch.tensor([1]), -1)), "'d2t' maps to one token twice"),
    (put("t2d", lambda w: ~w), "name different tokens"),
    (put("t2d", lambda w: w[1:]), "'t2d' has shape [299]"),
    (a_pickle, "pytorch_model.bin is a pickle, which can run code"),
    (lambda folder: (folder / "model.safetensors").unlink(), "there is no model.safetensors"),
    (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "expected keys and values"),
    (cut, "cannot be loaded"),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE, ids=[words[:40] for _, words in HOSTILE])
def test_bad_heads_are_refused_with_a_short_message(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    write_head(tmp_path, VOCAB, IDS)
    change(tmp_path)
    with pytest.raises((ConfigError, RunError, UsageError)) as error:
        load_pair(pair_with_head(tmp_path, VOCAB))
    said = str(error.value)
    assert words in said and len(said) < 400 and len(said.splitlines()) <= 2, said


def test_a_trained_embedding_must_be_present(tmp_path: Path) -> None:
    write_head(tmp_path, VOCAB, IDS, own_embedding=False, embed_requires_grad=True)
    with pytest.raises(RunError, match="its embedding was trained"):
        load_pair(pair_with_head(tmp_path, VOCAB))


def test_a_narrow_head_cannot_share_an_embedding(tmp_path: Path) -> None:
    write_head(tmp_path, VOCAB, IDS, own_embedding=False, layer={"hidden_size": 20}, target_hidden_size=WIDTH)
    with pytest.raises(ConfigError, match="it has no embedding of its own, and its width of 20"):
        load_pair(pair_with_head(tmp_path, VOCAB))


def test_targets_of_other_builds_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="heads draft for targets of type llama, mistral, qwen2, qwen3; this one"):
        load_pair(pair_with_head(folder, VOCAB, **ARCHITECTURES["gemma2"]))


# ---------------------------------------------------------------- the package that the format comes from


PACKAGE = [
    {},
    {"norm_before_residual": True},
    {"norm_before_fc": True},
    {"fc_norm": True, "norm_output": True},
]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("flags", PACKAGE, ids=str)
def test_heads_written_by_the_formats_own_package_are_read(flags: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """Its model saves a head; its logits for a block and for two drafted tokens are compared with ours."""
    core = pytest.importorskip("speculators.models.eagle3", reason="the package is not there", exc_type=ImportError)
    from transformers import AutoConfig

    layer = LAYER | {"model_type": kind, "vocab_size": VOCAB}
    weights = write_head(tmp_path / "ours", VOCAB, IDS, layer=layer, **flags)
    of_theirs = AutoConfig.for_model(**layer)
    of_theirs._attn_implementation = "eager"
    config = core.Eagle3SpeculatorConfig(
        transformer_layer_config=of_theirs,
        draft_vocab_size=len(IDS),
        eagle_aux_hidden_state_layer_ids=TAPS,
        **flags,
    )
    theirs = core.Eagle3DraftModel(config)
    missing, unknown = theirs.load_state_dict(weights, strict=False)
    assert not unknown and all(name.startswith("verifier") for name in missing)
    theirs.save_pretrained(tmp_path / "theirs")
    pair = load_pair(pair_with_head(tmp_path / "theirs", VOCAB))
    draft, runner, text = pair.draft.runner, pair.target.runner, torch.arange(3, 15) * 23 % VOCAB
    states, wanted = hidden(pair, text, TAPS), list[torch.Tensor]()
    theirs.lm_head.register_forward_hook(lambda _, args, output: wanted.append(output[0]))
    with torch.inference_mode():
        theirs(
            torch.tensor(states[:-1]).float().flatten(1).unsqueeze(0),
            text[1:].unsqueeze(0),
            torch.zeros(1, len(text) - 1, dtype=torch.long),
            ttt_steps=3,
        )
    runner.forward(text, 1)
    block = draft.forward(text, len(text) - 1)[:, IDS]
    assert torch.allclose(block, wanted[0], atol=1e-4)
    for known in (2, 5, 9):  # its later steps hold, for every position, the result of a draft that began there
        draft.reset()
        runner.forward(text[:known], 1)
        draft.forward(text[: known + 1], 1)
        for step in (1, 2):
            got = draft.forward(text[known + step : known + step + 1], 1)[0, IDS]
            assert torch.allclose(got, wanted[step][known - 1], atol=1e-4)


def test_rules_are_not_judged_where_the_head_proposes_nothing(tmp_path: Path) -> None:
    """Behind its last position there is no q: matching ended in an error of torch's."""
    write_head(tmp_path / "head", 300, list(range(0, 257, 2)), layer={"max_position_embeddings": 40})
    loaded = load_pair(pair_with_head(tmp_path / "head", 300))
    options = {"match": {"target_calls_per_token": 0.5}, "rules": ["head"], "measure": False}
    with pytest.raises(RunError, match=r"proposes nothing this far into the text, .*\n.*shorter prompts"):
        compare(loaded, "hi", max_new_tokens=8, temperature=1.0, **options)


def test_rows_are_chosen_for_the_target_and_for_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the head would be slower than it need be where the target is not."""
    measured: list[str] = []
    for module in ("cascli.models.load", "cascli.models.eagle3.reading"):
        monkeypatch.setattr(f"{module}.choose_rows", lambda model: measured.append(type(model).__name__))
    write_head(tmp_path, VOCAB, IDS)
    load_pair(pair_with_head(tmp_path, VOCAB))
    assert len(measured) == 2 and "Eagle3Head" in measured
