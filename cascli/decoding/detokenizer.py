"""Token ids to text, for traces and while streaming. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from cascli.models.tokenizer import special_ids

BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONG = 12
"""After this many tokens without a complete character, they cannot all belong to one."""
_UNSETTLED = 3
"""Maximum number of bytes of a character whose last byte is still missing."""


class Speller:
    """Spells tokens with a tokenizer, or as `<id>` if there is none."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self.token = lru_cache(maxsize=4096)(self._token)

    def _token(self, token: int) -> str:
        """One token on its own; bytes that are not a whole character show as the replacement character."""
        return self.text([token], special=True)

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of several tokens, without markup unless `special`."""
        if self._tokenizer is None:
            return "".join(f"<{token}>" for token in ids)
        return self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def markup(self, texts: Collection[str]) -> frozenset[int]:
        """The ids of those texts that are markup (`<|im_end|>`), which never shows in an answer's text."""
        if self._tokenizer is None or not texts:
            return frozenset()
        special = list(special_ids(self._tokenizer))
        names = self._tokenizer.convert_ids_to_tokens(special)
        return frozenset(token for token, name in zip(special, names, strict=True) if name in texts)


class Stream:
    """Turns a growing list of ids into text pieces; a character is held back until all its bytes have arrived.

    Only the last few tokens are decoded at each step, so the cost of a step does not grow. They begin between two
    characters: of a run of byte tokens (`<0xE6>`), a tokenizer may decode all or none.
    """

    def __init__(self, speller: Speller) -> None:
        self._speller = speller
        self._window: list[int] = []
        self._shown = ""
        """What has been shown of the window's text."""
        self._ends: list[int] = []
        """Numbers of the window's tokens after which all characters were complete; the last one is what was shown."""

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._window.append(token)
        whole = self._speller.text(self._window)
        if whole.endswith(BROKEN):
            return self._settled(whole) if len(self._window) >= _LONG else ""
        piece = self._new(whole, len(self._window))
        self._ends.append(len(self._window))
        if len(self._window) >= 8:
            most = len(self._window) - 4
            start = max((end for end in self._ends if end <= most), default=most)
            self._window = self._window[start:]
            self._ends = [end - start for end in self._ends if end > start]
            whole = self._speller.text(self._window)
        self._shown = whole
        return piece

    def _new(self, text: str, count: int) -> str:
        """The part of the text of the window's first tokens that has not been shown.

        A tokenizer that decodes a run of bytes as a whole no longer spells what was shown once a broken byte follows.
        """
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        return self._speller.text(self._window[self._ends[-1] : count])

    def _settled(self, whole: str) -> str:
        """The part of a long run of broken characters that can no longer change: all but what the last tokens begin."""
        count = len(self._window) - _UNSETTLED
        before = self._speller.text(self._window[:count])
        if (self._ends and count < self._ends[-1]) or not whole.startswith(before):
            return ""  # what has been shown stays shown
        piece = self._new(before, count)
        self._window = self._window[-_UNSETTLED - 4 :]
        self._ends = [len(self._window) - _UNSETTLED]
        self._shown = self._speller.text(self._window[:-_UNSETTLED])
        return piece

    def flush(self) -> str:
        """The held-back part of an unfinished character, at the end of the text."""
        return self._new(self._speller.text(self._window), len(self._window))


class StopStrings:
    """Passes a growing text on until a stop string appears; holds back what might be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._hold = max(map(len, self._stops), default=1) - 1
        self.pending = ""
        """The text that is held back."""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string was found (it is not shown)."""
        self.pending += piece
        place = self.find(self.pending)
        if place is not None:
            shown, self.pending = self.pending[:place], ""
            return shown, True
        keep = min(self._hold, len(self.pending))
        cut = len(self.pending) - keep
        shown, self.pending = self.pending[:cut], self.pending[cut:]
        return shown, False

    def flush(self) -> str:
        """The held-back text, at the end."""
        shown, self.pending = self.pending, ""
        return shown

    def find(self, text: str) -> int | None:
        """Where the earliest stop string begins, or None."""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return min(places, default=None)
