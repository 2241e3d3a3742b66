"""A hub that lies: nothing is written outside the cache, every refusal is a sentence, and none takes long."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cascli.errors import RunError
from cascli.weights.hub_answers import SECONDS, _check, _interrupted, _patient

COMMIT = "a" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"12345678", "tokenizer.json": b"[]"}
UP = "../../../../../../../../.."


class Hub:
    """The hub's responses; each part can be made hostile."""

    def __init__(self) -> None:
        self.commit, self.header, self.tag = COMMIT, COMMIT, ""
        self.names = list(FILES)
        self.status, self.silent, self.body = 200, False, None
        self.moved = self.withheld = False
        """Whether `main` names another commit than that of the files; whether weights are refused."""
        self.slow = threading.Event()
        """Set it to let weights arrive for half a minute; the hub clears it once they have begun to."""

    def describe(self, path: str) -> Any:
        sha = COMMIT if self.moved and COMMIT in path else self.commit
        return {"id": "some/model", "sha": sha, "siblings": [{"rfilename": name} for name in self.names]}

    def tree(self) -> Any:
        return [
            {"type": "file", "path": name, "size": len(FILES.get(name, b"x")), "oid": "b" * 40} for name in self.names
        ]


def tag_of(path: str, body: bytes) -> str:
    """What names a file: a sha256 of weights, and git's hash of others."""
    if path.endswith("safetensors"):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    state: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.state.silent:
            threading.Event().wait(20)
        if self.state.status != 200:
            return self.give(self.state.status, b"no", "text/plain")
        if self.path.startswith("/api/"):
            found = self.state.tree() if "/tree/" in self.path else self.state.describe(self.path)
            return self.give(200, self.state.body or json.dumps(found).encode(), "application/json")
        name = self.path.rpartition("/")[2]
        if name == "model.safetensors" and self.state.withheld:
            return self.give(500, b"no", "text/plain")
        if name == "model.safetensors" and self.state.slow.is_set():
            return self.drip(300)
        return self.give(200, FILES.get(name, b"x"), "application/octet-stream")

    def give(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if not self.path.startswith("/api/"):
            self.send_header("X-Repo-Commit", self.state.header)
            self.send_header("ETag", f'"{self.state.tag or tag_of(self.path, body)}"')
        with contextlib.suppress(BrokenPipeError):  # a client that refuses does not read to the end
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def drip(self, pieces: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(pieces << 16))
        self.send_header("X-Repo-Commit", self.state.header)
        self.send_header("ETag", '"0123abc"')
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            for place in range(pieces):
                self.wfile.write(bytes(1 << 16))
                if place == 3:
                    self.state.slow.clear()
                threading.Event().wait(0.1)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    state = Hub()

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def pull(address: str, home: Path, more: str = "", call: str = "pull") -> subprocess.CompletedProcess[str]:
    """Pull in a separate process, since huggingface_hub reads its settings at import."""
    child = pulling(address, home, more, call)
    stdout, stderr = child.communicate(timeout=120)
    return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


def pulling(address: str, home: Path, more: str = "", call: str = "pull") -> subprocess.Popen[str]:
    """A separate process that pulls."""
    code = f"""
from cascli.weights import hub_answers
{more}
from cascli.config import HubSource
from cascli.weights.store import changed, pull, repair
from cascli.errors import RunError
source = HubSource(hub="some/model")
try:
    print({call}(source))
except RunError as error:
    print("refused:", error)
"""
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home / "a/b/c/hf"), "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def strangers(home: Path) -> list[str]:
    """Files outside the hub's cache."""
    inside = home / "a/b/c/hf"
    return [str(path) for path in home.rglob("*") if path.is_file() and not path.is_relative_to(inside)]


def test_an_honest_hub_is_accepted(hub: tuple[Hub, str], tmp_path: Path) -> None:
    ended = pull(hub[1], tmp_path)
    folder = Path(ended.stdout.strip())
    assert folder.name == COMMIT and (folder / "model.safetensors").read_bytes() == b"12345678", ended.stderr


