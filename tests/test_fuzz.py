"""Past failures and twenty seconds of mutated files; `make fuzz` runs for twenty minutes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutate
from tests.fuzz.run import verdict

SECONDS = 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks warm processes")
def test_no_file_breaks_a_reader() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", str(int(time.time()) // 86_400)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert ended.stdout.count("none failed") == 10


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (0, "a note\nanother\nand a third\n", None),
        (2, "cascli: x.yaml: bad\nDo this.\n", None),
        (3, "cascli: the template says: unexpected char 5\n", None),
        (None, "", "hang"),
        (-6, "", "signal 6"),
        (1, "", "exit 1"),
        (3, "Traceback (most recent call last):\n", "traceback"),
        (0, "thread '<unnamed>' panicked at src/lib.rs\n", "traceback"),
        (3, "cascli: unexpected KeyError: 'x'\n", "unexpected"),
        (2, "cascli: \x1b[2J: bad\n", "control character"),
        (2, "cascli: a\nb\nc\n", "long"),
    ],
)
def test_what_counts_as_a_failure(code: int | None, said: str, wrong: str | None) -> None:
    assert verdict(code, said) == wrong


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("bug", "wrong"),
    [
        ("raise KeyError('x')", "exit 1"),
        ("import os; os.abort()", "signal 6"),
        ("import time; time.sleep(100)", "hang"),
        ("bytearray(8 << 30)", "exit 1"),
        ("import sys; print('cascli: unexpected X', file=sys.stderr); sys.exit(3)", "unexpected"),
        ("import sys; sys.exit(2)", None),
    ],
)
def test_planted_bugs_are_seen(bug: str, wrong: str | None, tmp_path: Path) -> None:
    """Every planted bug is reported. Runs in a separate process: this one has threads and must not be forked."""
    code = f"""
import sys
from pathlib import Path
import cascli.cli.app as app
from tests.fuzz import run
run.SECONDS = 1
def main():
    {bug}
app.main = main
code, said, _ = run.attempt([], Path({str(tmp_path)!r}))
print(run.verdict(code, said))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(wrong)


def test_mutations_change_the_input_and_are_reproducible() -> None:
    data, tree = bytes(range(256)), {"a": [1, {"b": "c"}], "d": None}
    assert [mutate.of_bytes(data, Random(i)) for i in range(50)] == [
        mutate.of_bytes(data, Random(i)) for i in range(50)
    ]
    assert sum(mutate.of_bytes(data, Random(i)) != data for i in range(200)) > 190
    changed = [repr(mutate.of_tree(tree, Random(i))) for i in range(200)]
    assert sum(each != repr(tree) for each in changed) > 180 and len(set(changed)) > 60
    assert tree == {"a": [1, {"b": "c"}], "d": None}
