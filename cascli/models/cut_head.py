"""A draft model's output matrix cut to some of its rows: steps get cheaper, and all other tokens get no probability.

In a small model the output matrix is a quarter of the bytes or more, and most of its rows are for tokens that hardly
ever occur. The remaining rows are multiplied like any layer, packed or not. Their logits are then scattered to their
places among those of all tokens, with minus infinity elsewhere. So q is zero there, and everything computed from q
stays exact: a cut head only drafts worse where one of the missing tokens was due. (FR-Spec, Zhao et al. 2025, does
this for EAGLE heads.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascli.errors import ConfigError, UsageError
from cascli.files import MEGABYTE, text_of

if TYPE_CHECKING:
    from cascli.models.checkpoint import Read
    from cascli.models.eagle3.head import Network

_FILE_BYTES = 16 * MEGABYTE
_CAP = "final_logit_softcapping"


@dataclass(frozen=True)
class Cut:
    """Which rows of an output matrix are kept."""

    ids: tuple[int, ...]
    """Ascending."""
    rows: int
    """Number of rows without the cut."""

    @classmethod
    def of(cls, keep: int | str, rows: int, special: Iterable[int], where: str = "draft.vocab") -> Cut:
        """Create the cut that a pair file specifies.

        Args:
            keep: number of lowest ids to keep, which byte-pair encodings learn first; or a file of ids.
            rows: number of rows of the whole output matrix.
            special: ids that are always kept, such as those that end texts or begin a turn.
            where: the key that requested the cut, for error messages.

        Raises:
            ConfigError: nothing would be cut, or the file holds no ids of this model.
        """
        ids = set(range(min(keep, rows))) if isinstance(keep, int) else set(_ids_in(Path(keep), rows, where))
        if len(ids) >= rows:
            raise ConfigError(f"{where}: {keep} cuts nothing off a head of {rows:,} rows; leave it out.")
        return cls(tuple(sorted(ids | {each for each in special if 0 <= each < rows})), rows)

    @property
    def digest(self) -> str:
        """A digest for the names of files that depend on the cut."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


def _ids_in(file: Path, rows: int, where: str) -> list[int]:
    """Read the ids in a file, separated by commas, spaces, brackets or line ends.

    Raises:
        ConfigError: there is no such file, or it contains anything else.
    """
    try:
        text = text_of(file, _FILE_BYTES)
    except UsageError as error:
        raise ConfigError(f"{where}: {error}") from None
    words = re.split(r"[\s,\[\]]+", text.strip(" \t\r\n,[]"))
    valid = [word.isascii() and word.isdecimal() and len(word) < 19 and int(word) < rows for word in words]
    wrong = next((word for word, ok in zip(words, valid, strict=True) if not ok), None)
    if wrong is not None:
        problem = f"'{wrong[:40]}' is not an id from 0 to {rows - 1}" if wrong else "it is empty"
        raise ConfigError(f"{where}: {file}: {problem}; expected a file of token ids.")
    return [int(word) for word in words]


class CutHead(nn.Module):
    """Replaces an output matrix: maps `[..., width]` to logits `[..., rows]`, minus infinity for the rows cut off."""

    ids: Tensor

    def __init__(self, layer: nn.Module, ids: Tensor, rows: int, cap: float | None = None) -> None:
        """Wrap the layer of the kept rows, given their ids `[n]`, ascending, and the original number of rows.

        `cap` is the soft cap that the model would apply to the logits after this layer (Gemma 2).
        """
        super().__init__()
        self.layer = layer
        self.rows, self.cap = rows, cap
        self._lowest = int((ids.cpu() == torch.arange(len(ids))).sum())
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scatter the kept rows' logits to their places; the contiguous lowest ids are copied in one piece."""
        kept, n = self.layer(hidden), self._lowest
        if self.cap is not None:
            kept = torch.tanh(kept / self.cap) * self.cap
        logits: Tensor = kept.new_full((*kept.shape[:-1], self.rows), -torch.inf)
        logits[..., :n] = kept[..., :n]
        return logits.index_copy_(-1, self.ids[n:], kept[..., n:])


def cut_head(model: PreTrainedModel, cut: Cut, read: Read | None = None) -> Read | None:
    """Cut a model's output matrix, in place; weights that are not loaded yet are cut when they are read.

    Args:
        model: with its weights, or without any if `read` is given.
        cut: the rows to keep.
        read: returns the stored value of a parameter by its name.

    Returns:
        A function like `read` for the parameters of the cut model; None without `read`.

    Raises:
        ConfigError: the model's output matrix is not a plain linear layer.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ConfigError(f"draft.vocab: a model of type '{model.config.model_type}' has no head that can be cut.")
    name = next(name for name, module in model.named_modules() if module is head)
    where = torch.device("cpu") if head.weight.is_meta else head.weight.device
    kept = torch.tensor(cut.ids, device=where)
    layer = nn.Linear(head.in_features, len(cut.ids), bias=head.bias is not None, device="meta")
    for part, value in head.named_parameters(recurse=False):
        if not value.is_meta:
            setattr(layer, part, nn.Parameter(value.detach()[kept], requires_grad=False))
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, CutHead(layer, kept, cut.rows, _without_cap(model)))
    if read is None:
        return None
    stored = read

    def read_cut(parameter: str) -> Tensor:
        part = parameter.removeprefix(f"{name}.layer.")
        return stored(parameter) if part == parameter else stored(f"{name}.{part}")[kept]

    return read_cut


def _without_cap(model: PreTrainedModel) -> float | None:
    """Remove a model's soft cap after its head, which would turn minus infinity into minus the cap; return the cap."""
    config = model.config.get_text_config()
    cap = getattr(config, _CAP, None)
    if cap is not None:
        setattr(config, _CAP, None)
    return cap


def head_of(model: Network) -> nn.Module | None:
    """The layer of a model's output matrix, cut or not; None if the model has none of its own."""
    head = model.get_output_embeddings()
    return head.layer if isinstance(head, CutHead) else head
