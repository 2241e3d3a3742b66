"""What the tokens of a vocabulary stand for, in bytes, and texts as its tokens: how two tokenizers are held together.

Vocabularies write the same token in different ways: `Ġthe` in a byte-level one, where a letter stands for each byte,
`▁the` in a sentencepiece one, where `<0xE6>` is a byte that no piece has. Both are the bytes of " the" here. A token
may be a part of a character, so texts are bytes too.
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
"""From a token's name in the vocabulary to its bytes."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GUARD = b"\n"
_LONGEST = 64
"""Bytes of a token that a text is put together from; longer ones are runs of spaces and dashes."""
_NONE = 1000
"""A byte that no token has weighs as much as so many tokens."""


class Contents:
    """A tokenizer's tokens by their bytes. Special tokens stand for no text, and have none."""

    def __init__(self, tokenizer: Any, rows: int | None = None) -> None:
        """Take a transformers tokenizer; its vocabulary is read when it is asked for.

        Ids from `rows` on, which its model cannot read, are no tokens of it.

        Raises:
            ConfigError: the vocabulary is neither a byte-level nor a sentencepiece one.
        """
        self.tokenizer = tokenizer
        self.size = len(tokenizer) if rows is None else min(len(tokenizer), rows)
        self.special = {token for token in special_ids(tokenizer) if token < self.size}
        self._added = {token: said.content for token, said in tokenizer.added_tokens_decoder.items()}
        self._spell = _speller(tokenizer)

    def name(self, token: int) -> str:
        """As the vocabulary writes it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def known(self, token: int | None) -> int | None:
        """A token of a role, if the tokenizer has one and the model can read it."""
        return token if token is not None and token < self.size else None

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of a token; None if it stands for none."""
        if token in self.special or token >= self.size:
            return None
        added = self._added.get(token)
        return (self._spell(self.name(token)) if added is None else added.encode()) or None

    @cached_property
    def tokens(self) -> dict[bytes, list[int]]:
        """The tokens of the same bytes, the one that texts are made of first: `A`, then `<0x41>`; then by id."""
        found = defaultdict(list)
        for name, token in self.tokenizer.get_vocab().items():
            there = token < self.size and token not in self.special and token not in self._added
            data = self._spell(name) if there else None
            if data:
                found[data].append(token)
        for token, content in self._added.items():
            if token < self.size and token not in self.special and content:
                found[content.encode()].append(token)
        for tokens in found.values():
            if len(tokens) > 1:
                tokens.sort(key=lambda token: (_BYTE.fullmatch(self.name(token)) is not None, token))
        return dict(found)

    def spelling(self, tokens: Iterable[int]) -> bytes | None:
        """The bytes of a text; None if one of its tokens stands for none."""
        parts = [self.bytes_of(token) for token in tokens]
        return None if None in parts else b"".join(part for part in parts if part is not None)

    def encode(self, data: bytes) -> list[int]:
        """A text, or a part of one, as tokens: the tokenizer's own, wherever they spell these very bytes.

        A tokenizer may put a space before a text's first word or bring its characters into another form. Then it is
        asked for the text after a line end, and failing that the fewest tokens are taken, as they are of a part of a
        character. A byte that no token has becomes the unknown token, or nothing.
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
        """How many tokens `before` has, with a space that was put in front of it."""
        done = b""
        for i, token in enumerate(tokens):
            if done.strip(b" ") == before and (done or not before):
                return i
            done += self.bytes_of(token) or b""
        return len(tokens) if before else 0

    def _fewest(self, data: bytes) -> list[int]:
        """The fewest tokens of these bytes, by dynamic programming over where the last one begins."""
        unknown = self.known(self.tokenizer.unk_token_id)
        none = () if unknown is None else (unknown,)
        best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]  # tokens so far; the last one's start, and itself
        for end in range(1, len(data) + 1):
            options = [(best[end - 1][0] + _NONE, end - 1, none)]
            for start in range(max(0, end - _LONGEST), end):
                found = self.tokens.get(data[start:end])
                if found:
                    options.append((best[start][0] + 1, start, (found[0],)))
            best.append(min(options, key=lambda option: option[0]))
        text: list[int] = []
        end = len(data)
        while end:
            _, end, last = best[end]
            text[:0] = last
        return text


def _speller(tokenizer: Any) -> Spell:
    """What tells a token's bytes from its name.

    Raises:
        ConfigError: the vocabulary is of a kind that this does not know.
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
    """A character for each byte, as bytes; None for a text of other characters."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _space_of(step: dict[str, Any]) -> str | None:
    """What stands for a space in the names of a sentencepiece vocabulary."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step.get("content") == " ":
        return str(step["pattern"].get("String", "")) or None
    return None
