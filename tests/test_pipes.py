"""Answers in pipes, on other terminals, and to readers that close the pipe early."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from cascli import Run
from cascli.errors import plain
from cascli.render.console import Screen, _Lasting
from cascli.render.stream import AnswerStream
from cascli.trace import Emitted, Round
from tests import warm
from tests.commands import invoke, shell

TINY = ["-c", "tiny-random", "--max-new-tokens", "6"]


def test_answers_reach_a_pipe_unchanged() -> None:
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
    first, second = (run["text"] for run in json.loads(invoke(*flags, "--json").stdout)["runs"])
    assert said == f"==> 1 <==\n{first}\n\n==> 1, turn 2 <==\n{second}\n"


@pytest.mark.parametrize("line", ["cascli pairs | true", "cascli strategies | true", "cascli pairs >&-"])
def test_a_reader_that_closes_the_pipe_early_is_not_an_error(line: str) -> None:
    found = shell(f"set -o pipefail; {line}")
    assert (found.returncode, found.stderr) == (0, "")


def test_a_closed_stdin_is_not_an_empty_prompt() -> None:
    found = shell("cascli generate - -c tiny-random <&-")
    assert (found.returncode, found.stderr.splitlines()) == (
        2, ["cascli: stdin is closed: give the prompt as an argument, or --prompts FILE.jsonl."],
    )  # fmt: skip


def test_a_file_is_written_though_the_reader_of_a_shells_pipe_is_gone(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.setenv("PYTHONUNBUFFERED", "1")
    line = "cascli generate hi -o found.json -c tiny-random --max-new-tokens 3 2>&1 | true"
    found = shell(f"set -o pipefail; cd {tmp_path}; {line}")
    assert (found.returncode, "Error" in found.stderr) == (0, False)
    assert Run.from_json((tmp_path / "found.json").read_text()).token_ids


@pytest.mark.parametrize(
    ("command", "file", "streams"),  # both streams are handled in one place, so not each command needs both
    [
        ("generate hi -o found.json", "found.json", ""),
        ("generate hi -o found.json", "found.json", "2>&1"),
        ("generate --prompts builtin --limit 3 -o found.jsonl", "found.jsonl", "2>&1"),
        ("compare hi -s target -s draft --no-measure -o found.json", "found.json", "2>&1"),
        ("generate hi --json -o found.csv", "found.csv", ""),
        ("sweep sweep.yaml -o found", "found/results.csv", "2>&1"),
        ("bench --context 16 --plot found.svg", "found.svg", ""),
    ],
)
def test_files_are_written_though_the_reader_is_gone(
    command: str, file: str, streams: str, tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.yaml").write_text("pair: tiny-random\nstrategies: [draft, target]\nlimit: 2\n")
    pair = "" if command.startswith("sweep") else "-c tiny-random"
    clean_env.setenv("PYTHONUNBUFFERED", "1" if streams else "")
    most = "" if command.startswith("bench") else "--max-new-tokens 3"
    words = f"{command} {pair} {most}".split()
    found = warm.run(*words, cwd=tmp_path, stdout="gone", stderr="stdout" if streams else "kept")
    assert (found.returncode, "Error" in found.stderr) == (0, False)
    written = (tmp_path / file).read_text()
    assert written.count("\n") >= (3 if file.endswith((".jsonl", "results.csv")) else 1)


class Failing(io.FileIO):
    """Raises an error, once."""

    error: OSError | None = None

    def write(self, data, /):
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().write(data)


class LastingOverFailing(_Lasting, Failing):
    """What is tested, over a stream that fails."""


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_only_a_reader_can_be_gone(kind: str, code: int, tmp_path: Path) -> None:
    """A hung-up terminal raises EIO, as does a failing disk; what a file has lost must be an error."""
    read, written = os.pipe()
    fd = written if kind == "pipe" else os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    with LastingOverFailing(fd, "wb") as stream:
        stream.error = OSError(code, os.strerror(code))
        if kind == "pipe" and code != errno.ENOSPC:
            count = len(list(Path("/proc/self/fd").iterdir()))
            assert stream.write(b"text") == 4 == stream.write(b"more")
            assert not stat.S_ISFIFO(os.fstat(fd).st_mode) and len(list(Path("/proc/self/fd").iterdir())) == count
        else:
            with pytest.raises(OSError, match=os.strerror(code)):
                stream.write(b"text")
    for each in {read, written} - {fd}:
        os.close(each)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_files_are_written_though_a_stream_was_closed_at_the_start(closed: str, tmp_path: Path) -> None:
    words = "generate hi -c tiny-random --max-new-tokens 3 -o found.json"
    if closed == ">&- 2>&-":
        found = shell(f"cd {tmp_path}; cascli {words} {closed}")
    else:
        found = warm.run(*words.split(), cwd=tmp_path, **{"stderr" if "2" in closed else "stdout": "closed"})
    assert found.returncode == 0 and Run.from_json((tmp_path / "found.json").read_text()).token_ids


@pytest.mark.parametrize("stdin", [b"hi", b"hi\n", b"hi\r\n", b"\xef\xbb\xbfhi\r\n"])
def test_a_prompt_on_stdin_has_no_marks_of_its_editor(stdin: bytes) -> None:
    found = invoke("generate", *TINY, "--json", "-q", stdin=stdin)
    assert Run.from_json(found.stdout).prompt == "hi"


@pytest.mark.parametrize(("ignored", "ended"), [("", [True, True]), ("HUP", [True, False]), ("TERM", [False, True])])
def test_ignored_signals_stay_ignored(ignored: str, ended: list[bool]) -> None:
    """`nohup` lets a command outlive its terminal by ignoring SIGHUP."""
    script = (
        "import signal; from cascli.cli import app; app.run = lambda: None\n"
        "try: app.main()\n"
        "finally: print([signal.getsignal(each) is app._interrupt for each in (signal.SIGTERM, signal.SIGHUP)])"
    )
    trap = f"trap '' {ignored}; " if ignored else ""
    command = f'{trap}exec {sys.executable} -c "{script}"'

    def none_ignored() -> None:  # as they may be for the tests themselves
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)

    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, preexec_fn=none_ignored)
    assert found.stdout.strip() == str(ended)


COLOURS = re.compile(r"\x1b\[[\d;]*m")
STRUCK = re.compile(r"\x1b\[9[;m]")


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("strategy", ["cascade:threshold=99", "cascade:threshold=-99", "speculative:k=4"])
def test_explicitly_requested_colour_reaches_a_pipe(
    strategy: str, terminal: str, clean_env: pytest.MonkeyPatch
) -> None:
    """The text is the same and contains no withdrawn draft; rejected drafts appear only with -v."""
    clean_env.setenv("NO_COLOR", "1")
    clean_env.setenv("TERM", terminal)
    asked = ["generate", "hi", *TINY, "-s", strategy]
    text = Run.from_json(invoke(*asked, "--json").stdout).text
    coloured = invoke(*asked, "--color", "always")
    assert coloured.stdout.count("\x1b[") > 3
    assert COLOURS.sub("", coloured.stdout) == plain(Text(text).plain) + "\n"  # control characters are replaced
    assert not STRUCK.search(coloured.stdout)
    assert invoke(*asked, "--color", "auto", "-v").stdout == text + "\n"
    assert ("draft model" in coloured.stderr) == (strategy == "cascade:threshold=-99")


def test_verbose_colour_output_shows_rejected_drafts_in_a_pipe(clean_env: pytest.MonkeyPatch) -> None:
    shown = [invoke("generate", "hi", *TINY, "--color", "always", *more).stdout for more in ([], ["-v"])]
    assert not STRUCK.search(shown[0]) and STRUCK.search(shown[1])


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_pipe_gets_colour_but_no_progress(command: str, clean_env: pytest.MonkeyPatch) -> None:
    """Bars move the cursor and erase lines: in a log or in `less -R` they would be left over."""
    # In a process of its own: rich keeps a style in the colours of the first terminal that it was printed on.
    found = warm.run(command, "hi", "-c", "tiny-random", "--max-new-tokens", "4", "--color", "always", "-v")
    assert found.returncode == 0 and "\x1b[" in found.stdout
    assert "\x1b" not in COLOURS.sub("", found.stdout + found.stderr) and "loading" not in found.stderr


def test_ascii_terminals_get_everything(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("PYTHONIOENCODING", "ascii")
    for words in ("compare hi -c tiny-random --max-new-tokens 4", "pairs"):
        found = warm.run(*words.split())
        assert found.returncode == 0 and found.stdout.isascii()
    assert "tiny-random" in found.stdout
