"""Environment variables, output on narrow or ASCII terminals, and suggestions for misspelt names."""

from __future__ import annotations

import codecs
import errno
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from typer.testing import Result

from cascli import files
from cascli.cli import complete
from cascli.cli.app import run
from cascli.cli.errors import in_ascii
from cascli.cli.progress import Progress, shortened
from cascli.config import DEFAULT_PAIR
from cascli.errors import UsageError
from cascli.render.catalogue import SYMBOLS
from cascli.render.console import Screen
from cascli.render.export import check_suffix
from cascli.render.marks import legend
from cascli.render.race import RaceView
from cascli.settings import from_environment
from cascli.strategies import parse
from tests.commands import invoke
from tests.schema import KINDS, schema

TINY = ["-c", "tiny-random", "--max-new-tokens", "4"]


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch) -> Callable[..., Result]:
    return invoke


def test_a_misspelt_variable_is_reported_but_is_not_an_error(cli, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_TEMPERATUR", "0.7")
    clean_env.setenv("CASCLI_XYZZY", "1")
    found = cli("pairs", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["default"] == DEFAULT_PAIR
    near, far = found.stderr.splitlines()
    assert "CASCLI_TEMPERATUR is unknown" in near and near.endswith("did you mean 'CASCLI_TEMPERATURE'?")
    assert "CASCLI_XYZZY" in far and "cascli --help" in far
    assert cli("pairs", "-q").stderr == ""
    assert "CASCLI_TEMPERATUR" not in cli("--help").stderr
    clean_env.setenv("CASCLI_QUIET", "1")
    assert cli("strategies").stderr == ""
    clean_env.setenv("CASCLI_QUIET", "0")
    assert "CASCLI_XYZZY" in cli("pairs").stderr


def test_several_strategies_by_variable(cli, clean_env: pytest.MonkeyPatch) -> None:
    given = "target; speculative-cascade:rule=opt,alpha=0.1,k=2;\nspeculative:k=2 "
    clean_env.setenv("CASCLI_STRATEGY", given)
    found = json.loads(cli("compare", "hi", *TINY, "--no-measure", "--json").stdout)
    wanted = ["target", "speculative-cascade:rule=opt,alpha=0.1,k=2", "speculative:k=2"]
    assert [row["strategy"] for row in found["summary"]] == wanted
    assert from_environment({"CASCLI_STOP": "a;b"}).stop == ["a;b"], "a text may hold anything"


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_missing_prompt_error_shows_an_example_of_the_command(cli, command: str) -> None:
    found = cli(command, *TINY, stdin="")
    assert found.exit_code == 2 and f"For example: cascli {command} " in found.stderr


def test_strategies_by_name_and_as_strings(cli) -> None:
    rule = cli("strategies", "opt")
    assert "keep q iff max q1 >= max p1" in rule.stdout and "token-v3" not in rule.stdout
    assert "speculative-cascade:rule=opt,alpha=0.3,k=4" in rule.stdout
    for symbol in SYMBOLS:
        assert rule.stdout.count(f"    {symbol} ") == 1, symbol
    written = cli("strategies", "opt", "prompt-lookup", "speculative", "-q").stdout.split()
    assert written and all(parse(each).spec for each in written)
    # At least: a strategy added by following docs/add-a-strategy.md is listed too.
    assert {each.partition(":")[0] for each in written} >= {"speculative", "speculative-cascade", "token-cascade"}
    assert cli("strategies", "speculative-cascade:rule=diff,alpha=0.1").stdout.count("source") == 2
    wrong = cli("strategies", "otp")
    assert wrong.exit_code == 2 and "did you mean 'opt'?" in wrong.stderr
    for slip in ("speculative:k=abc", "speculative:kk=3", "speculative:rule=opt", "opt:alpha=9", "cascade:score"):
        wrong = cli("strategies", slip)
        assert (wrong.exit_code, wrong.stdout) == (2, "") and wrong.stderr.count("\n") == 1, slip
    shown = json.loads(cli("strategies", "opt", "--json").stdout)
    assert [len(shown[kind]) for kind in ("strategies", "rules", "drafters")] == [0, 1, 0]


def test_strings_to_copy_are_in_one_line(cli, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("COLUMNS", "80")
    text = cli("strategies").stdout
    for each in cli("strategies", *complete.plugins(""), "-q").stdout.split():
        assert f"{each}\n" in text.replace(" \n", "\n"), each
    assert max(map(len, text.splitlines())) <= 80


_KEYS = ("draft", "k", "rule", "alpha", "tail", "top", "where", "verify", "stop")


def test_completion_goes_on_within_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = complete.strategies("speculative-cascade:")
    assert set(begun) == {f"speculative-cascade:{key}=" for key in _KEYS}
    assert complete.strategies("speculative-cascade:rule=opt,al") == ["speculative-cascade:rule=opt,alpha="]
    assert complete.strategies("nothing:") == complete.strategies("target:") == []
    assert "speculative-cascade:rule=opt" in complete.strategies("speculative-cascade:rule=o")
    monkeypatch.chdir(tmp_path)
    for name in ("questions.jsonl", "notes.txt", ".hidden.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz" / "one.jsonl").touch()
    sets = ["builtin", "mt-bench", "spec-bench", "speed-bench"]
    assert complete.prompts("") == [*sets, "questions.jsonl", "quiz/"]
    assert complete.prompts("q") == ["questions.jsonl", "quiz/"]
    assert complete.prompts("quiz/") == ["quiz/one.jsonl"]
    assert complete.prompts("nowhere/") == []


def test_progress_bars_keep_their_columns_in_a_narrow_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, legacy_windows=False, color_system=None)
    with Progress(Screen(console, console), "sweeping", counted=True) as progress:
        progress.step("humaneval/164 speculative-cascade:rule=token-v3,alpha=0.1,k=4, 115.1 tokens/s", 1234, 5678)
        time.sleep(0.3)
        progress._bars.refresh()
    last = [line for line in file.getvalue().replace("\x1b[2K", "\n").split("\n") if "1234" in line][-1]
    assert re.search(r"humane.*115\.1 tokens/s [━╸╺ ]{16} 1234/5678 \d:\d\d:\d\d left [-\d]", last), last
    assert len(last.rstrip()) <= 80


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("--max-new-tokens", "5o"),
        ("--temperature", "hot"),
        ("--runs", "-7"),
        ("--schedule", "quick"),
        ("-s", "speculative:k=quick"),
    ],
)
def test_errors_about_values_name_the_value_and_repeat_nothing(
    monkeypatch: pytest.MonkeyPatch,
    clean_env: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["cascli", "compare", "hi", name, value])
    assert run() == 2
    line = capsys.readouterr().err.splitlines()[0]
    assert value.rpartition("=")[2] in line and "unable to parse" not in line and "Value error" not in line


