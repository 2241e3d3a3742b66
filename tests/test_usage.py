"""Error messages for input that the command line cannot use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cascli import Pair, generate
from cascli.cli.common import resolved
from cascli.config import load_config
from cascli.errors import UsageError
from cascli.settings import Settings
from tests.commands import invoke, shell
from tests.pairs import pair

TINY = ["-c", "tiny-random", "--max-new-tokens", "6"]


def test_k_reaches_the_default_strategy(clean_env: pytest.MonkeyPatch, text_pair: Pair) -> None:
    assert json.loads(invoke("generate", "hi", *TINY, "-k", "2", "--json").stdout)["params"]["k"] == 2
    assert generate(text_pair, "hi", num_speculative_tokens=3, max_new_tokens=4).params["k"] == 3
    assert generate(text_pair, "hi", max_new_tokens=4).params["k"] == 4


@pytest.mark.parametrize(
    "line", ["cascli generate x --bogus", "cascli sweep", "cascli generate x y", "cascli generate --top-k a"]
)
def test_usage_errors_are_two_lines(line: str) -> None:
    found = shell(line)
    assert found.returncode == 2
    assert found.stderr.startswith("cascli: ")
    assert len(found.stderr.splitlines()) == 2


def test_help_states_the_defaults(clean_env: pytest.MonkeyPatch) -> None:
    assert "(default the pair's, else 4)" in " ".join(invoke("generate", "--help").stdout.split())
    assert "if the file sets none. (default the pair's, else 4)" in " ".join(invoke("sweep", "--help").stdout.split())


def test_switches_of_a_file_can_be_turned_off(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_JSON", "1")
    assert invoke("generate", "hi", *TINY).stdout.startswith("{")
    assert not invoke("generate", "hi", *TINY, "--no-json").stdout.startswith("{")


def test_input_that_is_not_text_is_a_usage_error(clean_env: pytest.MonkeyPatch, text_pair: Pair) -> None:
    found = invoke("generate", *TINY, stdin=b"\xff\xfe\xfa")
    assert (found.exit_code, found.stderr.strip()) == (2, "cascli: stdin is not UTF-8 text.")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        generate(text_pair, "a\udc80b")


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


WHERE = {"flag": "--{0} ", "variable": "environment variable CASCLI_{1}: ", "file": "{2}: defaults.{0}: "}


@pytest.mark.parametrize("given", WHERE)
@pytest.mark.parametrize(
    ("command", "key", "value", "said"),
    [
        (["generate", "hi"], "output", "none/x.json", "none/x.json: no such folder"),
        (["generate", "hi"], "output", "x.doc", "x.doc: unknown suffix"),
        (["compare", "hi"], "output", ".", ".: no suffix"),
        (["compare", "hi"], "format", "png", "png: not available here"),
        (["bench"], "output", "questions.csv", "questions.csv: is a folder"),
        (["verify"], "output", "loop.json", "loop.json: a symbolic link that points to itself"),
        (["advise", "--prompts", "questions.jsonl"], "output", "questions.jsonl", "questions.jsonl: is the file of"),
    ],
)
def test_an_error_names_where_the_value_was_given(
    command: list[str], key: str, value: str, said: str, given: str, tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.chdir(tmp_path)
    (tmp_path / "questions.csv").mkdir()
    (tmp_path / "questions.jsonl").write_text('{"prompt": "hi"}')
    (tmp_path / "loop.json").symlink_to("loop.json")
    defaults = {key: value} if given == "file" else {}
    Path("own.yaml").write_text(json.dumps(pair(300) | {"defaults": defaults}))
    if given == "variable":
        clean_env.setenv(f"CASCLI_{key.upper()}", value)
    flags = [f"--{key}", value] if given == "flag" else []
    found = invoke(*command, "-c", "own.yaml", *flags)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"cascli: {WHERE[given].format(key, key.upper(), 'own.yaml')}{said}")


@pytest.mark.parametrize(
    ("command", "variables", "said"),
    [
        (["compare"], {"prompts": "none.jsonl"}, "PROMPTS: none.jsonl: no such file"),
        (["advise", "--metric", "f1"], {"prompts": "none.jsonl"}, "PROMPTS: none.jsonl: no such file"),
        (["compare", "hi"], {"strategy": "target;target"}, "STRATEGY: strategy 'target' is given twice"),
        (["generate", "hi"], {"config": "tiny-randm"}, "CONFIG: unknown pair"),
        (["generate", "hi"], {"config": "tiny-randm", "target": "./x"}, "CONFIG: unknown pair"),
        (["generate", "hi"], {"draft": "./x"}, "DRAFT: needs CASCLI_TARGET"),
        (["sweep", "rules", "--dry-run"], {"strategy": "targt"}, "STRATEGY: unknown strategy"),
        (["sweep", "rules", "--dry-run"], {"prompts": "-"}, "PROMPTS: a sweep reads its prompts again"),
        (["sweep", "rules", "--dry-run"], {"prompts": "none.jsonl"}, "PROMPTS: none.jsonl: no such file"),
        (["sweep", "some.yaml", "--dry-run"], {"temperature": "0.5"}, "TEMPERATURE: strategies of this sweep are for"),
    ],
)
def test_an_error_names_the_variable(
    command: list[str], variables: dict[str, str], said: str, tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.chdir(tmp_path)
    (tmp_path / "some.yaml").write_text("temperatures: [0, 1]\nstrategies: [speculative: {temperatures: 1}]\n")
    for key, value in ({"config": "" if "draft" in variables else "tiny-random"} | variables).items():
        clean_env.setenv(f"CASCLI_{key.upper()}", value)
    found = invoke(*command)
    assert found.exit_code == 2
    assert found.stderr.removeprefix("cascli: ").removeprefix("environment variable ").startswith(f"CASCLI_{said}")


def test_prompts_in_a_pairs_file_are_beside_it(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.chdir(tmp_path)
    Path("here").mkdir()
    for folder in ("", "here/"):
        Path(f"{folder}q.jsonl").write_text(json.dumps({"prompt": "hi", "id": f"{folder}q"}))

    def named(prompts: str) -> str:
        Path("here/own.yaml").write_text(json.dumps(pair(300) | {"defaults": {"prompts": prompts}}))
        return str(resolved(Settings(), load_config("here/own.yaml")).prompts)

    for prompts in ("-", "builtin", "mt-bench", str(tmp_path / "q.jsonl")):
        assert named(prompts) == prompts
    assert named("~/q.jsonl") == str(Path.home() / "q.jsonl")
    assert named("q.jsonl") == "here/q.jsonl"
    found = invoke("generate", "-c", "here/own.yaml", "--max-new-tokens", "2", "--json")
    assert '"prompt_id":"here/q"' in found.stdout
    named("none.jsonl")
    found = invoke("generate", "-c", "here/own.yaml")
    assert found.stderr.startswith("cascli: here/own.yaml: defaults.prompts: here/none.jsonl: no such file")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--temp", "--temperature"), ("--max-new", "--max-new-tokens"), ("--seedd", "--seed"), ("--xyzzy", None)],
)
def test_a_shortened_option_is_completed_in_the_error(typed: str, meant: str | None) -> None:
    found = shell(f"cascli generate x {typed} 1")
    first = found.stderr.splitlines()[0]  # click words it in several ways
    assert found.returncode == 2
    assert set(re.findall(r"--[a-z-]+", first)) == ({typed} if meant is None else {typed, meant})


@pytest.mark.parametrize("flag", ["--prompts", "--limit"])
def test_a_bench_without_prompts_refuses_their_flags(flag: str) -> None:
    found = invoke("bench", *TINY, flag, "2")
    assert (found.exit_code, found.stderr) == (2, f"cascli: {flag}: bench takes prompts only with --early-exit.\n")


def test_prompts_that_a_bench_does_not_use_are_not_read(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_PROMPTS", "none.jsonl")
    assert invoke("bench", *TINY, "--context", "8", "--repeats", "1", "-q").exit_code == 0
