"""Error messages for input that the command line cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascli import Pair, generate
from cascli.errors import UsageError
from tests.commands import invoke, shell

TINY = ["-c", "tiny-random", "--max-new-tokens", "6"]


def test_k_reaches_the_default_strategy(clean_env: pytest.MonkeyPatch, text_pair: Pair) -> None:
    assert json.loads(invoke("generate", "hi", *TINY, "-k", "2", "--json").stdout)["params"]["k"] == 2
    assert generate(text_pair, "hi", num_speculative_tokens=3, max_new_tokens=4).params["k"] == 3
    assert generate(text_pair, "hi", max_new_tokens=4).params["k"] == 4


@pytest.mark.parametrize(
    "line", ["cascli generate x --bogus", "cascli generat", "cascli generate x y", "cascli generate --top-k a"]
)
def test_usage_errors_are_two_lines(line: str) -> None:
    found = shell(line)
    assert found.returncode == 2
    assert found.stderr.startswith("cascli: ")
    assert len(found.stderr.splitlines()) == 2


def test_help_states_the_defaults(clean_env: pytest.MonkeyPatch) -> None:
    assert "(default the pair's, else 4)" in " ".join(invoke("generate", "--help").stdout.split())
    assert "if the file sets none. (default 4)" in " ".join(invoke("sweep", "--help").stdout.split())


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
