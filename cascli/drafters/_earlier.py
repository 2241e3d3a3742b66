"""Find earlier occurrences of the tokens that end a text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

_WIDTH = array("q").itemsize


def packed(text: Sequence[int]) -> bytes:
    """Token ids as bytes, which are fast to search."""
    return array("q", text).tobytes()


def places(data: bytes, n: int) -> Iterator[int]:
    """Yield the positions of tokens that follow earlier occurrences of a packed text's last n tokens, latest first.

    An occurrence may overlap the end itself, as in a repetition.
    """
    last, end = data[-n * _WIDTH :], len(data) - _WIDTH
    while n * _WIDTH < len(data) and (at := data.rfind(last, 0, end)) >= 0:
        if at % _WIDTH == 0:
            yield at // _WIDTH + n
        end = at + len(last) - 1  # search further left, also after a match that straddles tokens
