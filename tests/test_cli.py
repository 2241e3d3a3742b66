"""The command line as a user and a script meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cascli
from cascli import Pair, compare
from cascli.cli.common import Plan
from cascli.cli.compare import _check, _note_cuts, _run
from cascli.cli.errors import Terminated
from cascli.config import pair_files
from cascli.errors import CheckFailed, RunError, UsageError
from cascli.jobs import batch as batch_jobs
from cascli.jobs import generate as generate_jobs
from cascli.models.batch.lanes import Lanes
from cascli.render.stream import AnswerStream
from cascli.trace import ModelInfo, Run, Runs
from tests import warm
from tests.commands import invoke, program
from tests.test_screen import printed, screen

TINY = ["-c", "tiny-random", "--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch):
    return invoke


def test_answer_alone_on_stdout(cli) -> None:
    found = cli("generate", "hello", *TINY)
    assert found.exit_code == 0
    as_json = cli("generate", "hello", *TINY, "--json")
    run = Run.from_json(as_json.stdout)
    assert found.stdout == run.text + "\n"
    assert "tokens/s" in found.stderr
    assert run.spec == "speculative-cascade:rule=token-v3,alpha=0.3,k=4"
    assert "\x1b" not in found.output


def test_quiet_prints_nothing_else(cli) -> None:
    assert cli("generate", "hello", *TINY, "-q").stderr == ""


def test_prompt_from_a_pipe_and_a_dash(cli) -> None:
    plain = cli("generate", "hello", *TINY).stdout
    assert cli("generate", *TINY, stdin="hello\n").stdout == plain
    assert cli("generate", "-", *TINY, stdin="hello\n").stdout == plain
    empty = cli("generate", *TINY, stdin="")
    assert empty.exit_code == 2
    assert "no prompt" in empty.stderr


def test_cascade_in_a_pipe_prints_the_final_answer(cli) -> None:
    for threshold in ("99", "-99"):
        found = cli("generate", "hello", *TINY, "-s", f"cascade:threshold={threshold}")
        run = Run.from_json(cli("generate", "hello", *TINY, "-s", f"cascade:threshold={threshold}", "--json").stdout)
        assert found.stdout == run.text + "\n"
        assert "confidence mean-logprob" in found.stderr


def test_output_and_show_give_the_same_numbers(cli, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert cli("generate", "hello", *TINY, "-o", str(file), "-s", "speculative").exit_code == 0
    shown = cli("show", str(file), "-v")
    assert shown.exit_code == 0
    run = Run.from_json(file.read_text())
    assert run.text in shown.stdout
    assert f"in {run.metrics.num_rounds} rounds" in shown.stderr
    assert Run.from_json(cli("show", str(file), "--json").stdout) == run


def test_many_prompts(cli, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    question = {"question_id": 7, "category": "qa", "turns": ["b", "c"], "reference": ["x"]}
    file.write_text("\n".join(['{"prompt": "a"}', "", json.dumps(question), '{"prompt": "d"}']))
    found = json.loads(cli("generate", "--prompts", str(file), "--limit", "2", *TINY, "--json").stdout)
    assert found["schema"] == "cascli.runs/1"
    assert [run["prompt"] for run in found["runs"]] == ["a", "b", "c"]
    assert found["runs"][2]["prompt_tokens"] > found["runs"][1]["prompt_tokens"]
    both = cli("generate", "x", "--prompts", str(file), *TINY)
    assert both.exit_code == 2


@pytest.mark.parametrize("more", [(), ("--batch-size", "2")])
def test_a_file_of_prompts_gets_a_list_of_runs_even_if_it_has_one(
    cli, tmp_path: Path, clean_env: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    asked = ("generate", "--limit", "1", *TINY, "--json", *more)
    printed = cli(*asked, "--prompts", str(file), "-o", str(out)).stdout
    assert [run.prompt for run in Runs.from_json(printed).runs] == ["a"] and printed == out.read_text()
    clean_env.setenv("CASCLI_PROMPTS", str(file))
    assert len(Runs.from_json(cli(*asked).stdout).runs) == 1
    assert Run.from_json(cli("generate", "x", *TINY, "--json").stdout).prompt == "x"  # the file is not asked


def test_builtin_prompts(cli) -> None:
    found = json.loads(cli("compare", "--prompts", "builtin", "--limit", "2", *TINY, "-s", "target", "--json").stdout)
    assert found["runs"][0]["prompt"] == "Who is Buzz Aldrin?"
    assert len(found["runs"]) == 4


def test_compare_table_and_traces(cli) -> None:
    found = cli("compare", "hello", *TINY, "--color", "never")
    assert found.exit_code == 0
    for word in ("speed", "loss-", "target", "cascade mean-logprob", "spec-cascade opt α=.3", "≠"):
        assert word in found.stdout
    assert "\x1b" not in found.stdout


@pytest.mark.parametrize("suffix", ["json", "md", "csv"])
def test_compare_files(cli, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"table.{suffix}"
    assert cli("compare", "hello", *TINY, "-s", "target", "-s", "speculative:k=2", "-o", str(file)).exit_code == 0
    text = file.read_text()
    if suffix == "json":
        assert json.loads(text)["schema"] == "cascli.compare/1.8"
        assert "speculative" in cli("show", str(file)).stdout
    else:
        assert len(text.splitlines()) == {"md": 4, "csv": 3}[suffix]


def test_compare_json_is_one_document(cli) -> None:
    found = json.loads(cli("compare", "hello", *TINY, "-s", "target", "-s", "draft", "--json", "--runs", "2").stdout)
    assert [row["strategy"] for row in found["summary"]] == ["target", "draft"]
    assert len(found["runs"]) == 2


def test_checks_set_the_exit_code(cli) -> None:
    assert cli("generate", "hello", *TINY, "-s", "speculative", "--require-lossless").exit_code == 0
    lossy = cli("generate", "hello", *TINY, "-s", "draft", "--require-lossless")
    assert lossy.exit_code == 1
    assert "lossless" in lossy.stderr
    slow = cli("compare", "hello", *TINY, "-s", "target", "-s", "speculative", "--min-speedup", "1000")
    assert slow.exit_code == 1
    assert slow.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "x", "-s", "speclative"], 2, "did you mean 'speculative'"),
        (["generate", "x", "-s", "SPECULATIVE:k=4"], 2, "did you mean 'speculative'"),
        (["generate", "x", "-c", "Tiny-Random"], 2, "did you mean 'tiny-random'"),
        (["generate", "x", "-s", "speculative:gamma=2"], 2, "unknown parameter 'gamma'"),
        (["generate", "x", "-s", "target", "-s", "draft"], 2, "use compare"),
        (["generate", "x", "-c", "nothing"], 2, "unknown pair"),
        (["generate", "x", "-c", "nothing.yaml"], 2, "no such file"),
        (["generate", "x", "--temperature", "-1"], 2, "--temperature"),
        (["generate", "x", "--top-p", "0"], 2, "--top-p"),
        (["generate", "x", "--stop", "y", "--stop", ""], 2, "--stop: a stop text must not be empty"),
        (["generate", "x", "--stop", "\udcff"], 2, "--stop: a stop text is not valid UTF-8"),
        (["generate", "x", "--dtype", "int4"], 2, "--dtype"),
        (["generate", "x", "--device", "cuda:99"], 3, "CUDA"),
        (
            ["generate", "x", "--device", "gpu"],
            2,
            "--device: expected auto, cpu, cuda or a card such as cuda:1 (got 'gpu')",
        ),
        (["generate", "x" * 3000], 2, "context is 1024"),
        (["generate", "x", "--prompts", "none.jsonl"], 2, "not both"),
        (["generate", "--prompts", "none.jsonl"], 2, "no such file"),
        (["generate", "x", "-o", "run.pdf"], 2, ".json"),
        (["compare", "x", "-o", "/nowhere/table.md"], 2, "no such folder"),
        (["show", "none.json"], 2, "no such file"),
        (["pull", "nothing"], 2, "unknown pair"),
        (["generate", "x", "--color", "blue"], 2, "--color"),
    ],
)
def test_bad_input_gets_one_or_two_lines(cli, arguments: list[str], code: int, words: str) -> None:
    extra = [] if arguments[0] in ("show", "pull") or "-c" in arguments else ["-c", "tiny-random"]
    found = cli(*arguments, *extra)
    assert found.exit_code == code
    assert words in found.stderr
    assert found.stderr.startswith("cascli: ")
    assert len(found.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in found.output
    assert found.stdout == ""


def test_the_error_for_an_invalid_strategy_names_its_source(cli, clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(pair_files()["tiny-random"].read_text() + "  strategy: ['target', 'speculativ:k=4']\n")
    for command in ("generate", "compare", "chat", "eval"):
        more = ("--tasks", "x") if command == "eval" else ("hi",) if command != "chat" else ()
        found = cli(command, "-c", str(mine), *more)
        words = f"{mine}: defaults.strategy: unknown strategy 'speculativ'; did you mean 'speculative'?"
        assert found.exit_code == 2 and words in found.stderr, (command, found.output)
    own = cli("generate", "-c", str(mine), "-s", "speculativ", "hi").stderr
    assert own.startswith("cascli: unknown strategy 'speculativ'")
    clean_env.setenv("CASCLI_STRATEGY", "target; speculative:k=0")
    found = cli("compare", "-c", str(mine), "hi").stderr
    assert "environment variable CASCLI_STRATEGY: strategy 'speculative:k=0': k: " in found and "defaults" not in found


def test_a_prompt_argument_overrides_prompts_set_elsewhere(cli, clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(pair_files()["tiny-random"].read_text() + "  prompts: builtin\n  limit: 2\n")
    short = ["-c", str(mine), "--max-new-tokens", "2", "--device", "cpu", "--json"]
    assert Run.from_json(cli("generate", "hi", *short).stdout).prompt == "hi"
    assert len(json.loads(cli("generate", *short).stdout)["runs"]) == 4, "two prompts of two turns"
    clean_env.setenv("CASCLI_PROMPTS", "none.jsonl")
    clean_env.setenv("CASCLI_LIMIT", "1")
    assert Run.from_json(cli("generate", "hi", *short).stdout).prompt == "hi"
    assert Run.from_json(cli("generate", "-", *short, stdin="ho\n").stdout).prompt == "ho"
    compared = json.loads(cli("compare", "hi", *short, "--no-measure", "-s", "draft").stdout)
    assert [run["prompt"] for run in compared["runs"]] == ["hi"]
    found = cli("generate", "hi", *short, "--prompts", "builtin")
    assert found.exit_code == 2 and "give a PROMPT or --prompts, not both" in found.stderr
    task = cli("advise", "--task", "word-problems", "--metric", "f1")
    assert task.exit_code == 2 and "give one" in task.stderr
    clean_env.setenv("CASCLI_PROMPTS", "builtin")
    asked = tmp_path / "task.yaml"
    asked.write_text("pair: tiny-random\nstrategies: [draft]\ntask: {kind: jsonl, path: none.jsonl}\n")
    assert "no such file" in cli("advise", "--task", str(asked)).stderr, "not: give one"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_error_for_several_strategies_names_their_source(
    command: str, cli, clean_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(pair_files()["tiny-random"].read_text() + "  strategy: [target, draft]\n")
    words = [] if command == "chat" else ["hi"]
    found = cli(command, "-c", str(mine), *words)
    assert found.exit_code == 2 and f"cascli: {mine}: defaults.strategy: {command} " in found.stderr
    clean_env.setenv("CASCLI_STRATEGY", "target;draft")
    found = cli(command, "-c", str(mine), *words)
    assert found.exit_code == 2 and f"environment variable CASCLI_STRATEGY: {command} " in found.stderr
    found = cli(command, "-c", str(mine), *words, "-s", "target", "-s", "draft")
    assert found.exit_code == 2 and found.stderr.startswith(f"cascli: {command} ")


def test_flags_for_several_prompts_need_several_prompts(cli) -> None:
    for words in (["--limit", "3"], ["--batch-size", "2"]):
        for stdin in (None, "hello\n"):
            found = cli("generate", *(["hi"] if stdin is None else []), *TINY, *words, stdin=stdin)
            assert found.exit_code == 2 and f"{words[0]} " in found.stderr and "give --prompts" in found.stderr
    for command in ("compare", "advise"):
        found = cli(command, "hi", *TINY, "--limit", "3")
        assert found.exit_code == 2 and "--limit needs a file of prompts" in found.stderr


def test_a_flag_overrides_the_environment(cli, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_MAX_NEW_TOKENS", "3")
    clean_env.setenv("CASCLI_CONFIG", "tiny-random")
    assert len(Run.from_json(cli("generate", "x", "--json").stdout).token_ids) == 3
    assert len(Run.from_json(cli("generate", "x", "--json", "--max-new-tokens", "4").stdout).token_ids) == 4
    clean_env.setenv("CASCLI_TEMPERATURE", "warm")
    found = cli("generate", "x")
    assert found.exit_code == 2
    assert "CASCLI_TEMPERATURE" in found.stderr


def test_colour_always_and_no_color(cli, clean_env: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in cli("strategies", "--color", "always").stdout
    clean_env.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli("strategies").stdout


def test_bench_measures_and_can_be_shown_again(cli, tmp_path: Path) -> None:
    saved, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    found = cli(
        "bench", "-c", "tiny-random", "--context", "16,32", "--longest-block", "3", "--repeats", "1",
        "--synthetic-acceptance", "0.7", "-k", "2", "--max-new-tokens", "6", "-o", str(saved), "--plot", str(plot),
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert "v of" in found.stdout and "SYNTHETIC acceptance 0.7" in found.stdout
    assert json.loads(saved.read_text())["schema"] == "cascli.bench/1.6"
    assert plot.read_text().startswith("<?xml")
    assert cli("show", str(saved)).stdout == found.stdout
    as_json = cli("bench", "-c", "tiny-random", "--context", "16", "--longest-block", "2", "--repeats", "1", "--json")
    assert list(json.loads(as_json.stdout)["profiles"][0]["target"]) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "12,x"], "--context: expected positive numbers"),
        (["--context", "100000"], "exceed the pair's context"),
        (["--plot", "speed.gif"], "--plot speed.gif: unknown suffix"),
        (["-o", "speed.md"], "unknown suffix"),
        (["--synthetic-acceptance", "1.5"], "synthetic-acceptance"),
    ],
)
def test_bench_refuses_impossible_arguments(cli, arguments: list[str], words: str) -> None:
    found = cli("bench", "-c", "tiny-random", *arguments)
    assert found.exit_code == 2
    assert words in found.stderr


def test_verbose_comparison_has_times_and_costs(cli) -> None:
    found = cli(
        "compare", "hello", "-c", "tiny-random", "-s", "target", "-s", "speculative:k=2", "--max-new-tokens", "12", "-v"
    )
    assert found.exit_code == 0
    assert "p50 / p90 / p99" in found.stdout and "GFLOP" in found.stdout
    assert "steps after" in found.stdout
    bare = cli("compare", "hello", "-c", "tiny-random", "-s", "target", "-s", "speculative", "--no-measure", "--json")
    assert json.loads(bare.stdout)["profile"] is None


def test_lists(cli) -> None:
    for name in ("cascade", "speculative-cascade", "token-v3", "eq. 10", "lossless"):
        assert name in cli("strategies").stdout
    rules = json.loads(cli("strategies", "--json").stdout)["rules"]
    assert {rule["name"] for rule in rules} >= {"chow", "opt", "token-v1"}
    assert "gemma-2" in cli("pairs", "-q").stdout.split()
    rows = {row["name"]: row for row in json.loads(cli("pairs", "--json").stdout)["pairs"]}
    assert rows["llama-3"]["gated"]
    assert rows["tiny-random"]["on_disk_bytes"] == {"draft": None, "target": None}


def test_pull_of_random_weights_is_a_no_op(cli) -> None:
    found = cli("pull", "tiny-random")
    assert found.exit_code == 0
    assert "nothing to fetch" in found.stderr


def test_help_has_panels_and_examples(cli) -> None:
    text = cli("generate", "--help").stdout
    for word in ("Models", "Sampling", "Output", "Example", "--num-speculative-tokens"):
        assert word in text
    for command in ("generate", "compare", "show", "pairs", "pull", "strategies"):
        assert "Example" in cli(command, "--help").stdout


def test_completion_knows_strategies_and_pairs() -> None:
    def complete(line: str) -> str:
        environment = {
            "_CASCLI_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        code = "from cascli.cli.app import app; app(prog_name='cascli')"
        import os

        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
        ).stdout

    assert "speculative-cascade" in complete("cascli generate -s spec")
    assert "tiny-random" in complete("cascli generate -c tiny")
    assert complete("cascli generate --format p").split() == ["parquet"]  # as png and pdf are not written there
    assert complete("cascli show x --format p").split() == ["parquet", "png", "pdf"]
    assert complete("cascli advise --format ").split() == ["json", "txt"]


def test_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m cascli strategies | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.stdout.strip()
    assert found.stderr == ""


def test_interrupt_exits_130(cli, clean_env: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    clean_env.setattr("cascli.models.load.load_pair", interrupt)
    found = cli("generate", "x", "-c", "tiny-random")
    assert found.exit_code == 130
    assert "interrupted" in found.stderr


@pytest.mark.parametrize("more", [(), ("--batch-size", "2")])
def test_an_interruption_keeps_the_finished_answers(
    cli, tmp_path: Path, clean_env: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """With several prompts: on stdout, as the single document that is promised, and in the file."""
    asked, places = tmp_path / "asked.jsonl", []
    asked.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in ("one", "two", "three")))
    one, many = generate_jobs.Answering, batch_jobs.converse_many

    def answering(*what, **how):
        places.append(1)
        if len(places) == 3:
            raise KeyboardInterrupt
        return one(*what, **how)

    def converse_many(*what, **how):
        for place, ended in enumerate(many(*what, **how)):
            if place == 2:
                raise KeyboardInterrupt
            yield ended

    if more:
        clean_env.setattr(batch_jobs, "converse_many", converse_many)
    else:
        clean_env.setattr(generate_jobs, "Answering", answering)
    flags = ("-c", "tiny-random", "--prompts", str(asked), "--max-new-tokens", "2", "--json")
    found = cli("generate", *flags, "-o", str(tmp_path / "kept.csv"), *more)
    assert found.exit_code == 130, found.stderr
    assert len(Runs.from_json(found.stdout).runs) == 2
    assert len((tmp_path / "kept.csv").read_text().splitlines()) == 3
    assert "\ninterrupted: 2 of 3 prompts are answered\n2 answers: 4 tokens in " in found.stderr
    assert f"\nwrote {tmp_path / 'kept.csv'}\ncascli: interrupted\n" in found.stderr.replace("csv\n\n", "csv\n")


class CutShort:
    """Shows rounds like an `AnswerStream`, until one too many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, error: type[BaseException]) -> None:
        stock = AnswerStream.round

        def shown(view: AnswerStream, *what: Any) -> None:
            nonlocal after
            stock(view, *what)
            after -= 1
            if after == 0:
                raise error

        monkeypatch.setattr(AnswerStream, "round", shown)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_an_interruption_keeps_what_there_is_of_the_answer(
    cli, tmp_path: Path, clean_env: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole = Run.from_json(cli("generate", "hi", *TINY, "-s", "target", "--json").stdout)
    CutShort(clean_env, 4, error)
    found = cli("generate", "hi", *TINY, "-s", "target", "-o", str(tmp_path / "g.json"))
    run = Run.from_json((tmp_path / "g.json").read_text())
    assert (found.exit_code, found.stdout, run.finish_reason) == (130, run.text + "\n", "interrupted")
    assert run.token_ids == whole.token_ids[:4] and run.metrics.target_calls == 4
    assert "target: 4 tokens in " in found.stderr and "wrote " in found.stderr
    assert "interrupted: " not in found.stderr and found.stderr.endswith("cascli: interrupted\n")


@pytest.mark.parametrize(
    ("after", "kept", "said"),
    [
        (3, ["one"], "0 of 2"),
        (6, ["one"], "1 of 2"),
        (9, ["one", "two"], "1 of 2"),
        (14, ["one", "two", "3"], "1 of 2"),
    ],
)
def test_an_interruption_says_how_many_prompts_are_answered(
    cli, tmp_path: Path, clean_env: pytest.MonkeyPatch, after: int, kept: list[str], said: str
) -> None:
    """A conversation counts once its last turn is answered; in the lines, too, an answer may be a part of one."""
    asked, out = tmp_path / "asked.jsonl", tmp_path / "kept.jsonl"
    asked.write_text('{"prompt": "one"}\n{"turns": ["two", "3"]}\n')
    CutShort(clean_env, after, KeyboardInterrupt)
    found = cli("generate", "--prompts", str(asked), *TINY, "-s", "target", "-o", str(out))
    runs = [Run.from_json(line) for line in out.read_text().splitlines()]
    assert found.exit_code == 130 and [run.prompt for run in runs] == kept
    part = after % 6 != 0
    assert (runs[-1].finish_reason == "interrupted") is part is ("(ended early)" in found.stderr)
    ended = f"interrupted: {said} prompts are answered{', 1 in part' if part or len(kept) == 2 else ''}\n"
    assert ended in found.stderr and f"{after} tokens in " in found.stderr.partition(ended)[2]


@pytest.mark.parametrize(("error", "passes"), [(KeyboardInterrupt, 5), (KeyboardInterrupt, 10), (RunError, 10)])
def test_an_interruption_keeps_what_there_is_of_a_batch(
    cli, tmp_path: Path, clean_env: pytest.MonkeyPatch, error: type[BaseException], passes: int
) -> None:
    asked, out, whole = (tmp_path / name for name in ("asked.jsonl", "kept.jsonl", "whole.jsonl"))
    asked.write_text('{"prompt": "one"}\n{"turns": ["two", "3"]}\n{"prompt": "four"}\n')
    flags = ("generate", "--prompts", str(asked), *TINY, "-s", "target", "--batch-size", "2", "-o")
    assert cli(*flags, str(whole)).exit_code == 0
    answers = {(run.prompt_id, run.turn): run for run in map(Run.from_json, whole.read_text().splitlines())}
    stock, left = Lanes._run_pass, passes

    def cut(*what: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return stock(*what)

    clean_env.setattr(Lanes, "_run_pass", cut)
    began = time.perf_counter()
    found = cli(*flags, str(out))
    took = time.perf_counter() - began
    runs = [Run.from_json(line) for line in out.read_text().splitlines()]
    interrupted = error is KeyboardInterrupt
    assert found.exit_code == (130 if interrupted else 3), found.stderr
    for run in runs:
        wanted = answers[run.prompt_id, run.turn]
        assert run.token_ids == wanted.token_ids[: len(run.token_ids)]
        assert run.finish_reason == (wanted.finish_reason if len(run.token_ids) == 6 else "interrupted")
        assert run.metrics.target_calls == len(run.token_ids)
    lengths = [(run.prompt, len(run.token_ids)) for run in runs]
    if passes == 5:
        assert lengths == [("one", 4), ("two", 4)]
        assert "interrupted: 0 of 3 prompts are answered, 2 in part\n2 answers: 8 tokens in " in found.stderr
    else:  # the failed batch keeps no half of an answer, as when they are answered one by one
        halves = [("3", 2), ("four", 2)] if interrupted else []
        assert sorted(lengths) == sorted([("one", 6), ("two", 6), *halves])
        assert f"1 of 3 prompts are answered, {2 if interrupted else 1} in part\n" in found.stderr
    assert 0 < sum(run.metrics.seconds.total for run in runs) < took


def test_a_withdrawn_draft_is_not_kept(cli, tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    CutShort(clean_env, 3, KeyboardInterrupt)
    flags = ("-s", "cascade:threshold=99", "-o", str(tmp_path / "g.json"))
    found = cli("generate", "hi", *TINY, *flags)
    assert (found.exit_code, found.stdout) == (130, "") and not (tmp_path / "g.json").exists()


def test_an_interruption_is_one_though_the_reader_is_gone(cli, clean_env: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the other programs of a pipe as well."""

    def gone(*_: object) -> None:
        raise BrokenPipeError

    CutShort(clean_env, 3, KeyboardInterrupt)
    clean_env.setattr(AnswerStream, "end", gone)
    assert cli("generate", "hi", *TINY, "-s", "target").exit_code == 130


def test_a_reader_that_is_gone_is_no_failure(cli, tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    CutShort(clean_env, 8, BrokenPipeError)
    clean_env.setattr("cascli.cli.errors.silence_stdout", lambda: None)  # there is no descriptor here
    found = cli("generate", "--prompts", str(asked), *TINY, "-s", "target")
    assert found.exit_code == 0 and "answered" not in found.stderr and "2/2" in found.stderr


def test_a_failure_says_how_many_prompts_are_answered(cli, tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "kept.csv"
    asked.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    CutShort(clean_env, 8, RunError)
    found = cli("generate", "--prompts", str(asked), *TINY, "-s", "target", "-o", str(out))
    assert found.exit_code == 3 and len(out.read_text().splitlines()) == 2
    assert "\nfailed: 1 of 2 prompts are answered\n1 answer: 6 tokens in " in found.stderr


def test_version_and_debug() -> None:
    assert program("--version").stdout.startswith("cascli 0.")
    import os

    found = program("generate", "x", "-c", "nothing", env=os.environ | {"CASCLI_DEBUG": "1"})
    assert "Traceback" in found.stderr
    assert found.returncode == 2  # as without CASCLI_DEBUG; 1 means that a check failed
    found = program("generate", "x", "--seed", "y", env=os.environ | {"CASCLI_DEBUG": "1"})
    assert "Traceback" in found.stderr and found.returncode == 2


def test_the_output_may_not_be_the_input_file(cli, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    held = asked.read_bytes()
    flags = ("-c", "tiny-random", "--prompts", str(asked), "--max-new-tokens", "2", "-o", str(asked))
    for command in (("generate",), ("compare", "-s", "target", "--format", "jsonl")):
        found = cli(*command, *flags)
        assert found.exit_code == 2 and "is the file of prompts" in found.stderr
        assert asked.read_bytes() == held
    (tmp_path / "other.jsonl").symlink_to(asked)
    (tmp_path / "sub").mkdir()
    for same in (tmp_path / "other.jsonl", tmp_path / "sub" / ".." / "asked.jsonl"):  # under any name
        found = cli("generate", *flags[:-1], str(same))
        assert found.exit_code == 2 and "is the file of prompts" in found.stderr
        assert asked.read_bytes() == held


def test_a_prompt_that_does_not_fit_is_named_before_any_is_answered(cli, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "one"}\n' + json.dumps({"prompt": "x" * 5000, "id": "long"}) + "\n")
    found = cli("compare", "-c", "tiny-random", "--prompts", str(asked), "-s", "target", "-s", "draft", "-q")
    assert found.exit_code == 2 and "prompt 'long': the prompt has" in found.stderr
    turns = {"turns": ["one", "x" * 900, "x" * 900], "id": "three"}
    asked.write_text('{"prompt": "one"}\n' + json.dumps(turns) + "\n")
    found = cli("compare", "-c", "tiny-random", "--prompts", str(asked), "-s", "target", "-s", "draft", "-q")
    assert found.exit_code == 2 and "prompt 'three': the prompt has" in found.stderr


def test_the_cli_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, cascli.cli.app; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("verbose", "said"), [(False, 1), (True, 2)])
def test_long_capture_times_are_reported(verbose: bool, said: int) -> None:
    notes: list[str] = []
    about = {"source": "x", "dtype": "bfloat16", "device": "cuda:0", "cuda_graphs": True}
    draft = ModelInfo(**about, compiled=True, capture_seconds=41.26)
    target = ModelInfo(**about, compiled=False, capture_seconds=0.5)
    plan = SimpleNamespace(screen=SimpleNamespace(note=notes.append, verbose=verbose))
    Plan.note_captures(plan, SimpleNamespace(info=SimpleNamespace(models={"draft": draft, "target": target})))
    assert (
        notes
        == [
            "compiling and capturing the draft model's steps took 41.3 s up front",
            "capturing the target model's steps took 0.5 s up front",
        ][:said]
    )


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, Terminated])
def test_results_are_shown_before_timing_steps_and_kept_if_timing_is_interrupted(
    ended_by: type[KeyboardInterrupt], cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise ended_by

    monkeypatch.setattr("cascli.jobs.compare.profile", interrupted)
    saved = tmp_path / "found.json"
    found = cli(
        "compare", "hi", "-c", "tiny-random", "-s", "target", "-s", "speculative:k=2", "--max-new-tokens", "5",
        "-o", str(saved),
    )  # fmt: skip
    assert found.exit_code == 130
    assert "speculative k=2" in found.stdout and "results are complete" in found.stderr
    document = json.loads(saved.read_text())
    assert len(document["runs"]) == 2 and document["profile"] is None


@pytest.mark.parametrize(("file", "told"), [(None, True), ("found.csv", True), ("found.json", False)])
def test_only_answers_that_are_not_saved_are_said_to_need_a_file(
    file: str | None, told: bool, cli, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"number {n}"}) + "\n" for n in range(4)))
    flags = ("--prompts", str(asked), *TINY, "-s", "target", "-s", "draft", "--no-measure")
    found = cli("compare", *flags, *([] if file is None else ["-o", str(tmp_path / file)]))
    said = " ".join(found.stderr.split())
    assert "the answers to 3 more turns are not shown; -v shows all" in said
    assert ("-o FILE.json saves them" in said) is told
    if not told:
        assert "-o FILE" not in cli("show", str(tmp_path / "found.json")).stderr


def closed(command: str) -> subprocess.CompletedProcess[str]:
    """Run a real process in a shell, with its streams as in the command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cascli.__file__).parent.parent)}
    line = f"{sys.executable} -m cascli {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("words", ["--help", "--version", "pairs", "strategies"])
def test_closed_or_full_streams_end_with_at_most_two_lines(words: str) -> None:
    for ending, code in ((">&-", 0), ("2>&-", 0), ("> /dev/full", 3)):
        found = closed(f"{words} {ending}")
        assert found.returncode == code, (ending, found.stderr)
        assert len(found.stderr.splitlines()) <= 2, found.stderr
    assert closed(f"{words} | head -1").stderr == ""


def test_errors_stay_off_stdout_when_stderr_is_closed() -> None:
    found = closed("generate hi -c nowhere 2>&-")
    assert (found.returncode, found.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "code"), [("generate hi -c nowhere", 2), ("generate hi --nothing", 2), ("generate hi -c tiny-random", 3)]
)
def test_exit_codes_hold_where_errors_cannot_be_written(words: str, code: int) -> None:
    """1 would mean that a check failed."""
    assert warm.run(*words.split(), stderr="full").returncode == code


