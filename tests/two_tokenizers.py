"""Small tokenizers of several kinds, and pairs whose models have one each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cascli.models.tokenizer import byte_alphabet
from tests.pairs import model

SPACE = "▁"


def byte_level(tokens: Sequence[str], special: Sequence[str] = (), **roles: str) -> Any:
    """A tokenizer whose ids are these texts (letters of the byte alphabet) in order, followed by the special ones."""
    core = Tokenizer(models.BPE(vocab=_numbered(tokens), merges=_merges(tokens)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _made(core, special, roles)


def pieces(tokens: Sequence[str], special: Sequence[str] = (), *, prefix: bool = True, **roles: str) -> Any:
    """A sentencepiece vocabulary like Llama 2's: `▁` for a space, prepended to every text; `<0xE6>` for bytes."""
    core = Tokenizer(models.BPE(vocab=_numbered(tokens), merges=_merges(tokens), byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _made(core, special, roles)


def _made(core: Tokenizer, special: Sequence[str], roles: dict[str, str]) -> Any:
    core.add_special_tokens([AddedToken(name, special=True) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, **roles)


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate(tokens)}


def _merges(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """A merge for every token that is the concatenation of two others, in their order."""
    known = set(tokens)
    whole = [token for token in tokens if len(token) > 1 and not token.startswith("<0x")]
    found = []
    for token in whole:
        cut = next((i for i in range(len(token) - 1, 0, -1) if token[:i] in known and token[i:] in known), None)
        if cut is not None:
            found.append((token[:cut], token[cut:]))
    return found


def letters(text: str) -> str:
    """A text in the letters of a byte-level vocabulary."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def pair_of(folder: Path, draft: Any, target: Any, seed: int = 1, **more: Any) -> dict[str, Any]:
    """Random models with these tokenizers, which are saved to `folder`; `more` changes both models' configs."""
    pair: dict[str, Any] = {"name": "two-tokenizers"}
    for number, (role, tokenizer) in enumerate((("draft", draft), ("target", target)), seed):
        tokenizer.save_pretrained(folder / role)
        made = model(number, len(tokenizer), **more)
        made["source"]["tokenizer"] = str(folder / role)
        pair[role] = made
    return pair
