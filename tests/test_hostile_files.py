"""Small files with enormous contents, and paths that are not regular files: readers fail fast, with a short message."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cascli.config import PypiSource, load_config
from cascli.errors import ConfigError, UsageError
from cascli.files import bounded, json_of, printed, text_of
from cascli.prompts import read_prompts
from cascli.sweeps.plan import load_plan
from cascli.weights.manifest import NAME, is_whole
from cascli.yaml_files import read_yaml
from tests.commands import program

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def at_once(act: Callable[[], object], kind: type[Exception], match: str) -> None:
    start = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        act()
    assert time.monotonic() - start < 10  # allows for a loaded machine; a hang takes minutes
    assert len(str(caught.value)) < 400 and len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("load", [load_config, load_plan])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB + "draft: *i\nstrategies: *i\n", "too many values"),
        ("a: &a [*a]\n", "too many values"),
        ("a: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("a: 2001-99-99\n", "not valid YAML: month"),
        ("a: " + "1" * 5000 + "\n", "not valid YAML: Exceeds the limit"),
        ("a: !!python/object/apply:os.system [id]\n", "not valid YAML: could not determine"),
        ("a: \0\n", "not valid YAML"),
        ("- 1\n", "expected keys"),
        ("", "expected keys"),
    ],
    ids=["bomb", "itself", "deep", "date", "digits", "tag", "nul", "list", "empty"],
)
def test_yaml(tmp_path: Path, load: Callable[[Path], object], text: str, match: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    at_once(lambda: load(file), ConfigError, match)


def test_an_alias_of_a_large_value_is_abbreviated(tmp_path: Path) -> None:
    """A value within the bound on values, but far too long for a message, is abbreviated."""
    file = tmp_path / "x.yaml"
    file.write_text(BOMB.partition("e:")[0] + "draft: {source: {path: *d}}\ntarget: {source: {path: x}}\n")
    at_once(lambda: load_config(file), ConfigError, r"draft\.source\.path: .*\.\.\.")


def test_printed_values_are_short() -> None:
    value: object = [1]
    for _ in range(40):
        value = [value] * 9
    assert len(printed(value)) < 200 and len(printed("x" * 10**6)) < 200
    assert printed(10**5000) == "a int" and printed("short") == "'short'"
    assert len(printed({"k": value, "l": {"m": [value]}})) < 400


def test_ranges_are_bounded() -> None:
    source = PypiSource(pypi="a{1..999999999}==1.0", file="x", sha256="0" * 64)
    at_once(source.requirements, ConfigError, "more than 999 parts")
    assert len(PypiSource(pypi="a{1..3}==1.0", file="x", sha256="0" * 64).requirements()) == 3
    with pytest.raises(ConfigError, match=r"pypi:a\{6\.\.1\}==1\.0: the range \{6\.\.1\} is empty"):
        PypiSource(pypi="a{6..1}==1.0", file="x", sha256="0" * 64).requirements()


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"prompt": "x", "n": ' + "1" * 5000 + "}", r"x\.jsonl:1: not JSON: Exceeds"),
        ("[" * 100_000, r"x\.jsonl:1: (nested too deeply|not JSON)"),
        ('{"prompt": 5}', "must be a string"),
        ('{"turns": ["a", null]}', "must be a string"),
        ('{"turns": ["a"], "prompt": "b"}', r"x\.jsonl:1: give 'prompt' or 'turns', not both"),
        ('{"prompt": ""}', r"x\.jsonl:1: 'prompt' is empty"),
        ('{"turns": []}', r"x\.jsonl:1: 'turns' is empty"),
        ('{"turns": ["a", ""]}', r"x\.jsonl:1: a turn is empty"),
        (r'{"turns": ["a", "b\ud800c"]}', r"x\.jsonl:1: '\\ud800' is half of a surrogate pair"),
        (r'{"prompt": "a", "id": "\udc00"}', r"x\.jsonl:1: '\\udc00' is half of a surrogate pair"),
        ('{"prompt": "a", "id": ["x"]}', r"x\.jsonl:1: an id must be a string or an integer \(got \['x'\]\)"),
        ('{"prompt": "a", "question_id": true}', r"x\.jsonl:1: an id must be a string or an integer \(got True\)"),
        ('{"prompt": "a", "question_id": 1.5}', "an id must be a string or an integer"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "not JSON"),
    ],
)
def test_prompts(tmp_path: Path, line: str, match: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(line)
    at_once(lambda: read_prompts(file), UsageError, match)


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    at_once(lambda: read_prompts(pipe), UsageError, "not a regular file")
    at_once(lambda: read_yaml(pipe, "'draft:'"), ConfigError, "not a regular file")
    at_once(lambda: read_prompts(Path("/dev/zero")), UsageError, "not a regular file")
    at_once(lambda: read_prompts(tmp_path), UsageError, "a folder")
    at_once(lambda: text_of(tmp_path / "a\0b", 10), UsageError, "cannot be read|no such file")


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_a_process_substitution_of_the_shell_is_accepted() -> None:
    """`--prompts <(head -3 prompts.jsonl)` works."""
    read, write = os.pipe()
    os.write(write, b'{"prompt": "x"}\n')
    os.close(write)
    assert [prompt.turns for prompt in read_prompts(Path(f"/dev/fd/{read}"))] == [("x",)]
    os.close(read)


def test_size_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    assert text_of(file, 5) == "12345"
    at_once(lambda: text_of(file, 4), UsageError, "larger than 0 MB")
    with Path("/dev/zero").open("rb") as zeros:
        at_once(lambda: bounded(zeros, "stdin", 1 << 20), UsageError, "stdin: larger than 1 MB")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bz2", "lzma"])
def test_compressed_text_is_called_that(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(pack(b"text"))
    at_once(lambda: text_of(file, 99), UsageError, "it is compressed; unpack it first")


def test_json_errors_state_the_place() -> None:
    at_once(lambda: json_of('{"a": 1,\n "b" 2}', "x.json"), UsageError, r"x\.json:2: not JSON")
    at_once(lambda: json_of(b"\xff\xff", "x.json"), UsageError, r"x\.json: not JSON")


def show(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "x.json"
    file.write_text(text)
    return program("show", str(file))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema": "cascli.run/1", "seed": ' + "1" * 5000 + "}",
        '{"schema": "cascli.bench/1"}',
        '{"schema": "cascli.runs/1", "runs": [[]]}',
        json.dumps({"schema": "cascli.bench/1", "pair": "x", "models": {}, "steps": [], "environment": {}}),
    ],
)
def test_show(tmp_path: Path, text: str) -> None:
    ended = show(tmp_path, text)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) <= 2
    assert "unexpected" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("text", ['{"files": ["a"]}', "[]", "[" * 100_000, '{"files": {"a": "b"}}', '{"files": 5}'])
def test_a_damaged_manifest_does_not_count_as_whole(tmp_path: Path, text: str) -> None:
    found = json.loads(text) if text.startswith("{") else None
    whole = {"schema": "cascli.weights/1", "converter": 1, **found} if found else None
    (tmp_path / NAME).write_text(json.dumps(whole) if whole else text)
    assert not is_whole(tmp_path)
