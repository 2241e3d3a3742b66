"""A runner that calls the transformers model as it is: on a CPU, and where a model's steps cannot be captured."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascli.models.cache import RewindCache
from cascli.models.runner import Runner


class EagerRunner(Runner):
    """Runs a causal language model with a cache that rewinds at no cost.

    `vocab` cuts the logits to the rows that stand for tokens of the tokenizer: the padded rows of the
    output matrix get no probability in any strategy.
    """

    def __init__(self, model: PreTrainedModel, vocab: int, device: torch.device) -> None:
        self.model = model
        self.vocab = vocab
        self.device = device
        self._input_device = model.get_input_embeddings().weight.device
        self._cache = RewindCache(model.config.get_text_config())
        self._takes = inspect.signature(model.forward).parameters

    def fresh(self) -> EagerRunner:
        """Another cache on the same module."""
        return EagerRunner(self.model, self.vocab, self.device)

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self._cache.layers[0].length

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Logits `[rows, vocab]` of the last rows after reading `ids` `[n]`."""
        n = ids.shape[0]
        more: dict[str, Any] = {}
        if "position_ids" in self._takes:
            positions = torch.arange(self.length, self.length + n, device=self._input_device)
            more["position_ids"] = positions.unsqueeze(0)
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = rows
        batch = ids.to(self._input_device).unsqueeze(0)
        output = self.model(input_ids=batch, past_key_values=self._cache, use_cache=True, **more)
        return output.logits[0, -rows:, : self.vocab].to(self.device)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._cache.truncate(length)

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Fill the cache with a constant up to `length` tokens."""
        self.reset()
        self.forward(torch.zeros(1, dtype=torch.long, device=self.device), 1)
        self._cache.fill(length)
