"""A key-value cache that can be rewound to any earlier length at no cost.

transformers' dynamic cache copies everything at each step, its sliding layers discard what a rollback
needs, and its `crop` changed meaning between releases. Here every layer keeps full-length buffers that
grow by doubling: appending writes in place, rewinding moves one integer, and a sliding layer returns
the end of its buffer that is within its window.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from cascli.errors import ConfigError, RunError
from cascli.models.size import layers_of

ENCODER_DECODERS = ("t5",)
"""Supported encoder-decoders, by their names in transformers; `cascli.models.encoder_decoder` runs them."""
_OWN_CACHES = ("xlm", "xlstm")
"""Models whose forward takes a `cache` that is none of keys and values."""
_OWN_POSITIONS = (
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
"""RoBERTa and its kin, whose positions begin after the padding token's id and leave out padding."""
_UNSUITED = {
    **dict.fromkeys(_OWN_POSITIONS, "counts positions from the id of its padding token"),
    "cpmant": "puts tokens of its own before those of a text",
    "dory": "adds layers to its cache while it runs them in loops",
    "hrm_text": "reads a prompt in both directions, and runs its layers several times a token",
    "moshi": "writes, beyond its window, other texts with its cache than without",
    "prophetnet": "reads only one token at a time with its cache",
}
"""Models that cannot be decoded with this cache, and why."""
_OF_MORE_THAN_TEXT = ("emu3",)
"""Models of which transformers has a causal class that does not load what is published."""
_STEP = 256
"""Least number of tokens that buffers grow by."""


