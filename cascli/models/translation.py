"""Two tokenizers in one pair: what the draft model can say of the target's tokens, and what it reads of its text.

Everything but the draft model speaks the target's tokens: strategies, rules, kernels, traces. The draft model is
wrapped in a runner (`translated_runner`) that owns a `Translation` and translates at both of its ends, nowhere else:

- **What it says** (token-level intersection, TLI; Timor et al. 2025, arXiv 2502.05202). I is the set of tokens whose
  bytes are a token of both vocabularies. The logits of the draft's tokens in I are put where the target has these
  tokens, minus infinity elsewhere, so that q is the draft's distribution given I. The target is never masked. All of
  speculation is exact for any q that drafts are drawn from, so it is for this one. Draft tokens of the same bytes add
  up. `q(I)`, how much of the draft's mass lies in I, says how much of what it would have said is left.
- **What it reads.** A token of I is one token of the draft's. Any other is read as the draft's own tokens of its
  bytes, each token by itself: what is read is a function of the target's tokens alone, whatever was drafted where
  rounds began, so that q depends on the prefix only and the law of every rule stays a token cascade's. More tokens
  append to what was read and never change it, so the cache rewinds to any of the target's tokens exactly. The price is
  that the draft may read a word in other pieces than it would have cut it into. The prompt is the exception: it is
  there from the start, and is encoded as a whole, between its special tokens.

Special tokens stand for a role and not for their name: those of one name that are special in both are one token; what
ends texts maps to what ends texts, what begins them to what begins them. A special token that the draft has not is read
as the text of its name; a beginning that it does not know is left out, and its own is put in.
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
"""The share of the draft's tokens that the target must have too: below it hardly a word could be drafted."""
_FORMAT = 1


class Vocabulary:
    """One model's side: its tokens, and which of them have a role."""

    def __init__(self, contents: Contents, ends: Iterable[int]) -> None:
        """Take the contents, and what the model says ends its texts beside what its tokenizer says."""
        self.contents, self.size, self.special = contents, contents.size, contents.special
        tokenizer = contents.tokenizer
        main = contents.known(tokenizer.eos_token_id)
        self.ends = sorted({*ends, *([] if main is None else [main])} & self.special)
        self.end = main if main in self.ends else next(iter(self.ends), None)
        self.begin = contents.known(tokenizer.bos_token_id)
        """Which token begins texts; None if there is none."""
        unknown = contents.known(tokenizer.unk_token_id)
        self.filler = next(token for token in (unknown, self.end, 0) if token is not None)
        """What is read where there is nothing to read."""

    @property
    def begins(self) -> bool:
        """Whether the tokenizer puts that token before a text by itself."""
        return self.begin is not None and list(self.contents.tokenizer("")["input_ids"])[:1] == [self.begin]


