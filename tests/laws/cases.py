"""Batches of logits for two models, from ordinary to adversarial, and the sampling settings applied to them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cascli.sampling.parameters import Sampling

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.7),
    Sampling(temperature=2.5, top_k=3),
    Sampling(top_k=1),
    Sampling(top_p=0.6),
    Sampling(temperature=0.4, top_k=4, top_p=0.75),
    Sampling(temperature=1.3, top_p=1e-6),
]
ALPHAS = (-1e9, -1.0, -0.2, -1e-6, 0.0, 0.05, 0.3, 0.7, 0.999, 1.0, 1.5)
DTYPES = [torch.float64, torch.float32]


def logit_batches(rows: int = 40, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(label, draft logits [n, V], target logits [n, V]); -inf marks tokens that a model cannot produce."""
    rng = np.random.default_rng(seed)
    for size in (2, 3, 7, 33):
        x, y = rng.normal(size=(2, rows, size))
        yield f"flat {size}", 0.3 * x, 0.3 * y
        yield f"usual {size}", 2 * x, 2 * y
        yield f"peaked {size}", 12 * x, 12 * y
        yield f"tiny {size}", 90 * x, 90 * y  # probabilities far below 1e-30, many 0 in float32
        yield f"similar {size}", 2 * x, 2 * x + 0.01 * y
        yield f"equal {size}", 2 * x, 2 * x
        yield f"ties {size}", np.round(1.5 * x), np.round(1.5 * y)
        yield f"uniform {size}", 0 * x, 0 * y
        yield f"half masked {size}", masked(x, rng), masked(y, rng)
        yield f"one-hot {size}", one_hot(x), one_hot(y)
        left = np.arange(size) < (size + 1) // 2
        yield f"disjoint {size}", np.where(left, x, -np.inf), np.where(left, -np.inf, y)


def masked(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mask about half of the tokens, but never a whole row."""
    keep = rng.random(logits.shape) < 0.5
    keep[np.arange(len(keep)), rng.integers(0, logits.shape[1], len(keep))] = True
    return np.where(keep, logits, -np.inf)


def one_hot(logits: np.ndarray) -> np.ndarray:
    """Put all of the mass on the largest logit."""
    return np.where(logits == logits.max(axis=1, keepdims=True), 0.0, -np.inf)


def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.tensor(array, dtype=dtype)


def rows(tensor: Tensor) -> np.ndarray:
    """The tensor's exact values in float64, for the reference."""
    return tensor.detach().double().numpy()


def closeness(dtype: torch.dtype) -> float:
    """The largest absolute difference from the reference that rounding can explain."""
    return 1e-12 if dtype == torch.float64 else 2e-6
