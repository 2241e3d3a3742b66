"""A key-value cache for captured forwards: fixed buffers, and a length that is stored on the device.

A captured forward (a CUDA graph) replays the same kernels on the same addresses, so where it writes and how far it
looks back must be data. New states are written to the positions starting at `at`, a number on the device that is set
before each call; setting it is also how the cache is rewound. Attention gets the first `bucket` positions, with a mask
that hides the unused ones, or all positions if it reads the length itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from cascli.models.cache import RewindCache

SMALLEST_BUCKET = 256


def bucket_for(length: int) -> int:
    """The smallest power of two that holds `length` tokens, at least `SMALLEST_BUCKET`."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


class StaticLayer(CacheLayerMixin):
    """Keys and values of one attention layer, `[1, heads, capacity, head_dim]`."""

    is_compileable = True

    def __init__(self, cache: StaticCache, *, sliding: bool) -> None:
        super().__init__()
        self.cache = cache
        self.is_sliding = sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers, shaped like what is to be stored."""
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (*key_states.shape[:-2], self.cache.capacity)
        self.keys = key_states.new_zeros((*shape, key_states.shape[-1]))
        self.values = value_states.new_zeros((*shape, value_states.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write `[1, heads, n, head_dim]` after the stored tokens, and return the whole bucket."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.cache.where, key_states)
        self.values.index_copy_(2, self.cache.where, value_states)
        return self.keys[:, :, : self.cache.bucket], self.values[:, :, : self.cache.bucket]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the states that `update` returns, the unused ones included."""
        return self.cache.bucket, 0

    def get_seq_length(self) -> Tensor:
        """Number of stored tokens, on the device; the host must not read it during a capture."""
        return self.cache.at

    def get_max_length(self) -> int:
        """Number of tokens that fit into the buffers."""
        return self.cache.capacity

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older transformers."""
        return self.cache.capacity

    def grow(self, capacity: int) -> None:
        """Move to longer buffers."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros((*old.shape[:-2], capacity, old.shape[-1]))
            new[..., : old.shape[-2], :] = old
            setattr(self, name, new)


class StaticCache(Cache):
    """One `StaticLayer` per attention layer of a model."""

    def __init__(self, config: PreTrainedConfig, device: torch.device) -> None:
        self.capacity = 0
        self.bucket = 0
        """Number of positions that the next forward sees; baked into a graph."""
        self.at = torch.zeros((), dtype=torch.long, device=device)
        self.where = torch.zeros(0, dtype=torch.long, device=device)
        """Positions of the current call's tokens, `[n]`."""
        self._steps = torch.zeros(0, dtype=torch.long, device=device)
        rewindable = RewindCache(config).layers  # raises for layers that cannot be rewound
        super().__init__(layers=[StaticLayer(self, sliding=layer.is_sliding) for layer in rewindable])

    @property
    def in_use(self) -> bool:
        """Whether all layers have allocated their buffers."""
        return all(layer.is_initialized for layer in self.layers)

    def place(self, n: int) -> Tensor:
        """Set and return the positions `[n]` of the n tokens of a call, once for all layers."""
        self.where = self.at + self._steps[:n]
        return self.where

    def grow(self, capacity: int) -> None:
        """Move to larger buffers, keeping the contents."""
        self.capacity = capacity
        self._steps = torch.arange(capacity, device=self.at.device)
        layers: list[Any] = self.layers
        for layer in layers:
            layer.grow(capacity)

    def fill(self, length: int) -> None:
        """Fill the first `length` positions with a meaningless constant; the cache must have been used before."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys[:, :, :length] = 0.01
            layer.values[:, :, :length] = 0.01