def test_the_file_is_written_though_stdout_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    found = closed(f"generate hi -c tiny-random --max-new-tokens 2 --json -o {file} > /dev/full")
    assert found.returncode == 3 and "no space left" in found.stderr
    assert Run.from_json(file.read_text()).token_ids


def test_a_comparison_is_written_though_its_table_cannot_be_printed(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    asked = "compare hi -c tiny-random -s target -s speculative --max-new-tokens 2 --no-measure"
    found = warm.run(*asked.split(), "-o", str(file), stdout="full")
    assert found.returncode == 3 and "no space left" in found.stderr
    assert len(json.loads(file.read_text())["runs"]) == 2


@pytest.mark.parametrize("prompt", ["-5 + 3 = ?", "--what is this"])
def test_prompts_that_begin_with_a_dash_are_explained(prompt: str) -> None:
    found = closed(f"generate '{prompt}'")
    assert found.returncode == 2 and "goes after --, as in: python -m cascli generate -- '-5 + 3'" in found.stderr
    assert len(found.stderr.splitlines()) == 2
    assert "goes after" not in closed("generate --what").stderr
    assert "as in: python -m cascli compare --" in closed(f"compare '{prompt}'").stderr


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("compre hi", "unknown command 'compre'; did you mean 'compare'? Known: advise, bench, chat, compare, "),
        ("pairs nosuch", "unknown command 'nosuch'. Known: path, rm"),
    ],
)
def test_unknown_commands_list_those_that_exist(words: str, known: str) -> None:
    found = closed(words)
    assert found.returncode == 2 and found.stderr.startswith(f"cascli: {known}") and not found.stdout
    assert "version" not in found.stderr and len(found.stderr.splitlines()) == 1