@pytest.mark.parametrize("where", ["show_cursor", "push_render_hook", "refresh"])
@pytest.mark.parametrize("view", ["progress", "race"])
def test_ctrl_c_while_a_display_starts_leaves_the_cursor_visible(
    monkeypatch: pytest.MonkeyPatch, view: str, where: str
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, legacy_windows=False, color_system=None)
    owner = Live if where == "refresh" else Console
    original, calls = getattr(owner, where), []

    def interrupted(self: object, *args: object) -> object:
        calls.append(original(self, *args))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(owner, where, interrupted)
    screen = Screen(console, console)
    with pytest.raises(KeyboardInterrupt), Progress(screen, "") if view == "progress" else RaceView(screen, ["target"]):
        pytest.fail("started")
    written = file.getvalue()
    assert "\x1b[?25l" in written and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    console.print("after")  # the display no longer redraws itself
    assert file.getvalue().endswith("after\n")


# Before torch is imported, a progress bar must say so, and a mistake in the command line must have been reported.
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("compare hi -c tiny-random", 9),
        ("compare hi -c tiny-random --rules opt", 9),
        ("compare hi -s foo", 2),
        ("compare hi -s target -s target", 2),
        ("compare hi --offline -c qwen3", 3),
        ("generate hi -c tiny-random", 9),
        ("verify --quick -c tiny-random", 9),
        ("verify --offline -c qwen3", 3),
        ("sweep rules -c tiny-random -o {}", 9),
        ("eval --tasks none -c tiny-random", 9),
        ("eval --tasks none -s foo", 2),
        ("bench -c tiny-random", 9),
        ("chat -c tiny-random", 9),
        ("advise hi -c tiny-random", 9),
    ],
)
def test_the_seconds_that_torch_takes_to_import_are_announced(tmp_path: Path, words: str, code: int) -> None:
    program = """
import os, sys
from cascli.cli import progress
from cascli.cli.app import main

class Finder:
    shown = False
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os._exit(9 if self.shown else 8)

finder = Finder()
sys.meta_path.insert(0, finder)
say = progress.Progress.__enter__
def enter(self):
    finder.shown = True
    return say(self)
progress.Progress.__enter__ = enter
main()
"""
    argv = [word.format(tmp_path / "out") for word in words.split()]
    found = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    assert found.returncode == code, found.stderr.decode()


