"""The bytes that a vocabulary's tokens stand for, and texts as its tokens: the basis for comparing two tokenizers.

Vocabularies spell the same token differently: `Ġthe` in a byte-level one, where each byte has a letter, `▁the` in a
sentencepiece one, where `<0xE6>` is a byte that no piece covers. Here both are the bytes of " the". A token may be
part of a character, so texts are bytes too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from cascli.errors import ConfigError
from cascli.models.tokenizer import byte_alphabet, special_ids

Spell = Callable[[str], bytes | None]
"""Returns a token's bytes by its name in the vocabulary."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GUARD = b"\n"
_LONGEST = 64
"""Most bytes of a token that `_fewest` considers; longer tokens are runs of spaces and dashes."""
_NONE = 1000
"""Cost, in tokens, of a byte that no token has."""


class Contents:
    """A tokenizer's tokens by their bytes. Special tokens stand for no text and have no bytes."""

    def __init__(self, tokenizer: Any, rows: int | None = None) -> None:
        """Wrap a transformers tokenizer; its vocabulary is read on first use.

        Ids of `rows` and above, which its model cannot read, are not treated as tokens.

        Raises:
            ConfigError: the vocabulary is neither a byte-level nor a sentencepiece one.
        """
        self.tokenizer = tokenizer
        self.size = len(tokenizer) if rows is None else min(len(tokenizer), rows)
        self.special = {token for token in special_ids(tokenizer) if token < self.size}
        self._added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}
        self._spell = _speller(tokenizer)

    def name(self, token: int) -> str:
        """The token's name in the vocabulary."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def known(self, token: int | None) -> int | None:
        """The token if there is one (for a role, such as end of text) and the model can read it; otherwise None."""
        return token if token is not None and token < self.size else None

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of a token; None if it has none."""
        if token in self.special or token >= self.size:
            return None
        added = self._added.get(token)
        return (self._spell(self.name(token)) if added is None else added.encode()) or None

    @cached_property
    def tokens(self) -> dict[bytes, list[int]]:
        """Tokens by their bytes: the one used to encode texts first (`A` before `<0x41>`), the others by id."""
        by_bytes = defaultdict(list)
        for name, token in self.tokenizer.get_vocab().items():
            is_regular = token < self.size and token not in self.special and token not in self._added
            data = self._spell(name) if is_regular else None
            if data:
                by_bytes[data].append(token)
        for token, content in self._added.items():
            if token < self.size and token not in self.special and content:
                by_bytes[content.encode()].append(token)
        for tokens in by_bytes.values():
            if len(tokens) > 1:
                tokens.sort(key=lambda token: (_BYTE.fullmatch(self.name(token)) is not None, token))
        return dict(by_bytes)

    def spelling(self, tokens: Iterable[int]) -> bytes | None:
        """The bytes of a text; None if one of its tokens has none."""
        parts = [self.bytes_of(token) for token in tokens]
        return None if None in parts else b"".join(part for part in parts if part is not None)

    def encode(self, data: bytes) -> list[int]:
        """Encode a text or a part of one; uses the tokenizer's own result if it spells exactly these bytes.

        A tokenizer may put a space before the first word or normalize characters. In that case the text is tokenized
        after a line end. If that fails too, or the bytes are not valid UTF-8 (a part of a character), the fewest tokens
        that spell them are used. A byte that no token has becomes the unknown token, or nothing.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self._fewest(data)
        for before in (b"", _GUARD):
            tokens = self.tokenizer(before.decode() + text, add_special_tokens=False)["input_ids"]
            rest = tokens[self._length_of(before, tokens) :]
            if self.spelling(rest) == data:
                return list(rest)
        return self._fewest(data)

    def _length_of(self, before: bytes, tokens: Sequence[int]) -> int:
        """Number of tokens of `before`, including a space that the tokenizer put in front of it."""
        done = b""
        for i, token in enumerate(tokens):
            if done.strip(b" ") == before and (done or not before):
                return i
            done += self.bytes_of(token) or b""
        return len(tokens) if before else 0

    def _fewest(self, data: bytes) -> list[int]:
        """The fewest tokens that spell these bytes, by dynamic programming over the start of the last token."""
        unknown = self.known(self.tokenizer.unk_token_id)
        none = () if unknown is None else (unknown,)
        best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]  # cost so far; the last token's start; the token
        for end in range(1, len(data) + 1):
            options = [(best[end - 1][0] + _NONE, end - 1, none)]
            for start in range(max(0, end - _LONGEST), end):
                matches = self.tokens.get(data[start:end])
                if matches:
                    options.append((best[start][0] + 1, start, (matches[0],)))
            best.append(min(options, key=lambda option: option[0]))
        text: list[int] = []
        end = len(data)
        while end:
            _, end, last = best[end]
            text[:0] = last
        return text


def _speller(tokenizer: Any) -> Spell:
    """The function from a token's name to its bytes.

    Raises:
        ConfigError: the vocabulary is of an unsupported kind.
    """
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    steps = _steps({"type": "nothing"} if decoder is None else json.loads(decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        letters = {ord(letter): byte for byte, letter in byte_alphabet().items()}
        return lambda name: _bytes_of(name.translate(letters))
    space = next((sign for sign in map(_space_of, steps) if sign), None)
    if space is None:
        raise ConfigError(
            f"a tokenizer that decodes by {', '.join(kinds)} cannot be compared with another one;\n"
            "choose models that share a vocabulary."
        )

    def spell(name: str) -> bytes:
        byte = _BYTE.fullmatch(name) if "ByteFallback" in kinds else None
        return bytes([int(byte[1], 16)]) if byte else name.replace(space, " ").encode()

    return spell


def _bytes_of(text: str) -> bytes | None:
    """The bytes of a text with one character per byte; None if it has other characters."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _space_of(step: dict[str, Any]) -> str | None:
    """The character that stands for a space in the names of a sentencepiece vocabulary."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step.get("content") == " ":
        return str(step["pattern"].get("String", "")) or None
    return None
