"""The Kullback-Leibler divergence of two files' next-token distributions, from their k most probable tokens.

Shapes:
    P: positions
    k: tokens kept at each position
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_forget.errors import EvaluationError

LEAST = 1e-12  # probability of "all other tokens", which rounding may put at or below 0


def truncated_divergence(
    tokens: ArrayLike, log_probabilities: ArrayLike, other_tokens: ArrayLike, other_log_probabilities: ArrayLike
) -> NDArray[np.float64]:
    """KL(p ‖ q) in nats at each position, [P], of distributions coarsened to what both files kept.

    Args:
        tokens, log_probabilities: the k most probable tokens of p, [P, k].
        other_tokens, other_log_probabilities: those of q, [P, k].

    The cells are the tokens that are among the k of *both*, and one cell for all other tokens together. Merging
    outcomes can only lower a divergence, so this is a lower bound of the full one; it grows towards it with k.
    """
    ids, others = np.asarray(tokens), np.asarray(other_tokens)
    p = np.asarray(log_probabilities, dtype=np.float64)
    q = np.asarray(other_log_probabilities, dtype=np.float64)
    if not (ids.shape == p.shape and others.shape == q.shape and ids.ndim == 2 and len(ids) == len(others)):
        raise EvaluationError(
            f"tokens and log-probabilities have shapes {ids.shape}, {p.shape}, {others.shape}, {q.shape}, "
            "needed [positions, k] of the same positions"
        )
    result = np.empty(len(ids), dtype=np.float64)
    for position in range(len(ids)):
        _, mine, theirs = np.intersect1d(ids[position], others[position], assume_unique=True, return_indices=True)
        a, b = p[position, mine], q[position, theirs]
        rest_a = max(1.0 - np.exp(a).sum(), LEAST)
        rest_b = max(1.0 - np.exp(b).sum(), LEAST)
        result[position] = (np.exp(a) * (a - b)).sum() + rest_a * np.log(rest_a / rest_b)
    return np.maximum(result, 0.0)
