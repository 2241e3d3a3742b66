"""Distributions one row at a time: warping, sampling by the inverse CDF, total variation."""

import numpy as np

Row = np.ndarray  # [V], float64


def softmax(logits: Row) -> Row:
    """exp(x) / sum exp(x); a logit of -inf has probability 0."""
    logits = np.asarray(logits, dtype=np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def warp(logits: Row, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Row:
    """The distribution to sample from: temperature, then top-k, then top-p; temperature 0 is greedy."""
    logits = np.asarray(logits, dtype=np.float64)
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]  # argmax takes the lowest id of a tie
    probs = softmax(logits / temperature)
    return top_p_filter(top_k_filter(probs, top_k), top_p)


def top_k_filter(probs: Row, top_k: int) -> Row:
    """Keep the k most likely tokens and whatever ties with the k-th; k = 0 keeps all."""
    if top_k <= 0 or top_k >= len(probs):
        return probs
    kth = np.sort(probs)[-top_k]
    kept = np.where(probs >= kth, probs, 0.0)
    return kept / kept.sum()


def top_p_filter(probs: Row, top_p: float) -> Row:
    """Keep the smallest set of most likely tokens whose mass reaches top_p (never empty; ties by id)."""
    if top_p >= 1.0:
        return probs
    order = np.argsort(-probs, kind="stable")
    mass_before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    keep = order[mass_before < top_p] if top_p > 0 else order[:1]
    kept = np.zeros_like(probs)
    kept[keep] = probs[keep]
    return kept / kept.sum()


def top_p_margin(probs: Row, top_p: float) -> float:
    """How far the nucleus is from holding one token more or less: 0 where a tie or rounding may decide."""
    if top_p >= 1.0:
        return 1.0
    order = np.argsort(-probs, kind="stable")
    sums = np.cumsum(probs[order])
    size = int(np.searchsorted(sums, top_p) + 1)
    if size >= len(probs):
        return float(np.abs(sums - top_p).min())
    tie = probs[order[size - 1]] - probs[order[size]]
    return float(min(np.abs(sums - top_p).min(), tie / max(probs[order[size - 1]], 1e-300)))


def sample(probs: Row, u: float) -> int:
    """The first id, in id order, at which the cumulative mass exceeds u; u in [0, 1)."""
    total = 0.0
    for token, prob in enumerate(probs):
        total += prob
        if u < total and prob > 0:
            return token
    return int(np.flatnonzero(probs)[-1])  # u exceeds a sum that rounding left below 1


def total_variation(a: Row, b: Row) -> float:
    """TV(a, b) = sum_v max(0, a(v) - b(v))."""
    return float(np.maximum(0.0, a - b).sum())
