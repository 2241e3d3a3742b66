"""Runs a model's code, or the tests of it, behind walls: started by path, in its own process, without cascli.

On Linux any process, including root's, can build two walls around itself that it can never take down: Landlock (which
files) and seccomp (which system calls). Behind them, code can compute, read Python's own files, and use the pipes that
it was given; nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

SECONDS = 10
LIMITS = {"CPU": SECONDS, "AS": 2**30, "FSIZE": 2**20, "NOFILE": 32, "CORE": 0}
WALLS = ("files", "system calls")
UNWALLED = b"no walls"
"""Sent in place of a verdict: walls are missing, and nothing was run."""
_READABLE = (
    sys.base_prefix,
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/urandom",
)
_READ_FILE, _READ_DIR, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
# Numbers of system calls: x86_64, aarch64 (which lacks the oldest ones).
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "socket": (41, 198), "socketpair": (53, 199), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "mount_setattr": (442, 442), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "memfd_create": (319, 279),
    "prlimit64": (302, 261), "setrlimit": (160, 164), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88),
    "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "reboot": (169, 142), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "swapon": (167, 224), "sethostname": (170, 161),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "syslog": (103, 116), "quotactl": (179, 60),
    "setpriority": (141, 140), "setsid": (112, 157), "setpgid": (109, 154),
}  # fmt: skip
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


@cache
def _libc() -> ctypes.CDLL:
    """The C library, loaded only inside the process that is walled off, since Windows has none of this kind."""
    return ctypes.CDLL(None, use_errno=True)


def limit() -> dict[str, str]:
    """Limit time, memory, file size, open files and core dumps; return the limits that could not be set, and why."""
    import resource

    missing = {}
    for kind, most in LIMITS.items():
        try:
            which = getattr(resource, f"RLIMIT_{kind}")
            _, hard = resource.getrlimit(which)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # keep a lower existing limit
            resource.setrlimit(which, (most, most))
        except (OSError, ValueError, AttributeError) as error:
            missing[f"limit of {kind}"] = str(error)
    return missing


def _called(name: str, result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def wall_off_files() -> None:
    """Forbid all writing, and reading anything but Python and the libraries that it needs."""
    abi = _called("landlock", _libc().syscall(444, None, 0, 1))
    handled = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    attribute = struct.pack("Q", handled)
    rules = _called("landlock", _libc().syscall(444, attribute, len(attribute), 0))
    for path in _READABLE:
        if not os.path.exists(path):  # noqa: PTH110 - nothing is imported here that is not needed
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ_FILE | _EXECUTE | (_READ_DIR if os.path.isdir(path) else 0)  # noqa: PTH112
        _called("landlock", _libc().syscall(445, rules, 1, struct.pack("=Qi", allowed, place), 0))
        os.close(place)
    _called("landlock", _libc().syscall(446, rules, 0))
    os.close(rules)
    for path, flags in (("/etc/passwd", os.O_RDONLY), ("/proc/self/environ", os.O_RDONLY), ("/", os.O_RDONLY)):
        _must_fail(f"open {path}", partial(_open, path, flags))
    _must_fail("write", partial(_open, "a-file", os.O_WRONLY | os.O_CREAT))


def wall_off_calls() -> None:
    """Forbid the system calls for other processes, sockets, signals, rights and settings."""
    which, arch = _ARCHES[platform.machine()]
    numbers = sorted({number for pair in _CALLS.values() if (number := pair[which]) is not None})
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    refuse, allow, end = 0x00050000 | 1, 0x7FFF0000, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, end), (load, 0, 0, 0)]
    program += [(above, len(numbers) + 1, 0, 0x40000000)]  # the x32 ABI, which numbers calls differently
    program += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _called("seccomp", _libc().prctl(22, 2, ctypes.c_char_p(header), 0, 0))
    _must_fail("fork", _fork)
    _must_fail("socket", lambda: _called("socket", _libc().socket(2, 1, 0)))
    _must_fail("kill", lambda: os.kill(os.getppid(), 0))


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _must_fail(what: str, attempt: Callable[[], Any]) -> None:
    """Try what a wall must prevent: having requested a wall does not prove that it holds."""
    try:
        attempt()
    except OSError:
        return
    raise OSError(f"{what} is still possible")


def build() -> dict[str, str]:
    """Set the limits and build the walls; return those that failed, with the reason."""
    missing = limit()
    os.environ.clear()
    for name, make in zip(WALLS, (wall_off_files, wall_off_calls), strict=True):
        try:
            if sys.platform != "linux":
                raise OSError("only Linux has it")
            _called("no new rights", _libc().prctl(38, 1, 0, 0, 0))
            make()
        except (OSError, KeyError, ValueError, AttributeError) as error:
            missing[name] = str(error)
    return missing


# ---- values between the two processes: rebuilt from plain types, so that no object is passed on


def encoded(value: Any) -> Any:
    """Encode a value as JSON that `decoded` reads.

    Raises:
        TypeError: the type is not exactly one of Python's own plain types.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind in (int, float, complex):
        return {"n": repr(value)}
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__[0]: [encoded(each) for each in value]}
    if kind is dict:
        return {"d": [[encoded(key), encoded(each)] for key, each in value.items()]}
    if kind is bytes:
        return {"b": value.hex()}
    raise TypeError(f"a {kind.__name__}")


