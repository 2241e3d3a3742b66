"""A key-value cache that can be rewound to any earlier length at no cost.

transformers' dynamic cache copies everything at each step and its sliding layers forget what a rollback
needs; its `crop` also changed meaning between releases. Here every layer keeps full-length buffers that
grow by doubling: appending writes in place, rewinding moves one integer, and a sliding layer hands out
the end of its buffer that its window can see.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from cascli.errors import ConfigError, RunError

_FIRST_CAPACITY = 256


class RewindLayer(CacheLayerMixin):
    """Keys and values of one attention layer, `[1, heads, capacity, head_dim]`, of which `length` are valid."""

    is_croppable = True

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the first buffers, shaped like what is to be stored."""
        self.dtype, self.device = key_states.dtype, key_states.device
        capacity = max(_FIRST_CAPACITY, 2 * key_states.shape[-2])
        self.keys = self._buffer(key_states, capacity)
        self.values = self._buffer(value_states, capacity)
        self.is_initialized = True

    @staticmethod
    def _buffer(like: Tensor, capacity: int) -> Tensor:
        return like.new_zeros((*like.shape[:-2], capacity, like.shape[-1]))

    def _reserve(self, needed: int) -> None:
        capacity = self.keys.shape[-2]
        if needed <= capacity:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._buffer(old, max(needed, 2 * capacity))
            new[..., : self.length, :] = old[..., : self.length, :]
            setattr(self, name, new)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append `[1, heads, n, head_dim]` and return the states that the n new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[-2]
        start = self._visible_from()
        self._reserve(self.length + n)
        self.keys[..., self.length : self.length + n, :] = key_states
        self.values[..., self.length : self.length + n, :] = value_states
        self.length += n
        return self.keys[..., start : self.length, :], self.values[..., start : self.length, :]

    def _visible_from(self) -> int:
        return 0 if self.window is None else max(self.length - self.window + 1, 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the states that `update` will return for `query_length` new tokens."""
        start = self._visible_from()
        return self.length - start + query_length, start

    def get_seq_length(self) -> int:
        """How many tokens are stored."""
        return self.length

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older transformers."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; takes their count as a negative number, as transformers does."""
        self.length = max(self.length - abs(tokens_to_remove), 0)

    def reset(self) -> None:
        """Forget everything but keep the buffers."""
        self.length = 0

    def fill(self, length: int) -> None:
        """Hold `length` tokens of no meaning in place of what was stored; for measurements of speed."""
        self._reserve(length)
        for states in (self.keys, self.values):
            states[..., :length, :].fill_(0.01)
        self.length = length


class RewindCache(Cache):
    """One `RewindLayer` per attention layer of a model."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[_layer_like(layer, config) for layer in DynamicCache(config=config).layers])

    def fill(self, length: int) -> None:
        """Act as if `length` tokens had been read; the cache must have been used before."""
        for layer in self.layers:
            layer.fill(length)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


def _layer_like(layer: Any, config: PreTrainedConfig) -> RewindLayer:
    """The rewindable layer for the one that transformers would use.

    Raises:
        RunError: the layer keeps a state that cannot be rewound (Mamba, linear attention).
    """
    if type(layer) is DynamicLayer:
        return RewindLayer()
    if type(layer) is DynamicSlidingWindowLayer:
        return RewindLayer(window=int(layer.sliding_window))
    raise RunError(
        f"model type '{config.model_type}' keeps a {type(layer).__name__},"
        " which cannot be rewound after a rejected draft;\nuse a model with plain or sliding-window attention."
    )


def forward_parameters(config: PreTrainedConfig) -> frozenset[str]:
    """The names that the forward of this config's causal language model takes.

    Raises:
        RunError: transformers has no causal language model for the config.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise RunError(f"model type '{config.model_type}' is not a causal language model that transformers knows.")
    return frozenset(inspect.signature(kind.forward).parameters)


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse models that this cache cannot serve, before their weights are loaded.

    Raises:
        RunError: an encoder-decoder model, or one whose layers cannot be rewound.
        ConfigError: a model without layers.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise RunError(
            f"model type '{config.model_type}' is an encoder-decoder; cascli runs decoder-only models.\n"
            "Choose a decoder-only pair: see `cascli pairs`."
        )
    if "past_key_values" not in forward_parameters(config):
        raise RunError(
            f"model type '{config.model_type}' has no key-value cache,"
            " so it cannot be rewound after a rejected draft;\nuse a model with plain or sliding-window attention."
        )
    with torch.device("meta"):
        layers = RewindCache(config.get_text_config()).layers
    if not layers:
        raise ConfigError(f"random: a '{config.model_type}' of these values has no layers.")
