"""What is kept of a row of logits: numpy over rows that llama.cpp computed, and nothing of llama.cpp itself.

Every function reads rows that are llama.cpp's own memory, and returns arrays of its own. What a row that is not
finite gives is NaN (or −1 for a token), never a number that looks like a score.

Shapes:
    R: rows of logits
    V: vocabulary size
    m: tokens asked about; several may share a row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NEGLIGIBLE = (
    -700.0
)  # exp of it is the smallest float64: such a token adds nothing to a mean, and 0 · −inf is no number


def log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log Σ exp over the last axis, [R, V] to [R].

    Row by row, so that a row stays in the processor's cache. Exponentials are at most 1, and NumPy adds them
    pairwise: float32 then keeps the sum to about 1e-6.
    """
    result = np.empty(len(logits), dtype=np.float64)
    buffer = np.empty(logits.shape[1], dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, row in enumerate(logits):
            peak = row.max()
            np.subtract(row, peak, out=buffer)
            np.exp(buffer, out=buffer)
            result[i] = np.log(np.float64(buffer.sum())) + np.float64(peak)
    return result


def log_probability(
    logits: NDArray[np.float32], row: NDArray[np.intp], token: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Natural-log probability of each token in its row, [m]."""
    with np.errstate(invalid="ignore"):
        return logits[row, token].astype(np.float64) - log_sum_exp(logits)[row]


def best(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most probable token of each row, ties to the lowest id, [R]; −1 where its logit is not finite."""
    token = logits.argmax(axis=1)  # NaN counts as the greatest
    finite = np.isfinite(logits[np.arange(len(logits)), token])
    return np.where(finite, token, -1)


def is_best(logits: NDArray[np.float32], row: NDArray[np.intp], token: NDArray[np.int64]) -> NDArray[np.float64]:
    """1.0 where the token is the most probable of its row, else 0.0, [m]; NaN where that cannot be said."""
    chosen = best(logits)[row]
    return np.where(chosen < 0, np.nan, chosen == token)


def top(logits: NDArray[np.float32], row: NDArray[np.intp], k: int) -> NDArray[np.float64]:
    """For each row asked about, in one line: k token ids, their k log-probabilities, mean, variance; [m, 2k + 2].

    Best first, ties to the lowest id. Mean and variance are those of log p(token), the token drawn from p.
    """
    result = np.full((len(logits), 2 * k + 2), np.nan)
    for line, values in zip(result, logits, strict=True):
        if not np.isfinite(values.max()):
            continue
        threshold = np.partition(values, -k)[-k]
        among = np.flatnonzero(values >= threshold)
        tokens = among[np.argsort(-values[among], kind="stable")][:k]
        shifted = values.astype(np.float64) - float(values.max())
        weights = np.exp(shifted)
        normaliser = weights.sum()
        weights /= normaliser
        np.maximum(shifted, _NEGLIGIBLE, out=shifted)
        mean = weights @ shifted
        line[:k] = tokens
        line[k : 2 * k] = shifted[tokens] - np.log(normaliser)
        line[-2] = mean - np.log(normaliser)
        line[-1] = weights @ (shifted - mean) ** 2
    return result[row]


def draw(logits: NDArray[np.float32], temperature: float, uniform: float) -> int:
    """The token of one row, [V], at which the cumulative softmax of logits / temperature passes ``uniform``.

    Args:
        uniform: in [0, 1). Equal numbers give equal tokens, and close ones mostly too: so two files asked with
            the same numbers differ by what they know, not by luck.
    """
    peak = logits.max()
    if not np.isfinite(peak):
        return -1
    cumulative = np.cumsum(np.exp((logits - peak) / np.float32(temperature)), dtype=np.float64)
    return int(min(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), len(logits) - 1))