def test_interrupted_imports_exit_130_too(tmp_path: Path) -> None:
    """Libraries execute text while they are imported; `python -m` would end by SIGINT, which is -2 to a program."""
    (tmp_path / "program.py").write_text(
        "import sys, cascli.strategies\n"
        "def names(): exec('raise KeyboardInterrupt')\n"
        "cascli.strategies.names = names; sys.argv = ['cascli', 'strategies']\n"
        "from cascli.__main__ import main; main()"
    )
    (tmp_path / "sooner.py").write_text(
        "import sys; from cascli.__main__ import main\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'cascli.cli.app': exec('raise KeyboardInterrupt')\n"
        "sys.meta_path.insert(0, Slow()); main()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(cascli.__file__).parent.parent}"}
    for module in ("program", "sooner"):
        command = [sys.executable, "-m", module]
        found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (130, "cascli: interrupted\n"), module


def test_the_package_imports_nothing_before_ctrl_c_is_caught() -> None:
    code = "import sys; before = {*sys.modules}; import cascli.__main__; print(*sorted({*sys.modules} - before))"
    environment = {**os.environ, "PYTHONPATH": str(Path(cascli.__file__).parent.parent)}
    command = [sys.executable, "-S", "-c", code]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["__future__", "cascli", "cascli.__main__", "cascli.version"]


