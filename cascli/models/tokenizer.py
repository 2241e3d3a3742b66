"""Tokenizers: the built-in byte tokenizer, and the check that two models speak of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascli.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


def byte_tokenizer() -> Any:
    """A tokenizer whose ids 0 to 255 are the bytes, followed by an end-of-text token (257 in all)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={char: byte for byte, char in _byte_alphabet().items()}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END_OF_TEXT)


def _byte_alphabet() -> dict[int, str]:
    """The printable stand-in of every byte that byte-level tokenizers use (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def check_same(draft: Any, target: Any) -> int:
    """Compare two tokenizers by content; return how many ids both have.

    Raises:
        ConfigError: an id stands for different tokens; the first such id and both tokens are named.
    """
    common = min(len(draft), len(target))
    if draft.get_vocab() == target.get_vocab():
        return common
    ids = list(range(common))
    ours, theirs = draft.convert_ids_to_tokens(ids), target.convert_ids_to_tokens(ids)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            raise ConfigError(
                f"the models' tokenizers differ: token {i} is {a!r} for the draft and {b!r} for the target;\n"
                "speculation needs one vocabulary: choose two models of one family."
            )
    return common


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of tokens that stand for no text: ends of texts, beginnings of turns, and others with a role."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(token for token, said in added.items() if said.special)}


def ids_of(value: Any) -> frozenset[Any]:
    """What a config says of `eos_token_id`: nothing, one id, or several."""
    return frozenset(value if isinstance(value, list | tuple | set) else [] if value is None else [value])


def same_file(a: Path, b: Path) -> bool:
    """Whether both folders hold the same tokenizer file, which spares reading the second."""
    files = [place / "tokenizer.json" for place in (a, b)]
    return a == b or (all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes())


def token_id(tokenizer: Any | None, token: str | int, vocab: int) -> int | None:
    """The id of a token by its name in the vocabulary, or by itself; None if it is not one of the first `vocab`."""
    if isinstance(token, str):
        if tokenizer is None:
            return None
        found = tokenizer.convert_tokens_to_ids(token)
        if found is None or tokenizer.convert_ids_to_tokens(found) != token:  # that of unknown tokens
            return None
        token = int(found)
    return token if 0 <= token < vocab else None
