"""Two tokenizers in one pair: which of the target's tokens the draft model can produce, and how it reads their text.

Everything except the draft model uses the target's tokens: strategies, rules, kernels, traces. The draft model is
wrapped in a runner (`translated_runner`) that owns a `Translation`; its input and output are the only places where
tokens are translated:

- **Output** (token-level intersection, TLI; Timor et al. 2025, arXiv 2502.05202). I is the set of tokens whose bytes
  are a token in both vocabularies. The logits of the draft's tokens in I are moved to the target's ids of these
  tokens, with minus infinity elsewhere, so that q is the draft's distribution conditioned on I. The target is never
  masked. Speculation is exact for any q that drafts are drawn from, including this one. Probabilities of draft tokens
  with the same bytes are added. `q(I)`, the draft's mass on I, is the share of its original distribution that remains.
- **Input.** A token of I is read as one draft token. Any other is read as the draft's tokens for its bytes, each token
  separately. The draft's input is therefore a function of the target's tokens alone, independent of what was drafted
  and where rounds began, so that q depends only on the prefix and the law of every rule stays that of a token cascade.
  New tokens are appended to the input and never change it, so the cache can be rewound exactly to any target token. The
  price is that the draft may read a word in other pieces than its own tokenizer would split it into. The prompt is the
  exception: it is known from the start and is encoded as a whole, between its special tokens.

Special tokens stand for a role, not for their name. Tokens of the same name that are special in both vocabularies are
one token; tokens that end texts map to tokens that end texts, and tokens that begin texts to tokens that begin texts.
A special token that the draft lacks is read as the text of its name. A begin-of-text token is dropped if the draft has
none; if the draft's tokenizer adds one, it is inserted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cascli.errors import ConfigError
from cascli.models.contents import Contents
from cascli.sampling.distributions import wide
from cascli.weights.home import cache_home

LEAST = 0.1
"""Least share of the draft's tokens that the target must have too; below it hardly a word could be drafted."""
_FORMAT = 1


class Vocabulary:
    """One model's side: its tokens, and which of them have a role."""

    def __init__(self, contents: Contents, ends: Iterable[int]) -> None:
        """Take the contents, and the ids that end texts according to the model, in addition to its tokenizer's."""
        self.contents, self.size, self.special = contents, contents.size, contents.special
        tokenizer = contents.tokenizer
        main = contents.known(tokenizer.eos_token_id)
        self.ends = sorted({*ends, *([] if main is None else [main])} & self.special)
        self.end = main if main in self.ends else next(iter(self.ends), None)
        self.begin = contents.known(tokenizer.bos_token_id)
        """The token that begins texts; None if there is none."""
        unknown = contents.known(tokenizer.unk_token_id)
        self.filler = next(token for token in (unknown, self.end, 0) if token is not None)
        """The token to read where the translation would be empty."""

    @property
    def begins(self) -> bool:
        """Whether the tokenizer automatically puts the `begin` token before a text."""
        return self.begin is not None and list(self.contents.tokenizer("")["input_ids"])[:1] == [self.begin]