class Translation:
    """From the draft's logits to the target's tokens, and from the target's text to the draft's tokens."""

    def __init__(self, draft: Vocabulary, target: Vocabulary, keep: Path | None = None) -> None:
        """Find what both can say; `keep` is a file where that is found again.

        Raises:
            ConfigError: it is too little to draft with.
        """
        self.draft, self.target = draft, target
        pairs = None if keep is None else _kept(keep)
        if pairs is None:
            pairs = torch.tensor(_pairs(draft, target), dtype=torch.long).reshape(-1, 2)
            if keep is not None:
                _keep(keep, pairs)
        self.shared = len(pairs[:, 1].unique())
        """How many of the target's tokens the draft can say."""
        if self.shared < LEAST * draft.size:
            raise ConfigError(
                f"the models' tokenizers differ: they share {self.shared:,} tokens, of the draft's {draft.size:,} and"
                f" the target's {target.size:,};\nthis is too few to draft with. Choose models of one family, or the"
                " target alone with draft=prompt-lookup."
            )
        self._parts = _in_parts(pairs)
        self._read: dict[int, tuple[int, ...]] = {}

    def shared_among(self, kept: Tensor) -> int:
        """How many it can say if of its own tokens only `kept` `[n]` are left."""
        said = [theirs[torch.isin(ours, kept)] for ours, theirs in self._on(kept.device)]
        return len(torch.cat(said).unique())

    def logits(self, own: Tensor) -> Tensor:
        """The draft's logits `[n, V_draft]` as logits `[n, V]` of the target's tokens (float32 or wider)."""
        own = wide(own)
        out = own.new_full((own.shape[0], self.target.size), -torch.inf)
        for i, (ours, theirs) in enumerate(self._on(own.device)):
            said = own.index_select(1, ours)
            out.index_copy_(1, theirs, torch.logaddexp(out.index_select(1, theirs), said) if i else said)
        return out

    def share(self, own: Tensor) -> Tensor:
        """q(I): how much mass `[n]` of the draft's logits `[n, V_draft]` is on tokens that both can say."""
        said = torch.cat([ours for ours, _ in self._on(own.device)])
        return wide(own).softmax(dim=-1).index_select(1, said).sum(dim=-1).clamp_max(1.0)

    def _on(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        if self._parts[0][0].device != device:
            self._parts = [(ours.to(device), theirs.to(device)) for ours, theirs in self._parts]
        return self._parts

    @cached_property
    def _one(self) -> dict[int, int]:
        """The draft's token for each of the target's that it can say."""
        ours, theirs = self._parts[0]
        return dict(zip(theirs.tolist(), ours.tolist(), strict=True))

    def read(self, token: int) -> tuple[int, ...]:
        """What the draft reads of one of the target's tokens: one of its own or more, never none."""
        if token not in self._read:
            own = self._one.get(token)
            self._read[token] = self._spelled(token) if own is None else (own,)
        return self._read[token]

    def _spelled(self, token: int) -> tuple[int, ...]:
        """The draft's tokens for one that it has not: by role, else by its bytes, else by its name."""
        draft, theirs = self.draft, self.target.contents
        for same, own in ((token == self.target.begin, draft.begin), (token in self.target.ends, draft.end)):
            if same and own is not None:
                return (own,)
        data = theirs.bytes_of(token)
        return tuple(draft.contents.encode(theirs.name(token).encode() if data is None else data)) or (draft.filler,)

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """A text of the target's tokens as the draft's own, whole between its special tokens; one token at least."""
        own: list[int] = []
        data = b""
        for token in tokens:
            more = self.target.contents.bytes_of(token)
            if more is not None:
                data += more
                continue
            own += self.draft.contents.encode(data)
            data = b""
            if token != self.target.begin or token in self._one or self.draft.begin is not None:
                own += self.read(token)
        own += self.draft.contents.encode(data)
        begin = self.draft.begin if self.draft.begins else None
        return ([] if begin is None or own[:1] == [begin] else [begin]) + own or [self.draft.filler]


def _pairs(draft: Vocabulary, target: Vocabulary) -> list[tuple[int, int]]:
    """The draft's tokens with the target's of the same role or bytes; of several for one the usual one first."""
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
    """The pairs `[n, 2]` in as few parts as have every one of the target's tokens once at most, as two columns each."""
    seen: Counter[int] = Counter()
    parts: list[list[int]] = []
    for place, token in enumerate(pairs[:, 1].tolist()):
        if seen[token] == len(parts):
            parts.append([])
        parts[seen[token]].append(place)
        seen[token] += 1
    return [(pairs[part, 0].contiguous(), pairs[part, 1].contiguous()) for part in parts]


def file_for(draft: Path, target: Path, sides: Sequence[Vocabulary]) -> Path | None:
    """Where the common tokens of two tokenizers are kept, by their folders; None where there are no such files."""
    known = [(side.size, side.ends, side.end, sorted(side.special)) for side in sides]
    digest = hashlib.sha256(f"{_FORMAT} {known}".encode())
    for folder in (draft, target):
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return cache_home() / "translations" / f"{digest.hexdigest()[:16]}.safetensors"


def _kept(file: Path) -> Tensor | None:
    """The pairs `[n, 2]` that were kept; None if there are none that can be read."""
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
        return cast(Tensor, opened.get_tensor("pairs"))
    return None


def _keep(file: Path, pairs: Tensor) -> None:
    """Keep them, whole or not at all; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file({"pairs": pairs}, partial)
        partial.replace(file)
