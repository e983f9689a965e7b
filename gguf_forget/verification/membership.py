"""Whether a text looks like one that was trained on: Min-K %, Min-K %++, and what is made of them.

Shapes:
    T: scored tokens of a text
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gguf_forget.errors import EvaluationError

SHARE = 0.4  # of the tokens, the least probable ones; MUSE's choice


def _lowest(values: np.ndarray, share: float) -> float:
    if not 0 < share <= 1:
        raise EvaluationError(f"the share of tokens is {share}, needed above 0 and at most 1")
    if not values.size:
        return math.nan
    count = max(1, int(share * values.size))
    return float(np.sort(values)[:count].mean())


def min_k(log_probabilities: ArrayLike, *, share: float = SHARE) -> float:
    """Mean log-probability of the ``share`` least probable tokens, [T]; at least one token.

    Shi et al., arXiv 2310.16789, section 4. Higher for texts that were trained on.
    """
    return _lowest(np.asarray(log_probabilities, dtype=np.float64), share)


def min_k_plus_plus(
    log_probabilities: ArrayLike, means: ArrayLike, variances: ArrayLike, *, share: float = SHARE
) -> float:
    """The same of log-probabilities standardised at each position, all [T].

    Zhang et al., arXiv 2404.02936, equation 3: ``means`` and ``variances`` are those of log p(token) where the token is
    drawn from the model itself at that position. A position where the model is certain (variance 0) gives 0.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    spread = np.sqrt(np.maximum(np.asarray(variances, dtype=np.float64), 0.0))
    centred = values - np.asarray(means, dtype=np.float64)
    standard = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return _lowest(standard, share)


def area_under_curve(members: ArrayLike, others: ArrayLike) -> float:
    """The chance that a random member scores above a random other text, ties one half; NaN where one side is empty."""
    first = np.asarray(members, dtype=np.float64)
    second = np.asarray(others, dtype=np.float64)
    if not first.size or not second.size or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.nan
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, side="left")
    tied = np.searchsorted(ordered, first, side="right") - below
    return float((below + tied / 2).sum() / (first.size * second.size))


def privacy_leak(unlearned: float, retrained: float) -> float:
    """(AUC(unlearned) − AUC(retrained)) / AUC(retrained), in per cent; 0 is ideal.

    MUSE's PrivLeak (arXiv 2407.06460, section 3). The AUC is that of texts never seen above forgotten ones, by Min-K %:
    0 where the forgotten texts are known by heart, which gives −100.
    """
    return math.nan if not retrained > 0 else 100 * (unlearned - retrained) / retrained