@pytest.mark.parametrize("room", range(8, 80))
def test_shortened_text_keeps_both_ends(room: int) -> None:
    text = "gsm8k/12 speculative-cascade:rule=opt,alpha=0.1,k=4, 115.1 tokens/s"
    short = shortened(text, room)
    assert len(short) <= room and short.startswith("g")
    assert short.endswith("115.1 tokens/s") or room < 20


def test_symbols_have_fallbacks_where_unicode_is_unavailable() -> None:
    assert codecs.lookup_error("cascli") is in_ascii
    assert "none – ≥ 0.5 · α=.3 ≠ 猫".encode("ascii", "cascli") == b"none - > 0.5 - a=.3 ! ?"
    assert "a – ° b".encode("latin-1", "cascli") == b"a - \xb0 b", "what can be said is said"


def test_a_full_disk_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"result\.json"):
        files.write(tmp_path / "result.json", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_full_disk_error_names_the_requested_file(cli, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"run.{suffix}"
    out.symlink_to("/dev/full")
    found = cli("compare" if suffix == "csv" else "generate", "hi", *TINY, "-s", "draft", "-o", str(out))
    assert found.exit_code == 3 and f"no space left on the disk while writing {out};" in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_full_disk_error_names_the_plot(cli, tmp_path: Path) -> None:
    out = tmp_path / "speed.svg"
    out.symlink_to("/dev/full")
    few = ("--context", "16", "--longest-block", "2", "--repeats", "1")
    found = cli("bench", "-c", "tiny-random", "--device", "cpu", *few, "--plot", str(out))
    assert found.exit_code == 3 and f"no space left on the disk while writing {out};" in found.stderr


def test_an_empty_sweep_file_error_names_the_keys_of_a_sweep(cli, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    found = cli("sweep", str(tmp_path / "empty.yaml"))
    assert found.exit_code == 2 and "'strategies:'" in found.stderr and "draft" not in found.stderr


def test_a_legend_explains_a_mark_once() -> None:
    text = legend({"accepted", "draft", "target"}, colored=False).plain
    assert text.count("token drafted and accepted or draft model") == 1 and "^token target model" in text
    assert legend({"accepted", "draft"}, colored=True).plain == "drafted and accepted · draft model"


def test_one_legend_for_all_prompts(cli, tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    found = cli("compare", "--prompts", str(file), *TINY, "--no-measure", "-s", "target", "-s", "speculative:k=2")
    assert found.stdout.count("prompt: ") == 2 and found.stdout.count("^token") == 1


def test_offline_refuses_before_torch_is_imported(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("asked to load")

    monkeypatch.setattr("cascli.cli.progress.Progress.__enter__", never)
    found = cli("generate", "hi", "--offline", "-c", DEFAULT_PAIR)
    assert found.exit_code == 3 and "offline mode is on" in found.stderr


@pytest.mark.parametrize("name", KINDS)
def test_schemas_describe_every_key_for_editors(name: str) -> None:
    found = json.loads(schema(name))
    assert found["$id"] == f"urn:cascli:{name}"
    for where, part in {name: found, **found.get("$defs", {})}.items():
        for key, value in part.get("properties", {}).items():
            assert len(value.get("description", "")) > 8, f"{where}.{key}"


def test_only_a_similar_suffix_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        check_suffix(tmp_path / "c.svg", (".csv", ".md"), named="-o")
    assert "did you mean" not in str(error.value) and ".csv, .md" in str(error.value)
    with pytest.raises(UsageError, match=r"did you mean '\.html'"):
        check_suffix(tmp_path / "c.htm", (".csv", ".html"), named="-o")
