"""A decoding step in eight kernels per layer, where transformers' layers take more than twenty.

A step of a small model is a chain of kernels over a few thousand numbers each; on a fast GPU their number, not the
bytes of the weights, determines the cost. Here a layer is: queries, keys and values; their rotation and the writes to
the cache; attention; its output projection; residual and norm; gate, up and activation; down; residual and norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascli.models.gpu.merged import Merged
from cascli.models.gpu.static_cache import StaticCache


class FusedStep:
    """Computes the logits of the last rows from ids `[n]`; writes keys and values to a cache with allocated buffers."""

    def __init__(self, weights: Merged, cache: StaticCache, vocab: int) -> None:
        self._weights, self._cache, self._vocab = weights, cache, vocab
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}
        self._capacity = 0

    def __call__(self, ids: Tensor, rows: int) -> Tensor:
        """Return logits `[rows, vocab]`, which have the same bits in any block of tokens."""
        from cascli.kernels.attention import attend
        from cascli.kernels.norms import add_norm
        from cascli.kernels.products import product
        from cascli.kernels.rotation import rotate_and_store

        weights, at = self._weights, self._cache.at
        angles = self._angles_of_all_positions()
        norms = [*(layer.before_attention for layer in weights.layers), weights.last_norm]
        residual, x = add_norm(weights.embedding(ids), None, norms[0])
        for layer, cache, next_norm in zip(weights.layers, self._cache.layers, norms[1:], strict=True):
            keys, values = cache.keys, cache.values
            states = product(x, *layer.states)
            queries = rotate_and_store(states, *angles[layer.kind], at, keys, values, layer.head_norms)
            x = attend(queries, keys, values, at, scale=layer.scale, window=layer.window, cap=weights.cap)
            x = product(x.flatten(2)[0], *layer.output)
            residual, x = add_norm(x, residual, layer.before_mlp, layer.after_attention)
            x = product(product(x, *layer.gate_up, activation=weights.activation), *layer.down)
            residual, x = add_norm(x, residual, next_norm, layer.after_mlp)
        logits = product(x[-rows:], *weights.head)
        if weights.last_cap:
            logits = weights.last_cap * torch.tanh(logits / weights.last_cap)
        return logits[:, : self._vocab]

    def _angles_of_all_positions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Angles for the cache's whole capacity; graphs that read them are dropped when the cache grows."""
        if self._capacity != self._cache.capacity:
            self._capacity = self._cache.capacity
            kinds = {layer.kind for layer in self._weights.layers}
            self._angles = {kind: self._weights.angles(kind, self._capacity) for kind in kinds}
        return self._angles