@pytest.mark.parametrize(("wanted", "threads"), [(None, 1), ("2", 2)])
def test_tiny_models_use_one_thread_unless_configured(wanted: str | None, threads: int) -> None:
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    env |= {"OMP_NUM_THREADS": wanted} if wanted else {}
    command = [sys.executable, "-m", "cascli", "generate", "hi", "-c", "tiny-random", "--json", "--max-new-tokens", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert int(json.loads(ended.stdout)["environment"]["threads"]) == threads


SMALL_SWEEP = "pair: tiny-random\nstrategies: [draft, 'speculative:k=2']\nlimit: 2\nmax_new_tokens: 4\n"


def test_show_opens_every_document(cli, tmp_path: Path) -> None:
    """A sweep's header opens the answers next to it; the same output is printed again."""
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(SMALL_SWEEP)
    table = cli("sweep", str(plan), "-o", str(out))
    assert table.exit_code == 0, table.stderr
    assert cli("show", str(out / "sweep.json")).stdout == table.stdout
    documents = {
        "table": cli("sweep", str(plan), "-o", str(out), "--resume", "--json", "-q"),
        "judged": cli("sweep", str(plan), "--replay", "-o", str(tmp_path / "judged"), "--json", "-q"),
        "audit": cli("verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2", "--json"),
    }
    for name, written in documents.items():
        assert written.exit_code == 0, written.stderr
        (tmp_path / f"{name}.json").write_text(written.stdout)
    assert cli("show", str(tmp_path / "table.json")).stdout == table.stdout
    assert "token-v3" in cli("show", str(tmp_path / "judged.json")).stdout
    shown = cli("show", str(tmp_path / "audit.json"))
    assert "joint law" in shown.stdout and "none failed" in shown.stderr
    (out / "records.jsonl").unlink()
    empty = cli("show", str(out / "sweep.json"))
    assert empty.exit_code == 2 and "no answers yet" in empty.stderr


def test_python_offers_what_the_commands_offer(tmp_path: Path) -> None:
    pair = cascli.load_pair("tiny-random", device="cpu")
    found = cascli.compare(
        pair, ["hi", "ho"], ["target", "speculative:k=2"], max_new_tokens=6, temperature=1, seed=3, measure=False
    )
    assert [row.strategy for row in found.summary] == ["target", "speculative:k=2"] and len(found.runs) == 4
    alone = cascli.compare(pair, "hi", ["draft"], max_new_tokens=6, temperature=1, seed=3, measure=False)
    assert alone.runs[0].sampling.seed == 3 and len(alone.runs) == 1
    for prompts, strategies in (([], ["draft"]), (["hi", ""], ["draft"]), ("hi", []), ("hi", ["draft", "draft"])):
        with pytest.raises(UsageError):
            cascli.compare(pair, prompts, strategies)
    plan = tmp_path / "plan.yaml"
    plan.write_text(SMALL_SWEEP)
    told = []
    rows = cascli.sweep(plan, output=tmp_path / "out", on_progress=lambda *what: told.append(what))
    assert [row.strategy for row in rows] == ["target", "draft", "speculative:k=2"] and len(told) == 6
    with pytest.raises(UsageError, match="continue with --resume"):
        cascli.sweep(plan, output=tmp_path / "out")
    assert cascli.sweep(plan, output=tmp_path / "out", resume=True) == rows
    assert {"compare", "sweep", "Rule", "Strategy"} <= set(dir(cascli))


def test_unknown_losslessness_does_not_pass_as_lossless(text_pair: Pair) -> None:
    found = compare(text_pair, "hi", ["target", "speculative:k=2"], max_new_tokens=4, measure=False, warm_up=False)
    _check(found, True, None, [])
    unknown = found.model_copy(
        update={"summary": [each.model_copy(update={"lossless": None}) for each in found.summary]}
    )
    with pytest.raises(CheckFailed, match=r"not lossless .*: target, speculative:k=2"):
        _check(unknown, True, None, [])


def test_of_several_cut_answers_the_first_is_described_and_the_others_counted(text_pair: Pair) -> None:
    found = compare(text_pair, "hi", ["target", "draft", "cascade"], max_new_tokens=4, measure=False, warm_up=False)
    room = found.runs[0].sampling.model_copy(update={"max_new_tokens": 9})
    runs = [run.model_copy(update={"sampling": room, "finish_reason": "length"}) for run in found.runs]
    for cut, said in ((runs[:1], "it holds 6"), (runs, "it holds 6; 2 more were cut too")):
        view = screen(200, color=False)
        _note_cuts(found.model_copy(update={"runs": cut}), view)
        assert printed(view).strip().endswith(said)


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, Terminated])
def test_an_interrupted_comparison_names_the_strategies_without_answers(
    ended_by: type[KeyboardInterrupt], text_pair: Pair
) -> None:
    def interrupt(*_: object) -> None:
        raise ended_by

    run = generate_jobs.generate(text_pair, "hi", strategy="target", max_new_tokens=2)
    specs = ["target", "speculative:k=2", "draft"]
    more: Any = {"warm_up": lambda: None, "run": interrupt, "cut_short": lambda: True, "batch_size": 1, "answers": 3}
    done: Any = SimpleNamespace(specs=specs, all_runs=[run], **more)
    view = screen(200, terminal=False)
    assert isinstance(_run(view, done, watched=False), ended_by)
    assert "interrupted: these are the answers so far; none from speculative k=2, draft" in printed(view)
