"""A key-value cache that can be rewound to any earlier length at no cost.

transformers' dynamic cache copies everything at each step and its sliding layers forget what a rollback
needs; its `crop` also changed meaning between releases. Here every layer keeps full-length buffers that
grow by doubling: appending writes in place, rewinding moves one integer, and a sliding layer hands out
the end of its buffer that its window can see.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from cascli.errors import ConfigError, RunError
from cascli.models.size import layers_of

ENCODER_DECODERS = ("t5",)
"""Their names in transformers; `cascli.models.encoder_decoder` knows how they are made."""
_STEP = 256
"""Tokens that buffers grow by, at least."""


def rounded_up(length: int) -> int:
    """Tokens that buffers have room for when texts of `length` are to fit."""
    return -(-length // _STEP) * _STEP


class States:
    """Keys and values of one attention layer for one text or several, `[places, heads, capacity, head_dim]` each.

    They are allocated at their first use, shaped like what is to be stored, for all places at once.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.capacity = 0
        self._wanted = _STEP
        self.keys = self.values = torch.empty(0)

    def reserve(self, length: int) -> None:
        """Have room for texts of `length` tokens once something is stored."""
        self._wanted = max(self._wanted, rounded_up(length))
        if self.capacity:
            self._grow(self.keys, self.values)

    @property
    def unmade(self) -> int:
        """Tokens for which there is to be room, and is not yet, over all places."""
        return self.places * max(self._wanted - self.capacity, 0)

    def take(self, keys: Tensor, values: Tensor, needed: int) -> None:
        """Have room for `needed` tokens like `keys` and `values`, `[1, heads, n, head_dim]`."""
        if needed > self.capacity:
            # One text alone grows by doubling, so that it is copied seldom; many of them would be mostly empty.
            self._wanted = max(self._wanted, rounded_up(needed), 2 * self.capacity if self.places == 1 else 0)
            self._grow(keys, values)

    def _grow(self, keys: Tensor, values: Tensor) -> None:
        if self._wanted <= self.capacity:
            return
        old, self.capacity = self.capacity, self._wanted
        for name, like in (("keys", keys), ("values", values)):
            new = like.new_zeros((self.places, like.shape[1], self.capacity, like.shape[-1]))
            if old:
                new[:, :, :old] = getattr(self, name)
            setattr(self, name, new)


class RewindLayer(CacheLayerMixin):
    """One text's keys and values of one attention layer: a place among `States`, of which `length` are valid."""

    is_croppable = True

    def __init__(self, window: int | None = None, states: States | None = None, place: int = 0) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0
        self.states = states or States()
        self.place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the first buffers, shaped like what is to be stored."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.states.take(key_states, value_states, 2 * key_states.shape[-2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append `[1, heads, n, head_dim]` and return the states that the n new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, old, self.length = self._visible_from(), self.length, self.length + key_states.shape[-2]
        self.states.take(key_states, value_states, self.length)
        here = slice(self.place, self.place + 1)
        keys, values = self.states.keys[here], self.states.values[here]
        keys[..., old : self.length, :] = key_states
        values[..., old : self.length, :] = value_states
        return keys[..., start : self.length, :], values[..., start : self.length, :]

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

    def kept(self, start: int) -> tuple[Tensor, Tensor]:
        """A copy of keys and values from token `start` on, `[1, heads, length - start, head_dim]` each."""
        here = slice(self.place, self.place + 1), slice(None), slice(start, self.length)
        return self.states.keys[here].clone(), self.states.values[here].clone()

    def fill(self, length: int) -> None:
        """Hold `length` tokens of no meaning in place of what was stored; for measurements of speed."""
        states = self.states
        states.take(states.keys, states.values, length)
        for each in (states.keys, states.values):
            each[self.place, :, :length].fill_(0.01)
        self.length = length


class RewindCache(Cache):
    """One `RewindLayer` per attention layer of a model."""

    def __init__(self, config: PreTrainedConfig, states: Sequence[States] | None = None, place: int = 0) -> None:
        """A cache of its own; or a place among `states`, which several texts share, one for each layer."""
        like = DynamicCache(config=config).layers
        states = states or [States() for _ in like]
        super().__init__(
            layers=[RewindLayer(_window_of(each, config), own, place) for each, own in zip(like, states, strict=True)]
        )

    @property
    def length(self) -> int:
        """How many tokens are stored."""
        return int(self.layers[0].length)

    def advance(self, n: int) -> None:
        """Count n more tokens, whose states were written by others."""
        for layer in self.layers:
            layer.length += n

    def place(self, length: int) -> None:
        """Have the next pass come after `length` tokens, whichever layers have stored so many."""
        for layer in self.layers:
            layer.length = length

    def fill(self, length: int) -> None:
        """Act as if `length` tokens had been read; the cache must have been used before."""
        for layer in self.layers:
            layer.fill(length)

    def kept(self, start: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of what is stored from token `start` on, for `put`."""
        return [layer.kept(start) for layer in self.layers]

    def put(self, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Hold what a cache of the same model held there, behind what is stored."""
        for layer, (keys, values) in zip(self.layers, kept, strict=True):
            layer.update(keys, values)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


def _window_of(layer: Any, config: PreTrainedConfig) -> int | None:
    """How far back the layer looks that transformers would use; None for the whole text.

    Raises:
        RunError: the layer keeps a state that cannot be rewound (Mamba, linear attention).
    """
    if type(layer) is DynamicLayer:
        return None
    if type(layer) is DynamicSlidingWindowLayer:
        return int(layer.sliding_window)
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
        RunError: an encoder-decoder of another kind than T5, or a model whose layers cannot be rewound.
        ConfigError: a model without layers.
    """
    if config.is_encoder_decoder:
        if config.model_type not in ENCODER_DECODERS:
            raise RunError(
                f"model type '{config.model_type}' is an encoder-decoder; the only ones cascli runs are"
                f" {', '.join(ENCODER_DECODERS)} (T5, FLAN-T5)."
            )
    elif "past_key_values" not in forward_parameters(config):
        raise RunError(
            f"model type '{config.model_type}' has no key-value cache,"
            " so it cannot be rewound after a rejected draft;\nuse a model with plain or sliding-window attention."
        )
    with torch.device("meta"):
        layers = RewindCache(config.get_text_config()).layers
    if not layers or not layers_of(config.get_text_config()):
        raise ConfigError(f"random: with these values a '{config.model_type}' has no layers.")
