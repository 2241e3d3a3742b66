"""The states of several texts as one cache, for blocks whose rows are tokens of any of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cascli.models.cache import RewindCache, RewindLayer, States


class TextsCache(Cache):
    """Where each row of a block is stored and what it may attend to, shared by all layers."""

    places: Tensor
    """The place of each row's text, `[n]`."""
    positions: Tensor
    """The position of each row in its text, `[n]`."""
    longest: int
    """Number of tokens of the longest text."""

    def __init__(self, like: RewindCache, states: Sequence[States]) -> None:
        super().__init__(layers=[TextsLayer(self, *each) for each in zip(like.layers, states, strict=True)])

    @abstractmethod
    def seen(self, states: Tensor, window: int | None) -> object:
        """Keys or values of all texts, in the form that the attention function takes."""


class TextsLayer(CacheLayerMixin):
    """One attention layer of a `TextsCache`."""

    def __init__(self, cache: TextsCache, like: RewindLayer, states: States) -> None:
        super().__init__()
        self._cache, self._states, self._window = cache, states, like.window
        self.is_sliding = like.is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the states are allocated at their first use."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Any, Any]:
        """Write `[1, heads, rows, head_dim]`, each row at its position in its text."""
        cache, states = self._cache, self._states
        states.make_room(key_states, value_states, cache.longest)
        states.keys[cache.places, :, cache.positions] = key_states[0].transpose(0, 1)
        states.values[cache.places, :, cache.positions] = value_states[0].transpose(0, 1)
        return cache.seen(states.keys, self._window), cache.seen(states.values, self._window)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not used: the rows need no mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Not used: positions are given."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older transformers."""
        return -1
