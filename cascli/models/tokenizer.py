"""Tokenizers: the built-in byte tokenizer, and the check that two models use the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascli.errors import ConfigError
from cascli.files import printed

END_OF_TEXT = "<|endoftext|>"


def byte_tokenizer() -> Any:
    """A tokenizer whose ids 0 to 255 are the bytes, followed by an end-of-text token (257 in all)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={char: byte for byte, char in byte_alphabet().items()}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END_OF_TEXT)


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level tokenizers (GPT-2) use for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def shared_ids(draft: Any, target: Any) -> int | None:
    """Number of ids that two tokenizers share; None if any common id stands for different tokens."""
    common = min(len(draft), len(target))
    ids = list(range(common))
    return common if draft.convert_ids_to_tokens(ids) == target.convert_ids_to_tokens(ids) else None


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of tokens that stand for no text: end of text, start of a turn, and others with a role."""
    # A token that only tokenizer.json calls special is not in `all_special_ids`; one without an id is there as None.
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return added.union(token for token in tokenizer.all_special_ids if token is not None)


def ids_of(value: object) -> frozenset[int]:
    """The ids in a config's `eos_token_id`, which is None, one id, or several.

    Raises:
        ConfigError: it is anything else.
    """
    ids = value if isinstance(value, list | tuple | set) else [] if value is None else [value]
    if not all(isinstance(each, int) for each in ids):
        raise ConfigError(f"eos_token_id: {printed(value)} is neither an id nor a list of ids")
    return frozenset(ids)


def same_file(a: Path, b: Path) -> bool:
    """Whether both folders hold the same tokenizer file, in which case the second need not be read."""
    files = [place / "tokenizer.json" for place in (a, b)]
    return a == b or (all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes())


def token_id(tokenizer: Any | None, token: str | int, vocab: int) -> int | None:
    """The id of a token given by name or by id; None if it is not one of the first `vocab` ids."""
    if isinstance(token, str):
        if tokenizer is None:
            return None
        candidate = tokenizer.convert_tokens_to_ids(token)
        if (
            candidate is None or tokenizer.convert_ids_to_tokens(candidate) != token
        ):  # then `candidate` is the unknown token
            return None
        token = int(candidate)
    return token if 0 <= token < vocab else None