def rounded_up(length: int) -> int:
    """Capacity in tokens of buffers that must hold sequences of `length`."""
    return -(-length // _STEP) * _STEP


class States:
    """Keys and values of one attention layer for one or more sequences, `[places, heads, capacity, head_dim]` each.

    They are allocated on first use, shaped like the states to be stored, for all places in one tensor.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.capacity = 0
        self._requested = _STEP
        self.keys = self.values = torch.empty(0)

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens: buffers grow now, or are made at the first store."""
        self._requested = max(self._requested, rounded_up(length))
        if self.capacity:
            self._grow(self.keys, self.values)

    @property
    def unallocated(self) -> int:
        """Number of tokens, over all places, for which room was requested but not yet allocated."""
        return self.places * max(self._requested - self.capacity, 0)

    def make_room(self, keys: Tensor, values: Tensor, needed: int) -> None:
        """Make room for `needed` tokens with states like `keys` and `values`, `[1, heads, n, head_dim]`."""
        if needed > self.capacity:
            # A single sequence grows by doubling to be copied rarely; with many, doubled buffers would be mostly empty.
            self._requested = max(self._requested, rounded_up(needed), 2 * self.capacity if self.places == 1 else 0)
            self._grow(keys, values)

    def _grow(self, keys: Tensor, values: Tensor) -> None:
        if self._requested <= self.capacity:
            return
        old, self.capacity = self.capacity, self._requested
        for name, like in (("keys", keys), ("values", values)):
            new = like.new_zeros((self.places, like.shape[1], self.capacity, like.shape[-1]))
            if old:
                new[:, :, :old] = getattr(self, name)
            setattr(self, name, new)


class RewindLayer(CacheLayerMixin):
    """One sequence's keys and values of one attention layer: a place in `States`, whose first `length` are valid."""

    is_croppable = True

    def __init__(self, window: int | None = None, states: States | None = None, place: int = 0) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0
        self.states = states or States()
        self.place = place
        # Kept in `states` instead; Mllama asks whether those of a layer that text skips are empty.
        self.keys = self.values = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the first buffers, shaped like the states to be stored."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.states.make_room(key_states, value_states, 2 * key_states.shape[-2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append `[1, heads, n, head_dim]` and return the states that the n new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, old, self.length = self._visible_from(), self.length, self.length + key_states.shape[-2]
        self.states.make_room(key_states, value_states, self.length)
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
        """Number of stored tokens."""
        return self.length

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older transformers."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; takes their number as a negative value, as transformers does."""
        self.length = max(self.length - abs(tokens_to_remove), 0)

    def reset(self) -> None:
        """Forget everything, but keep the buffers."""
        self.length = 0

    def kept(self, start: int) -> tuple[Tensor, Tensor]:
        """A copy of keys and values starting at token `start`, `[1, heads, length - start, head_dim]` each.

        Those of a layer that the model skips are empty.
        """
        if not self.states.capacity:
            return self.states.keys, self.states.values
        here = slice(self.place, self.place + 1), slice(None), slice(start, self.length)
        return self.states.keys[here].clone(), self.states.values[here].clone()

    def fill(self, length: int) -> None:
        """Replace the contents by `length` meaningless tokens, for measuring speed."""
        states = self.states
        if states.capacity:  # the model does not skip the layer
            states.make_room(states.keys, states.values, length)
            for each in (states.keys, states.values):
                each[self.place, :, :length].fill_(0.01)
        self.length = length


class RewindCache(Cache):
    """One `RewindLayer` per attention layer of a model."""

    def __init__(self, config: PreTrainedConfig, states: Sequence[States] | None = None, place: int = 0) -> None:
        """Create a cache with its own buffers, or on one place of `states` (one per layer) that sequences share."""
        like = DynamicCache(config=config).layers
        states = states or [States() for _ in like]
        super().__init__(
            layers=[RewindLayer(_window_of(each, config), own, place) for each, own in zip(like, states, strict=True)]
        )

    @property
    def length(self) -> int:
        """Number of stored tokens."""
        return int(self.layers[0].length)

    def advance(self, n: int) -> None:
        """Count n more tokens, whose states were written elsewhere."""
        for layer in self.layers:
            layer.length += n

    def place(self, length: int) -> None:
        """Make the next pass follow `length` tokens, even if only some of the layers have stored that many."""
        for layer in self.layers:
            layer.length = length

    def fill(self, length: int) -> None:
        """Act as if `length` tokens had been read; the cache must have been used before."""
        for layer in self.layers:
            layer.fill(length)

    def kept(self, start: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the states starting at token `start`, for `put`."""
        return [layer.kept(start) for layer in self.layers]

    def put(self, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append what `kept` returned for a cache of the same model."""
        for layer, (keys, values) in zip(self.layers, kept, strict=True):
            if keys.numel():
                layer.update(keys, values)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


def _window_of(layer: Any, config: PreTrainedConfig) -> int | None:
    """Window of the layer that transformers would use; None if it sees the whole sequence.

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
    """Parameter names of the forward of this config's causal language model.

    Raises:
        RunError: transformers has no causal language model for the config.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None or config.model_type in _OF_MORE_THAN_TEXT:
        raise RunError(_no_causal_class(config))
    return frozenset(inspect.signature(model_class.forward).parameters)


def _no_causal_class(config: PreTrainedConfig) -> str:
    """Why there is no causal class for a config, and what to use instead, for the user."""
    text = getattr(config, "text_config", None)
    if text is None:
        return f"model type '{config.model_type}' is not a causal language model that transformers knows."
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None) is not None
    built_on = f", such as the '{text.model_type}' that it is built on" if known else ""
    return (
        f"model type '{config.model_type}' reads more than text, such as images or sound; cascli decodes text models."
        f"\nUse a causal language model{built_on}."
    )


def _is_encoder(config: PreTrainedConfig) -> bool:
    """Whether the config is of an encoder such as BERT, which transformers has a causal class for as well."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None or getattr(config, "is_decoder", None) is not False:
        return False
    try:
        return "is_decoder=True" in inspect.getsource(model_class.__init__)
    except OSError:  # no sources are installed
        return False


def _sees_ahead(config: PreTrainedConfig) -> bool:
    """Whether tokens see those after them: what a token's logits are then depends on the block it is read in."""
    ahead = getattr(config, "use_bidirectional_attention", None)  # "vision" is about images alone
    return getattr(config, "is_causal", None) is False or ahead is True or ahead == "all"


def cache_name(parameters: Collection[str]) -> str:
    """The keyword for the cache of a forward with these parameters, which transformers 5.24 renamed."""
    return "cache" if "cache" in parameters else "past_key_values"


def check_supported(config: PreTrainedConfig) -> None:
    """Reject models that this cache does not support, before their weights are loaded.

    Raises:
        RunError: an encoder-decoder other than T5, or a model whose layers cannot be rewound.
        ConfigError: a model without layers.
    """
    if config.is_encoder_decoder:
        if config.model_type not in ENCODER_DECODERS:
            raise RunError(
                f"model type '{config.model_type}' is an encoder-decoder; the only ones cascli runs are"
                f" {', '.join(ENCODER_DECODERS)} (T5, FLAN-T5)."
            )
    elif _is_encoder(config):
        raise RunError(
            f"model type '{config.model_type}' with is_decoder: false is an encoder, whose tokens see those after them;"
            "\nuse a causal language model."
        )
    elif cache_name(parameters := forward_parameters(config)) not in parameters or config.model_type in _OWN_CACHES:
        raise RunError(
            f"model type '{config.model_type}' has no key-value cache,"
            " so it cannot be rewound after a rejected draft;\nuse a model with plain or sliding-window attention."
        )
    elif _sees_ahead(config.get_text_config()):
        raise RunError(
            f"this '{config.model_type}' model's tokens see those after them (is_causal, use_bidirectional_attention);"
            "\nuse a causal language model."
        )
    elif config.model_type in _UNSUITED:
        raise RunError(f"model type '{config.model_type}' {_UNSUITED[config.model_type]};\nuse another kind of model.")
    depth, cached = getattr(config, "decoder_layers", None), config.get_text_config().num_hidden_layers
    if depth not in (None, cached):
        raise RunError(
            f"model type '{config.model_type}' has {depth} decoder_layers, but transformers makes a cache of {cached},"
            f" its encoder_layers;\nset encoder_layers to {depth} in its config.json: decoding uses no encoder."
        )
    with torch.device("meta"):
        layers = RewindCache(config.get_text_config()).layers
    if not layers or not layers_of(config.get_text_config()):
        raise ConfigError(f"random: with these values a '{config.model_type}' has no layers.")