HOSTILE: list[tuple[str, Callable[[Hub], None], str]] = [
    ("commit", lambda hub: setattr(hub, "commit", UP + "/out"), "commit id"),
    ("commit of a file", lambda hub: setattr(hub, "header", UP + "/out"), "commit id"),
    ("etag", lambda hub: setattr(hub, "tag", UP + "/out"), "etag"),
    ("file name", lambda hub: hub.names.append(UP + "/x.json"), "is outside its folder"),
    ("absolute name", lambda hub: hub.names.append("/tmp/x.json"), "is outside its folder"),
    ("name of another system", lambda hub: hub.names.append("..\\..\\x.json"), "is outside its folder"),
    ("no list", lambda hub: setattr(hub, "body", b'[{"path": 5}]'), "is outside its folder|is invalid"),
    ("no JSON", lambda hub: setattr(hub, "body", b"{"), "is invalid"),
    ("forbidden", lambda hub: setattr(hub, "status", 403), r"refused access \(403\)"),
    ("too many", lambda hub: setattr(hub, "status", 429), r"limiting requests.*\(429\)"),
    ("broken", lambda hub: setattr(hub, "status", 500), "answered with an error: .*500"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_a_lying_hub_is_refused_with_a_short_message(
    hub: tuple[Hub, str], tmp_path: Path, name: str, spoil: Callable[[Hub], None], message: str
) -> None:
    import re

    spoil(hub[0])
    ended = pull(hub[1], tmp_path)
    assert ended.stdout.startswith("refused: hub:some/model@main: "), ended.stdout + ended.stderr
    assert re.search(message, ended.stdout), ended.stdout
    assert len(ended.stdout.splitlines()) <= 2
    assert strangers(tmp_path) == []


def test_a_silent_hub_times_out(hub: tuple[Hub, str], tmp_path: Path) -> None:
    hub[0].silent = True
    ended = pull(hub[1], tmp_path, more="hub_answers.SECONDS = 1")
    assert "refused" in ended.stdout and "Try again" in ended.stdout, ended.stdout + ended.stderr


REPAIR = "lambda source: repair(source, changed(source))"


def test_a_repair_brings_back_what_has_changed(hub: tuple[Hub, str], tmp_path: Path) -> None:
    """Of the same commit, wherever the branch is now."""
    state, address = hub
    folder = Path(pull(address, tmp_path).stdout.strip())
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    weights.resolve().write_bytes(b"12345679")
    tokenizer.resolve().write_bytes(b"{}")
    state.commit, state.moved = "c" * 40, True
    ended = pull(address, tmp_path, call=f"({REPAIR})")
    assert ended.stdout.strip() == str(folder), ended.stdout + ended.stderr
    assert weights.read_bytes() == b"12345678" and tokenizer.read_bytes() == b"[]"
    assert [path.name for path in folder.parent.iterdir()] == [COMMIT]
    assert not list(folder.parent.parent.glob("blobs/*.changed"))


def test_a_repair_that_cannot_reach_the_hub_changes_nothing(hub: tuple[Hub, str], tmp_path: Path) -> None:
    state, address = hub
    folder = Path(pull(address, tmp_path).stdout.strip())
    weights = folder / "model.safetensors"
    weights.resolve().write_bytes(b"12345679")
    state.status = 500
    at_once = "import time; time.sleep = lambda seconds: None"  # the library waits between its tries
    ended = pull(address, tmp_path, at_once, call=f"({REPAIR})")
    assert "refused: " in ended.stdout and "500" in ended.stdout, ended.stdout + ended.stderr
    assert weights.read_bytes() == b"12345679"
    state.status, state.withheld = 200, True
    ended = pull(address, tmp_path, at_once, call=f"({REPAIR})")
    assert "refused: " in ended.stdout, ended.stdout + ended.stderr
    assert weights.read_bytes() == b"12345679" and len(list(folder.parent.parent.glob("blobs/*"))) == 3


def test_signal_handlers_come_back_and_those_of_a_host_decide() -> None:
    """A handler that only takes note of a signal does not end the download."""
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    # Libraries of earlier tests, or a shell that runs this beside itself, may have set another.
    before_int = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        with _interrupted() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted == [signal.SIGTERM] and not interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
            assert interrupted.is_set()
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before_int or signal.default_int_handler)
    with ThreadPoolExecutor(1) as pool:  # no thread but the main one may set handlers
        assert pool.submit(lambda: _interrupted().__enter__().is_set()).result() is False


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_does_not_wait_for_the_files_that_are_arriving(
    hub: tuple[Hub, str], tmp_path: Path, kill: signal.Signals
) -> None:
    """The library's threads read on, and it waits for them before the main thread's KeyboardInterrupt counts."""
    state, address = hub
    state.slow.set()
    # A shell's background job ignores Ctrl-C, and so would its children.
    handlers = "import signal; [signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGTERM)]"
    child = pulling(address, tmp_path, handlers)
    deadline = time.monotonic() + 60
    while state.slow.is_set() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not state.slow.is_set(), "the weights never began to arrive"
    child.send_signal(kill)
    began = time.monotonic()
    _, stderr = child.communicate(timeout=60)
    assert time.monotonic() - began < 10 and "KeyboardInterrupt" in stderr, stderr
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"etag": '"0123abc"'}, False),
        ({"etag": 'W/"0123abc"'}, False),  # as compressing proxies rewrite it
        ({"x-linked-etag": '"0123abc"', "etag": '"a-2"'}, False),
        ({"x-linked-etag": f'"{UP}/out"', "etag": '"a-2"'}, True),  # for large files, this header names the file
        ({"etag": f'W/"{UP}/out"'}, True),
    ],
)
def test_etags_of_either_kind_are_checked(headers: dict[str, str], refused: bool) -> None:
    said = SimpleNamespace(headers={"x-repo-commit": COMMIT, **headers}, url=SimpleNamespace(path="/some/model"))
    with pytest.raises(RunError, match="etag") if refused else contextlib.nullcontext():
        _check(said, "hub:some/model")


def test_existing_timeouts_of_the_library_are_kept() -> None:
    request = SimpleNamespace(extensions={"timeout": {"connect": 2.0, "read": None, "write": 90.0}})
    _patient(request)
    assert request.extensions["timeout"] == {"connect": 2.0, "read": SECONDS, "write": 90.0, "pool": SECONDS}
