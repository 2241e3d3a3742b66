"""Random changes of bytes, and of the values in a JSON or YAML document."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

BYTES = [b"\x00", b"\xff", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\n", b"{", b"[", b'"', b"9" * 5000]
NUMBERS = [0, 1, -1, 2, 255, 256, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**6, 10**9]
VALUES: list[Any] = [
    *NUMBERS, None, True, False, "", "x", "\x1b[2J", "\u202e", "[/nope]", "../../..", "/dev/zero", "a" * 5000, 0.5,
    -0.5, 1e308, -1e-308, float("inf"), float("nan"), [], {}, [[]], {"": None}, [None] * 50, {"a": {"b": {}}}, "1..9",
    "{x}", "{}", "{1..99}", "auto", "main", -(10**12), 10**400,
]  # fmt: skip


def of_bytes(data: bytes, random: Random, *, within: int | None = None) -> bytes:
    """Make a few changes of bytes, all within the first `within` bytes if given."""
    found = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        most = min(len(found), within or len(found)) or 1
        place, length = random.randrange(most), random.choice([1, 1, 2, 4, 8, 64])
        match random.randrange(7):
            case 0 if found:
                found[min(place, len(found) - 1)] ^= 1 << random.randrange(8)
            case 1:
                found[place : place + length] = random.randbytes(length)
            case 2:
                found[place : place + 8] = (random.choice(NUMBERS) % 2**64).to_bytes(8, "little")
            case 3:
                found[place : place + 4] = (random.choice(NUMBERS) % 2**32).to_bytes(4, "little")
            case 4:
                del found[place : place + length]
            case 5:
                found[place:place] = random.choice(BYTES)
            case _:
                del found[random.randrange(len(found) or 1) :]
    return bytes(found)


def of_tree(tree: Any, random: Random) -> Any:
    """Make a few changes of values, keys and structure."""
    found = copy.deepcopy(tree)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = list(_places(found))
        if not places:
            return random.choice(VALUES)
        owner, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[random.choice(["", "x", "\x1b", "draft", str(key) + "s"])] = owner.pop(key)
            case 2:
                other, there = random.choice(places)
                owner[key] = copy.deepcopy(other.get(there) if isinstance(other, dict) else other[there % len(other)])
            case 3 if isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
                owner[key] = random.choice(NUMBERS) * random.choice([1, -1])
            case _:
                owner[key] = copy.deepcopy(random.choice(VALUES))
    return found


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every position of a value in the tree: its container, and its key or index."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        owner = waiting.pop()
        keys = list(owner) if isinstance(owner, dict) else range(len(owner)) if isinstance(owner, list) else []
        for key in keys:
            found.append((owner, key))
            waiting.append(owner[key])
    return found