def decoded(data: Any) -> Any:
    """Decode a value from `encoded`."""
    if data is None or isinstance(data, bool | str):
        return data
    [(kind, inside)] = data.items()
    if kind == "n":
        return complex(inside) if "j" in inside else float(inside) if set(inside) & set(".einf") else int(inside)
    if kind == "d":
        return {decoded(key): decoded(each) for key, each in inside}
    if kind == "b":
        return bytes.fromhex(inside)
    return {"l": list, "t": tuple, "s": set, "f": frozenset}[kind](decoded(each) for each in inside)


def serve(source: int, request_fd: int, reply_fd: int) -> None:
    """The role of the answer: run its definitions, then call its function on request."""
    text, name = _source(source)
    requests, replies = os.fdopen(request_fd, "r"), os.fdopen(reply_fd, "w")
    scope: dict[str, Any] = {"__name__": "answer"}
    exec(compile(text, "answer", "exec"), scope)
    function = scope[name]
    for line in requests:
        try:
            reply = {"ok": encoded(function(*decoded(json.loads(line))))}
        except Exception as error:
            reply = {"error": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def judge(source: int, reply_fd: int, request_fd: int, verdict: int) -> None:
    """The role of the tests: call the answer, compare, and send a verdict over a pipe that the answer cannot reach."""
    text, name = _source(source)
    replies, requests = os.fdopen(reply_fd, "r"), os.fdopen(request_fd, "w")

    def candidate(*args: Any) -> Any:
        requests.write(json.dumps(encoded(args)) + "\n")
        requests.flush()
        reply = json.loads(replies.readline())
        if "ok" in reply:
            return decoded(reply["ok"])
        raise Exception(str(reply["error"]))

    scope: dict[str, Any] = {"__name__": "tests"}
    exec(compile(text, "tests", "exec"), scope)
    scope[name] = candidate  # tests that call the function by its own name reach the answer too
    scope["check"](candidate)
    os.write(verdict, b"passed")


def _source(handle: int) -> tuple[str, str]:
    with os.fdopen(handle, "r") as file:
        module = json.load(file)
    return module["text"], module["name"]


def probe() -> None:
    """Print the walls that this system does not provide."""
    print(json.dumps(build()))


def main() -> None:
    """Take a role: build the walls, then read the source from an inherited handle and run it behind them."""
    role, *handles = sys.argv[1:]
    if role == "probe":
        probe()
        return
    missing = build()
    if missing and role[-1] != "!":
        if role == "judge":
            os.write(int(handles[-1]), UNWALLED)  # before any of the code could write a verdict
        sys.exit(3)
    if role.rstrip("!") == "serve":
        serve(*map(int, handles))
    else:
        judge(*map(int, handles))


if __name__ == "__main__":
    main()
