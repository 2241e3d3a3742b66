"""A runner that calls the transformers model directly: on a CPU, and where a model's steps cannot be captured."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from cascli.models.cache import RewindCache, States, cache_name
from cascli.models.runner import Runner


class EagerRunner(Runner):
    """Runs a causal language model with a cache that rewinds at no cost.

    `vocab` limits the logits to those of the tokenizer's tokens: the padded rows of the
    output matrix get no probability in any strategy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: int,
        device: torch.device,
        cache: RewindCache | None = None,
        *,
        prompt_block: int | None = None,
    ) -> None:
        """Wrap a model with its weights in place; without `cache`, the runner creates its own.

        With `prompt_block`, prompts are read in blocks of that many tokens.
        """
        self.model = model
        self.vocab = vocab
        self.device = device
        self._input_device = model.get_input_embeddings().weight.device
        self.cache = cache or RewindCache(model.config.get_text_config())
        self._takes = self.takes(model)
        self._cache_name = cache_name(self._takes)
        self._prompt_block = prompt_block

    @staticmethod
    def takes(model: PreTrainedModel) -> Collection[str]:
        """Parameter names of a model's forward."""
        return inspect.signature(model.forward).parameters

    def fresh(self, states: Sequence[States] | None = None, place: int = 0) -> EagerRunner:
        """Another runner on the same module, with its own cache or a place in states that several sequences share."""
        cache = RewindCache(self.model.config.get_text_config(), states, place)
        return EagerRunner(self.model, self.vocab, self.device, cache, prompt_block=self._prompt_block)

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return self.cache.length

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]`; return the logits `[rows, vocab]` of the last rows."""
        return self._logits(ids, self._positions(self.length, ids), rows, self.cache)[-rows:]

    def _positions(self, start: int, ids: Tensor) -> Tensor:
        """The positions of `ids` `[n]`, made where the model reads them: a copy would wait for all earlier work."""
        return torch.arange(start, start + ids.shape[0], device=self._input_device)

    @property
    def prompt_block(self) -> int | None:
        """Tokens per piece of a prompt; None to read it whole."""
        return self._prompt_block

    @property
    def in_parts(self) -> bool:
        """True: `read_at` is available."""
        return True

    @torch.inference_mode()
    def read_at(self, start: int, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` as if `start` tokens had been read; logits `[rows, vocab]`, no head call for 0 rows."""
        self.cache.place(start)
        if rows:
            logits = self.forward(ids, rows)
        else:
            self._pass(self.model.base_model, ids, self._positions(start, ids), self.cache)
            logits = torch.empty(0, self.vocab, device=self.device)
        self.cache.place(start + ids.shape[0])
        return logits

    @torch.inference_mode()
    def of_rows(self, ids: Tensor, positions: Tensor, rows: Tensor | slice, cache: Cache) -> Tensor:
        """Logits `[m, vocab]` of the rows `[m]` of a block `[n]` of tokens that may belong to several sequences.

        Args:
            ids: the tokens' ids, `[n]`.
            positions: the tokens' positions in their sequences, `[n]`.
            rows: indices into the block, `[m]`, or a slice.
            cache: determines which tokens each token attends to.
        """
        # transformers passes a four-dimensional mask on unchanged; attention by rows needs none.
        logits = self._logits(ids, positions, rows, cache, attention_mask=ids.new_empty(1, 1, 0, 0))
        return logits if "logits_to_keep" in self._takes else logits[rows]

    def _logits(self, ids: Tensor, positions: Tensor, keep: int | Tensor | slice, cache: Cache, **more: Any) -> Tensor:
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = keep
        output = self._pass(self.model, ids, positions, cache, **more)
        return output.logits[0, :, : self.vocab].to(self.device)

    def _pass(self, model: PreTrainedModel, ids: Tensor, positions: Tensor, cache: Cache, **more: Any) -> Any:
        if "position_ids" in self._takes:
            more["position_ids"] = positions.unsqueeze(0).to(self._input_device)
        batch = ids.to(self._input_device).unsqueeze(0)
        return model(input_ids=batch, use_cache=True, **{self._cache_name: cache}, **more)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.cache.truncate(length)

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Fill the cache with a constant up to `length` tokens."""
        self.reset()
        self.forward(torch.zeros(1, dtype=torch.long, device=self.device), 1)
        self.cache.fill(length)
