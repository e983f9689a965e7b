"""Edits that should not forget: what an edit's size, or the noise of rounding, does by itself.

Shapes: n neurons, d = d_model; any shape for noise.
"""

from __future__ import annotations

import numpy as np


def shuffled_edit(delta: np.ndarray, allowed: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same magnitudes on other weights: permuted among the ``allowed`` ones, signs drawn anew; [n, d]."""
    values = generator.permutation(delta[allowed])
    result = np.zeros_like(delta)
    result[allowed] = np.abs(values) * generator.choice(np.array([-1, 1], delta.dtype), len(values))
    return result


def rounding_noise(
    weights: np.ndarray, quantized: np.ndarray, generator: np.random.Generator, *, block: int = 32
) -> np.ndarray:
    """Normal noise with the variance that rounding has in every block of ``block`` weights of a row.

    ``weights`` and ``quantized`` [rows, columns]; columns that fill no whole block form a smaller one.
    """
    result = np.empty_like(weights)
    for first in range(0, weights.shape[1], block):
        part = slice(first, first + block)
        deviation = np.sqrt(np.mean(np.square(quantized[:, part] - weights[:, part]), axis=1, keepdims=True))
        result[:, part] = deviation * generator.standard_normal(weights[:, part].shape).astype(weights.dtype)
    return result
