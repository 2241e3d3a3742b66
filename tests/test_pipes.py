"""Answers in pipes, in other terminals, and to readers that leave."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cascli import Run
from cascli.cli.app import app
from cascli.render.console import Screen
from cascli.render.stream import AnswerStream
from cascli.trace import Emitted, Round

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


@pytest.mark.parametrize("line", ["cascli pairs | true", "cascli strategies | true", "cascli pairs >&-"])
def test_a_reader_that_leaves_is_no_failure(line: str) -> None:
    found = shell(f"set -o pipefail; {line}")
    assert (found.returncode, found.stderr) == (0, "")


def test_colour_always_in_a_pipe_is_coloured_and_still_a_pipe(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("NO_COLOR", "1")
    assert "\x1b[" in invoke("strategies", "--color", "always").stdout
    found = invoke("generate", "hi", *TINY, "-s", "cascade:threshold=99", "--color", "always", "-q").stdout
    assert (
        found
        == Run.from_json(invoke("generate", "hi", *TINY, "-s", "cascade:threshold=99", "--json").stdout).text + "\n"
    )


def test_ascii_terminals_get_everything(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("PYTHONIOENCODING", "ascii")
    found = shell("cascli compare hi -c tiny-random --max-new-tokens 4 && cascli pairs")
    assert found.returncode == 0
    assert "tiny-random" in found.stdout