class Translation:
    """From the draft's logits to the target's tokens, and from the target's text to the draft's tokens."""

    def __init__(self, draft: Vocabulary, target: Vocabulary, cache_file: Path | None = None) -> None:
        """Find the tokens that both have; `cache_file` is a file that caches them.

        Raises:
            ConfigError: they are too few to draft with.
        """
        self.draft, self.target = draft, target
        pairs = None if cache_file is None else _load_pairs(cache_file)
        if pairs is None:
            pairs = torch.tensor(_pairs(draft, target), dtype=torch.long).reshape(-1, 2)
            if cache_file is not None:
                _save_pairs(cache_file, pairs)
        self.shared = len(pairs[:, 1].unique())
        """Number of the target's tokens that the draft can produce."""
        if self.shared < LEAST * draft.size:
            raise ConfigError(
                f"the models' tokenizers differ: they share {self.shared:,} tokens, of the draft's {draft.size:,} and"
                f" the target's {target.size:,};\nthis is too few to draft with. Choose models of one family, or the"
                " target alone with draft=prompt-lookup."
            )
        self._parts = _in_parts(pairs)
        self._read: dict[int, tuple[int, ...]] = {}

    def check_cut(self, kept: Sequence[int], key: str) -> None:
        """Reject a cut of the draft's head that leaves too few tokens which the target has too.

        Raises:
            ConfigError: they are too few; `key` is what requested the cut.
        """
        shared = self.shared_among(torch.tensor(kept))
        if shared < LEAST * len(kept):
            raise ConfigError(
                f"{key}: of the {len(kept):,} tokens it keeps, the target has {shared:,};"
                "\nthis is too few to draft with."
            )

    def shared_among(self, kept: Tensor) -> int:
        """Number of target tokens that the draft can produce if only `kept` `[n]` of its own tokens are left."""
        producible = [theirs[torch.isin(ours, kept)] for ours, theirs in self._parts_on(kept.device)]
        return len(torch.cat(producible).unique())

    def logits(self, own: Tensor) -> Tensor:
        """The draft's logits `[n, V_draft]` as logits `[n, V]` of the target's tokens (float32 or wider)."""
        own = wide(own)
        out = own.new_full((own.shape[0], self.target.size), -torch.inf)
        for i, (ours, theirs) in enumerate(self._parts_on(own.device)):
            values = own.index_select(1, ours)
            out.index_copy_(1, theirs, torch.logaddexp(out.index_select(1, theirs), values) if i else values)
        return out

    def share(self, own: Tensor) -> Tensor:
        """q(I): mass `[n]` of the draft's logits `[n, V_draft]` on tokens that both have."""
        ids = torch.cat([ours for ours, _ in self._parts_on(own.device)])
        return wide(own).softmax(dim=-1).index_select(1, ids).sum(dim=-1).clamp_max(1.0)

    def _parts_on(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        if self._parts[0][0].device != device:
            self._parts = [(ours.to(device), theirs.to(device)) for ours, theirs in self._parts]
        return self._parts

    @cached_property
    def _direct(self) -> dict[int, int]:
        """The draft's token for each target token that it can produce."""
        ours, theirs = self._parts[0]
        return dict(zip(theirs.tolist(), ours.tolist(), strict=True))

    def read(self, token: int) -> tuple[int, ...]:
        """The draft tokens that are read for one of the target's tokens: at least one."""
        if token not in self._read:
            own = self._direct.get(token)
            self._read[token] = self._spelled(token) if own is None else (own,)
        return self._read[token]

    def _spelled(self, token: int) -> tuple[int, ...]:
        """The draft's tokens for one that it lacks: by its role, else by its bytes, else by its name."""
        draft, theirs = self.draft, self.target.contents
        for same, own in ((token == self.target.begin, draft.begin), (token in self.target.ends, draft.end)):
            if same and own is not None:
                return (own,)
        data = theirs.bytes_of(token)
        return tuple(draft.contents.encode(theirs.name(token).encode() if data is None else data)) or (draft.filler,)

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """Translate a text to draft tokens, encoding it as a whole between its special tokens; at least one token."""
        own: list[int] = []
        data = b""
        for token in tokens:
            more = self.target.contents.bytes_of(token)
            if more is not None:
                data += more
                continue
            own += self.draft.contents.encode(data)
            data = b""
            if token != self.target.begin or token in self._direct or self.draft.begin is not None:
                own += self.read(token)
        own += self.draft.contents.encode(data)
        begin = self.draft.begin if self.draft.begins else None
        return ([] if begin is None or own[:1] == [begin] else [begin]) + own or [self.draft.filler]


def _pairs(draft: Vocabulary, target: Vocabulary) -> list[tuple[int, int]]:
    """Draft tokens paired with the target token of the same role or bytes; of several, the usual one comes first."""
    names = {target.contents.name(token): token for token in target.special}
    pairs = []
    for token in sorted(draft.special, key=lambda token: (token != draft.end, token)):
        same = names.get(draft.contents.name(token))
        if token in draft.ends and same not in target.ends:
            same = target.end
        if same is not None:
            pairs.append((token, same))
    for data, tokens in draft.contents.tokens.items():
        theirs = target.contents.tokens.get(data)
        if theirs:
            pairs += [(token, theirs[0]) for token in tokens]
    return pairs


def _in_parts(pairs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split the pairs `[n, 2]` into the fewest parts in which no target token occurs twice, as two columns each."""
    seen: Counter[int] = Counter()
    parts: list[list[int]] = []
    for place, token in enumerate(pairs[:, 1].tolist()):
        if seen[token] == len(parts):
            parts.append([])
        parts[seen[token]].append(place)
        seen[token] += 1
    return [(pairs[part, 0].contiguous(), pairs[part, 1].contiguous()) for part in parts]


def file_for(draft: Path, target: Path, sides: Sequence[Vocabulary]) -> Path | None:
    """The cache file for two tokenizers' common tokens, given their folders; None if a tokenizer.json is missing."""
    known = [(side.size, side.ends, side.end, sorted(side.special)) for side in sides]
    digest = hashlib.sha256(f"{_FORMAT} {known}".encode())
    for folder in (draft, target):
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return cache_home() / "translations" / f"{digest.hexdigest()[:16]}.safetensors"


def _load_pairs(file: Path) -> Tensor | None:
    """The cached pairs `[n, 2]`; None if there is no readable file."""
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
        return cast(Tensor, opened.get_tensor("pairs"))
    return None


def _save_pairs(file: Path, pairs: Tensor) -> None:
    """Cache the pairs, writing the file atomically; if it cannot be written, it is skipped."""
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file({"pairs": pairs}, partial)
        partial.replace(file)
