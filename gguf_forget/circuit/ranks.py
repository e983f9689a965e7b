"""Spearman's rank correlation."""

from __future__ import annotations

import numpy as np

from gguf_forget.errors import InputError


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64, of the flattened values; equal values share the mean of their ranks."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    _, places, counts = np.unique(flat, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[places]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN when there are fewer than two values or all of one side are equal."""
    if np.size(first) != np.size(second):
        raise InputError(f"{np.size(first)} and {np.size(second)} values cannot be correlated, needed equally many")
    a, b = (ranks(values) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")
