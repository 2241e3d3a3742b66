"""A pair's real distributions on a small tree of texts, and runners that answer from it.

The vocabulary is cut to the tokens that the two models together find most likely after a prompt. Once the logits of
every text over these tokens are tabulated, the real engine can be run thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from cascli import kernels
from cascli.models.pair import LoadedModel, Pair
from cascli.models.runner import Runner

Text = tuple[int, ...]
PROMPT = (0, 1, 0)
"""Stands for the prompt that a tree follows: it repeats itself, so that lookups draft, and opens thinking."""
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


LogitsAfter = Callable[[Text], Tensor]
"""The logits `[width]` after a text, in a model's precision and on its device."""


class TableRunner(Runner):
    """Reads a text, and answers with the logits that a function knows for it."""

    def __init__(self, logits_after: LogitsAfter) -> None:
        self._logits_after = logits_after
        self._read: list[int] = []

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return len(self._read)

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, width]` after each of the last `rows` tokens of the text."""
        self._read += ids.tolist()
        ends = range(len(self._read) - rows + 1, len(self._read) + 1)
        return torch.stack([self._logits_after(tuple(self._read[:end])) for end in ends])

    def truncate(self, length: int) -> None:
        """Drop everything after the first `length` tokens."""
        del self._read[length:]


def tabulated(pair: Pair, tree: Tree) -> Pair:
    """The pair with its models replaced by their tables; its prompt is `PROMPT`.

    Beyond the tables' depth, where no counted result depends on them, the logits are flat.
    """
    flat = torch.zeros(tree.width, dtype=tree.dtype, device=pair.device)

    def after(table: dict[Text, Tensor]) -> LogitsAfter:
        known = {text: logits.to(pair.device, tree.dtype) for text, logits in table.items()}
        return lambda text: known.get(text[len(PROMPT) :], flat)

    return answering(pair, tree.width, after(tree.draft), after(tree.target))


def answering(pair: Pair, width: int, draft: LogitsAfter, target: LogitsAfter, ends: Collection[int] = ()) -> Pair:
    """The pair with models of `width` tokens that answer with given logits, and with the tokens that end a text.

    Everything else stays the pair's own: its device, the precision of its logits, and the code that decides its rounds.
    """

    def model(loaded: LoadedModel, logits_after: LogitsAfter) -> LoadedModel:
        return replace(loaded, runner=TableRunner(logits_after), device=pair.device, rows=width)

    return replace(
        pair,
        config=pair.config.model_copy(update={"thinking": THINKING}),
        draft=None if pair.draft is None else model(pair.draft, draft),
        target=model(pair.target, target),
        tokenizer=None,
        vocab=width,
        eos_ids=frozenset(ends),
        context=None,
    )


def path_of(pair: Pair, tree: Tree) -> str:
    """The device, precision and code that decide the audited rounds, in words."""
    precision = str(tree.dtype).removeprefix("torch.")
    by = "kernels" if kernels.serve(pair.device) else "torch"
    return f"{pair.device}, {precision}, {by}{', captured rounds' if pair.graphs.captures else ''}"
