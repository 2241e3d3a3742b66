"""A draft model's output matrix cut to some of its rows: a cheaper step, and no probability for all other tokens.

Of a small model the output matrix is a quarter of the bytes or more, and most of its rows are of tokens that hardly
ever come. What is left of it is multiplied as any layer is, packed or not; its logits are then put in their places
among those of all tokens, minus infinity elsewhere. So q is zero there, and whatever is made of q stays exact: a cut
head only drafts worse where one of the missing tokens was due. (FR-Spec, Zhao et al. 2025, does it for EAGLE heads.)
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
    """How many it has without the cut."""

    @classmethod
    def of(cls, wanted: int | str, rows: int, special: Iterable[int], where: str = "draft.vocab") -> Cut:
        """The cut that a pair's file asks for.

        Args:
            wanted: how many of the lowest ids, which byte-pair encodings learn first; or a file of ids.
            rows: of the whole output matrix.
            special: ids that are kept in any case: those that end texts or begin a turn.
            where: what asked, for errors.

        Raises:
            ConfigError: nothing would be cut, or the file holds no ids of this model.
        """
        ids = set(range(min(wanted, rows))) if isinstance(wanted, int) else set(_ids_in(Path(wanted), rows, where))
        if len(ids) >= rows:
            raise ConfigError(f"{where}: {wanted} cuts nothing off a head of {rows:,} rows; leave it out.")
        return cls(tuple(sorted(ids | {each for each in special if 0 <= each < rows})), rows)

    @property
    def digest(self) -> str:
        """What a file that depends on the cut is named after."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


def _ids_in(file: Path, rows: int, where: str) -> list[int]:
    """The ids in a file, with commas, spaces, brackets or line ends between them.

    Raises:
        ConfigError: there is no such file, or something else is in it.
    """
    try:
        text = text_of(file, _FILE_BYTES)
    except UsageError as error:
        raise ConfigError(f"{where}: {error}") from None
    words = re.split(r"[\s,\[\]]+", text.strip(" \t\r\n,[]"))
    known = [word.isascii() and word.isdecimal() and len(word) < 19 and int(word) < rows for word in words]
    wrong = next((word for word, fine in zip(words, known, strict=True) if not fine), None)
    if wrong is not None:
        said = f"'{wrong[:40]}' is not an id from 0 to {rows - 1}" if wrong else "it is empty"
        raise ConfigError(f"{where}: {file}: {said}; expected a file of token ids.")
    return [int(word) for word in words]


class CutHead(nn.Module):
    """In the place of an output matrix: `[..., width]` to logits `[..., rows]`, minus infinity for what was cut off."""

    ids: Tensor

    def __init__(self, layer: nn.Module, ids: Tensor, rows: int, cap: float | None = None) -> None:
        """Take the layer of the kept rows, their ids `[n]`, ascending, and how many rows there were.

        `cap` is what the model would hold its logits under after it (Gemma 2).
        """
        super().__init__()
        self.layer = layer
        self.rows, self.cap = rows, cap
        self._lowest = int((ids.cpu() == torch.arange(len(ids))).sum())
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The kept rows' logits in their places; the lowest ids lie together, and are copied as one piece."""
        kept, n = self.layer(hidden), self._lowest
        if self.cap is not None:
            kept = torch.tanh(kept / self.cap) * self.cap
        logits: Tensor = kept.new_full((*kept.shape[:-1], self.rows), -torch.inf)
        logits[..., :n] = kept[..., :n]
        return logits.index_copy_(-1, self.ids[n:], kept[..., n:])


def cut_head(model: PreTrainedModel, cut: Cut, read: Read | None = None) -> Read | None:
    """Cut a model's output matrix, in place; weights that it does not have yet are cut where they are read.

    Args:
        model: with its weights, or without any if `read` is given.
        cut: the rows that stay.
        read: gives the stored value of a parameter by its name.

    Returns:
        What gives the values of the cut model's parameters; None without `read`.

    Raises:
        ConfigError: the model's output matrix is no plain one.
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
    """Take from a model what it does to logits after its head: it would turn minus infinity into minus the cap."""
    config = model.config.get_text_config()
    cap = getattr(config, _CAP, None)
    if cap is not None:
        setattr(config, _CAP, None)
    return cap


def head_of(model: Network) -> nn.Module | None:
    """The layer of a model's output matrix, cut or not; None if it has none of its own."""
    head = model.get_output_embeddings()
    return head.layer if isinstance(head, CutHead) else head
