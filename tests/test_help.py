"""--help pages are complete, fit any width, match the options of the commands, and are fast."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import cascli
from cascli.cli.app import app
from cascli.cli.environment import known
from cascli.config import DEFAULT_PAIR
from cascli.settings import DEFAULT_STRATEGY, Resolved
from cascli.strategies import parse
from tests.commands import invoke

PACKAGE = Path(cascli.__file__).parent
ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by its words, including the program itself."""
    found = {path: group}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, (*path, name))
    return found


ALL = commands()


def page(*path: str, width: int = 80, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    found = invoke(*path, "--help")
    assert found.exit_code == 0
    return found.stdout


def examples(text: str) -> list[str]:
    return [line.strip() for line in text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_pages_fit_the_width_and_examples_are_not_cut(
    path: tuple[str, ...], width: int, clean_env: pytest.MonkeyPatch
) -> None:
    text = page(*path, width=width, monkeypatch=clean_env)
    shown = examples(text)
    lines = text.splitlines()
    assert max(len(line) for line in lines if line.strip() not in shown) <= min(width, 100)
    assert "…" not in text and "<bool>" not in text and "VALUE" not in text
    assert all(len(line) <= 76 and "cascli" in line for line in shown), shown
    assert shown or path[:1] in (("help",), ("version",))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_example_can_be_parsed(path: tuple[str, ...], clean_env: pytest.MonkeyPatch) -> None:
    """Its command and options exist, their values have the right types, and its strategies can be parsed."""
    for line in examples(page(*path, monkeypatch=clean_env)):
        words = shlex.split(line)
        words = words[words.index("cascli") + 1 :]
        command, context = ROOT, None
        name = "cascli"
        while True:
            context = command.make_context(name, list(words), parent=context)
            if not getattr(command, "commands", None) or not context._protected_args:
                break
            name, words = context._protected_args[0], context.args
            command = command.commands[name]
        for given in context.params.get("strategy") or ():
            parse(given, 4)


def test_switches_are_shown_in_the_form_that_changes_the_default(clean_env: pytest.MonkeyPatch) -> None:
    text = page("compare", monkeypatch=clean_env)
    shown = set(re.findall(r"--no-[a-z-]+", text))
    assert shown == {"--no-cuda-graphs", "--no-measure"}
    compare = ALL["compare",]
    switches = [option for option in compare.params if option.secondary_opts]
    assert len(switches) >= 8
    for option in switches:  # those that are not shown work too
        [off] = option.secondary_opts
        assert compare.make_context("compare", ["hi", off]).params[option.name] is False


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("generate", ["hi"]), ("compare", ["hi"]), ("bench", []), ("verify", []), ("show", ["x.json"])],
)
def test_the_help_for_output_lists_the_accepted_suffixes(
    command: str, arguments: list[str], clean_env: pytest.MonkeyPatch
) -> None:
    extra = [] if command == "show" else ["-c", "tiny-random"]
    refused = invoke(command, *arguments, *extra, "-o", "result.odd").stderr
    taken = set(re.findall(r"\.[a-z]+", refused.partition("Known:")[2]))
    said = " ".join(page(command, monkeypatch=clean_env).split()).partition("--output FILE ")[2]
    assert taken and set(re.findall(r"(?<![a-z])\.[a-z]+", said.partition(" -q")[0])) == taken, (said, refused)


def test_the_front_page_lists_defaults_exit_codes_and_commands(clean_env: pytest.MonkeyPatch) -> None:
    text = page(monkeypatch=clean_env)
    flat = " ".join(text.split())
    assert parse(DEFAULT_STRATEGY, Resolved.num_speculative_tokens).spec in flat and DEFAULT_PAIR in flat
    codes = re.findall(r"^  (\d+) ", text.partition("Exit codes:\n")[2], re.M)
    assert codes == ["0", "1", "2", "3", "130"]
    for command in ("generate", "compare", "pairs", "strategies"):
        assert re.search(rf"^  {command} ", text, re.M)
    assert not re.search(r"^  (help|version) ", text, re.M)
    assert f"(default {DEFAULT_PAIR})" in " ".join(page("generate", monkeypatch=clean_env).split())


def test_every_environment_variable_read_is_known() -> None:
    """Every variable is in `known()`, and those that are not options are listed on the front page."""
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"\bCASCLI_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    assert named - set(known()) == set()
    text = invoke("--help").stdout
    assert all(name in text for name in ("CASCLI_HOME", "CASCLI_CONFIG", "CASCLI_THEME", "CASCLI_DEBUG", "NO_COLOR"))


def test_other_ways_to_ask_for_help(clean_env: pytest.MonkeyPatch) -> None:
    front = page(monkeypatch=clean_env)
    for words in ((), ("help",), ("-h",)):
        found = invoke(*words)
        assert (found.exit_code, found.stdout) == (0, front)
    for words in (("compare",), ("pairs", "rm")):
        assert invoke("help", *words).stdout == page(*words, monkeypatch=clean_env)
    wrong = invoke("help", "compar")
    assert wrong.exit_code == 2 and "did you mean 'compare'?" in wrong.stderr and "version" not in wrong.stderr
    said = {invoke(word).stdout for word in ("--version", "-V", "version")}
    assert said == {f"cascli {cascli.__version__}\n"}


def run(words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    line = f"set -o pipefail; {sys.executable} -m cascli {words}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("words", ["--help", "compare --help", "help", "version", ""])
def test_a_closed_reader_and_a_full_disk_end_help_quietly(words: str) -> None:
    gone = run(f"{words} | true")
    assert (gone.returncode, gone.stderr) == (0, "")
    full = run(f"{words} > /dev/full")
    assert full.returncode == 3 and len(full.stderr.splitlines()) == 1, full.stderr


@pytest.mark.parametrize("words", ["--help", "compare --help", "sweep --help", "pairs --help", "--version"])
def test_help_imports_nothing_heavy(words: str) -> None:
    """Imports take most of the time of a help page; printing one needs none of these."""
    code = (
        "import sys; sys.argv = ['cascli', *%r]\nfrom cascli.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(sorted({'pydantic', 'yaml', 'rich', 'numpy', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code % words.split()], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_an_interruption_while_loading_prints_one_line(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Ctrl(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Ctrl())\n"
        "from cascli.__main__ import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "cascli: interrupted\n")
