"""A pair's real distributions on a small tree of texts, and runners that answer from it.

The vocabulary is cut to the tokens that the two models together find most likely after a prompt. Once the logits of
every text over these tokens are tabulated, the real engine can be run thousands of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from cascli import kernels
from cascli.models.pair import LoadedModel, Pair
from cascli.models.runner import Runner

Text = tuple[int, ...]
THINKING = (0, 1)
"""The tokens of a tree that open and close thinking, for rules limited to it."""


@dataclass(frozen=True)
class Tree:
    """Logits `[width]` in float64 of both models after a prompt and every text of up to `depth` tokens.

    A target without a draft model gets one with its own logits, shifted by one token: with no draft, nothing would be
    tested.
    """

    width: int
    depth: int
    draft: dict[Text, Tensor]
    target: dict[Text, Tensor]
    dtype: torch.dtype = torch.float64
    """Precision of the models' logits, and so of decoding."""

    def texts(self, length: int) -> Iterator[Text]:
        """All texts of this length."""
        return product(range(self.width), repeat=length)


@torch.inference_mode()
def tabulate(pair: Pair, prompt_ids: Sequence[int], width: int, depth: int) -> Tree:
    """Run both models over the prompt and every text of up to `depth` of the `width` likeliest tokens."""
    prompt = torch.tensor(prompt_ids, device=pair.device)
    dtype = _after(pair.target, prompt[:1]).dtype
    firsts = [_after(model, prompt).double() for model in pair.models.values()]
    likely = sum(logits.softmax(dim=-1) for logits in firsts).topk(min(width, pair.vocab)).indices  # type: ignore[union-attr]
    tables = {role: _table(model, prompt, likely, depth) for role, model in pair.models.items()}
    shifted = {text: logits.roll(1) for text, logits in tables["target"].items()}
    return Tree(len(likely), depth, tables.get("draft", shifted), tables["target"], dtype)


def _after(model: LoadedModel, prompt: Tensor) -> Tensor:
    return model.runner.forward(model.runner.begin(prompt), 1)[0]


def _table(model: LoadedModel, prompt: Tensor, likely: Tensor, depth: int) -> dict[Text, Tensor]:
    """Logits after every text, walking the tree depth first so that each text costs one token."""
    table: dict[Text, Tensor] = {(): _after(model, prompt).double()[likely]}
    base = model.runner.length

    def walk(text: Text) -> None:
        if len(text) == depth:
            return
        for i in range(len(likely)):
            model.runner.truncate(base + len(text))
            longer = (*text, i)
            table[longer] = model.runner.forward(likely[i : i + 1], 1)[0].double()[likely]
            walk(longer)

    walk(())
    return {text: logits.cpu() for text, logits in table.items()}


class TableRunner(Runner):
    """Reads a text and answers from a table; the text's first token stands for the prompt.

    Beyond the table's depth, where no counted result depends on them, the logits are flat.
    """

    def __init__(self, table: dict[Text, Tensor], width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._table = {text: logits.to(device, dtype) for text, logits in table.items()}
        self._flat = torch.zeros(width, dtype=dtype, device=device)
        self._read: list[int] = []

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return len(self._read)

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, width]` after each of the last `rows` tokens of the text."""
        self._read += ids.tolist()
        ends = range(len(self._read) - rows + 1, len(self._read) + 1)
        return torch.stack([self._table.get(tuple(self._read[1:end]), self._flat) for end in ends])

    def truncate(self, length: int) -> None:
        """Drop everything after the first `length` tokens."""
        del self._read[length:]


def tabulated(pair: Pair, tree: Tree) -> Pair:
    """The pair with its models replaced by their tables; its prompt is the single token 0.

    Everything else stays the pair's own: its device, the precision of its logits, and the code that decides its rounds.
    """

    def model(loaded: LoadedModel, table: dict[Text, Tensor]) -> LoadedModel:
        reader = TableRunner(table, tree.width, tree.dtype, pair.device)
        return replace(loaded, runner=reader, device=pair.device, rows=tree.width)

    return replace(
        pair,
        config=pair.config.model_copy(update={"thinking": THINKING}),
        draft=None if pair.draft is None else model(pair.draft, tree.draft),
        target=model(pair.target, tree.target),
        tokenizer=None,
        vocab=tree.width,
        eos_ids=frozenset(),
        context=None,
    )


def path_of(pair: Pair, tree: Tree) -> str:
    """The device, precision and code that decide the audited rounds, in words."""
    precision = str(tree.dtype).removeprefix("torch.")
    by = "kernels" if kernels.serve(pair.device) else "torch"
    return f"{pair.device}, {precision}, {by}{', captured rounds' if pair.graphs.captures else ''}"
