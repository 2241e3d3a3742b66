"""GGUF metadata to a tokenizer, for the byte-level BPE vocabularies of Qwen2 and SmolLM.

The file contains the merges and the vocabulary, but only a name for how text is split before the merges
apply (`tokenizer.ggml.pre`), so each name needs its own recipe. `fast_tokenizer` returns None for other names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cascli.weights.gguf.config import special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def fast_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast | None:
    """Build the tokenizer that the metadata describes; None if the recipe is not known here."""
    from transformers import PreTrainedTokenizerFast

    flags = ("add_bos_token", "add_eos_token", "add_space_prefix")
    plain = not any(metadata.get(f"tokenizer.ggml.{flag}") for flag in flags)
    recipe = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if not plain or recipe not in {("gpt2", "qwen2"), ("gpt2", "smollm")}:
        return None
    tokens = used_tokens(metadata)
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    core = _byte_level(tokens, metadata["tokenizer.ggml.merges"], str(recipe[1]))
    core.add_special_tokens(_added(tokens, kinds, _CONTROL))
    core.add_tokens(_added(tokens, kinds, _USER_DEFINED))
    ids = special_ids(metadata) | {"unk_token_id": metadata.get("tokenizer.ggml.unknown_token_id")}
    named = {name.removesuffix("_id"): tokens[i] for name, i in ids.items() if i is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        additional_special_tokens=[token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL],
        model_max_length=metadata.get(f"{metadata.get('general.architecture')}.context_length", int(1e30)),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def used_tokens(metadata: dict[str, Any]) -> list[str]:
    """The vocabulary without the placeholders that pad it to the row count of the output matrix."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type")
    end = len(tokens)
    while end and (kinds is None or kinds[end - 1] == _UNUSED) and re.fullmatch(r"\[PAD\d+\]", tokens[end - 1]):
        end -= 1
    return tokens[:end]


def _byte_level(tokens: list[str], merges: list[str], pre: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    core.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()
        splitter: Any = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
    else:
        splitter = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "qwen2")
    core.pre_tokenizer = pre_tokenizers.Sequence([splitter, level])
    return core


def _added(tokens: list[str], kinds: list[int], kind: int) -> list[Any]:
    from tokenizers import AddedToken

    special = kind == _CONTROL
    kept = (token for token, token_kind in zip(tokens, kinds, strict=False) if token_kind == kind)
    return [AddedToken(token, normalized=False, special=special) for token in kept]
