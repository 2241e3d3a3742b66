"""Faults that a reading of the whole code found; each test failed before its mend."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from cascli import Pair, Run, generate, load_pair
from cascli.cli.app import app
from cascli.errors import ConfigError, RunError, UsageError
from cascli.models.tokenizer import byte_tokenizer
from cascli.prompts import read_prompts
from cascli.render.console import Screen
from cascli.render.stream import AnswerStream
from cascli.trace import Emitted, Round
from tests.pairs import model, pair

TINY = ["-c", "tiny-random", "--max-new-tokens", "6"]


def invoke(*arguments: str, stdin: str | bytes | None = None):
    return CliRunner().invoke(app, list(arguments), input=stdin)


def shell(line: str) -> subprocess.CompletedProcess:
    command = line.replace("cascli", f"{sys.executable} -m cascli")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ)


def test_answers_in_a_pipe_are_not_touched() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file), Console(file=io.StringIO()))
    text = "all:\n\tgcc x\r\n\x0c[bold]a[/bold]\x1b["
    AnswerStream(screen, tentative=False, mixed=True).round(
        Round(emitted=[Emitted(id=0, text=text, event="bonus")]), [text]
    )
    assert file.getvalue() == text


def test_the_second_turn_does_not_leak_the_withdrawn_draft(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text('{"turns": ["hello", "again"]}')
    flags = ["generate", "--prompts", str(file), "-s", "cascade:threshold=99", *TINY]
    said = invoke(*flags, "-q").stdout
    texts = [run["text"] for run in json.loads(invoke(*flags, "--json").stdout)["runs"]]
    assert said == "".join(text + "\n" for text in texts)


def test_k_reaches_the_default_strategy(clean_env: pytest.MonkeyPatch, text_pair: Pair) -> None:
    assert json.loads(invoke("generate", "hi", *TINY, "-k", "2", "--json").stdout)["params"]["k"] == 2
    assert generate(text_pair, "hi", num_speculative_tokens=3, max_new_tokens=4).params["k"] == 3
    assert generate(text_pair, "hi", max_new_tokens=4).params["k"] == 4


def test_dtype_of_a_flag_is_stronger_than_a_models_own_and_that_than_the_default(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    mixed = pair(300) | {"defaults": {"dtype": "bfloat16"}}
    mixed["draft"] = mixed["draft"] | {"dtype": "float32"}
    assert [load_pair(mixed).info.draft.dtype, load_pair(mixed).info.target.dtype] == ["float32", "bfloat16"]
    assert load_pair(mixed, dtype="auto").info.target.dtype == "float32"
    file = tmp_path / "mixed.yaml"
    file.write_text(json.dumps(mixed))
    run = Run.from_json(invoke("generate", "hi", "-c", str(file), "--json", "--max-new-tokens", "2").stdout)
    assert [run.pair.draft.dtype, run.pair.target.dtype] == ["float32", "bfloat16"]
    with pytest.raises(UsageError, match="dtype"):
        load_pair(mixed, dtype="fp32")
    with pytest.raises(UsageError, match="device"):
        load_pair(mixed, device="gpu")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strategy", ["target", "speculative", "speculative-cascade", "token-cascade"])
def test_logits_that_are_no_numbers_are_an_error(strategy: str, temperature: float) -> None:
    broken = load_pair(pair(300))
    with torch.no_grad():
        broken.target.model.lm_head.weight[7] = float("nan")
    with pytest.raises(RunError, match="target model's logits are not finite"):
        generate(broken, "hello", strategy=strategy, temperature=temperature, max_new_tokens=5)


def test_ids_that_one_tokenizer_lacks_are_masked(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from cascli.models.tokenizer import byte_tokenizer

    values = {key: value for key, value in model(1, 300)["source"]["random"].items() if key != "model_type"}
    for name, extra in (("draft", []), ("target", ["<a>", "<b>"])):
        AutoModelForCausalLM.from_config(LlamaConfig(**values)).save_pretrained(tmp_path / name)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(extra)
        tokenizer.save_pretrained(tmp_path / name)
    both = load_pair({name: {"source": {"path": str(tmp_path / name)}} for name in ("draft", "target")})
    assert (both.vocab, both.info.masked_rows) == (257, (43, 43))


@pytest.mark.parametrize("line", ["cascli pairs | true", "cascli strategies | true", "cascli pairs >&-"])
def test_a_reader_that_leaves_is_no_failure(line: str) -> None:
    found = shell(f"set -o pipefail; {line}")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    "line", ["cascli generate x --bogus", "cascli generat", "cascli generate x y", "cascli generate --top-k a"]
)
def test_usage_errors_are_two_lines(line: str) -> None:
    found = shell(line)
    assert found.returncode == 2
    assert found.stderr.startswith("cascli: ")
    assert len(found.stderr.splitlines()) == 2


def test_help_says_the_defaults(clean_env: pytest.MonkeyPatch) -> None:
    assert "(default 4)" in " ".join(invoke("generate", "--help").stdout.split())


def test_colour_always_in_a_pipe_is_coloured_and_still_a_pipe(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("NO_COLOR", "1")
    assert "\x1b[" in invoke("strategies", "--color", "always").stdout
    found = invoke("generate", "hi", *TINY, "-s", "cascade:threshold=99", "--color", "always", "-q").stdout
    assert (
        found
        == Run.from_json(invoke("generate", "hi", *TINY, "-s", "cascade:threshold=99", "--json").stdout).text + "\n"
    )


def test_first_token_of_a_deferred_cascade_is_the_targets(text_pair: Pair) -> None:
    m = generate(text_pair, "hello", strategy="cascade:threshold=99", max_new_tokens=20).metrics
    assert m.ttft_seconds is not None
    assert m.ttft_seconds > m.seconds.draft


def test_the_time_of_those_who_watch_is_not_the_runs(text_pair: Pair) -> None:
    m = generate(text_pair, "hello", strategy="target", max_new_tokens=4, watch=lambda _: time.sleep(0.2)).metrics
    assert m.seconds.total < 0.4


def test_prompt_files_may_hold_any_character(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n', encoding="utf-8")
    assert read_prompts(file)[0].turns == ("a\u2028b\u0085c",)


def test_switches_of_a_file_can_be_turned_off(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_JSON", "1")
    assert invoke("generate", "hi", *TINY).stdout.startswith("{")
    assert not invoke("generate", "hi", *TINY, "--no-json").stdout.startswith("{")


def test_input_that_is_no_text_is_a_usage_error(clean_env: pytest.MonkeyPatch, text_pair: Pair) -> None:
    found = invoke("generate", *TINY, stdin=b"\xff\xfe\xfa")
    assert (found.exit_code, found.stderr.strip()) == (2, "cascli: stdin is not UTF-8 text.")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        generate(text_pair, "a\udc80b")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "8"},
        {"num_attention_heads": 0},
        {"hidden_size": 33, "num_attention_heads": 4},
        {"num_hidden_layers": 0},
    ],
)
def test_random_models_of_impossible_shape_are_config_errors(change: dict) -> None:
    with pytest.raises(ConfigError, match=r"source\.random"):
        load_pair({"draft": model(1, 300, **change), "target": model(2, 300)})


def test_requests_that_could_not_be_checked_are_refused(clean_env: pytest.MonkeyPatch) -> None:
    for flags in (["-s", "target", "-s", "target"], ["-s", "draft", "-s", "speculative", "--min-speedup", "1"]):
        assert invoke("compare", "hi", *TINY, *flags).exit_code == 2
    assert invoke("compare", "hi", *TINY, "-s", "target", "-s", "draft", "--min-speedup", "nan").exit_code == 2


def test_saved_files_are_checked_and_named(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    for text in ('{"schema": "cascli.runs/1"}', '{"schema": "cascli.runs/1", "runs": 5}', '{"schema": "cascli.run/1"}'):
        file = tmp_path / "broken.json"
        file.write_text(text)
        found = invoke("show", str(file))
        assert found.exit_code == 2
        assert "broken.json" in found.stderr
    file.write_text("garbage")
    assert invoke("show", str(file), "--json").exit_code == 2


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dir.json").mkdir()
    found = invoke("generate", "hi", *TINY, "-o", str(tmp_path / "dir.json"))
    assert (found.exit_code, found.stdout) == (2, "")


def test_ascii_terminals_get_everything(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("PYTHONIOENCODING", "ascii")
    found = shell("cascli compare hi -c tiny-random --max-new-tokens 4 && cascli pairs")
    assert found.returncode == 0
    assert "tiny-random" in found.stdout


def test_sources_of_the_wrong_kind_say_so() -> None:
    for source in ("random", {}, 3):
        with pytest.raises(ConfigError, match=r"pair: draft\.source: needs exactly one of"):
            load_pair(pair(8) | {"draft": {"source": source}})


def test_a_pair_of_the_hub_says_which_commit_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch moves: without the commit nobody could load the same weights again."""
    commit = "c0ffee" + "0" * 34
    load_pair(pair(300)).target.model.save_pretrained(tmp_path / commit)
    byte_tokenizer().save_pretrained(tmp_path / commit)
    monkeypatch.setattr("cascli.weights.hub.cached_snapshot", lambda source: tmp_path / commit)
    main, pinned = {"source": {"hub": "some/model"}}, {"source": {"hub": "some/model", "revision": commit}}
    found = load_pair({"draft": main, "target": pinned}, offline=True)
    assert found.info.draft.source == f"hub:some/model@main#{commit}"
    assert found.info.target.source == f"hub:some/model@{commit}"
