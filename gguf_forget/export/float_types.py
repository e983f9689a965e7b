"""F32, F16 and BF16 by numpy: which value a weight takes there, and the bytes of that value.

libggml decodes what is written, so that neither side is checked against itself.
"""

from __future__ import annotations

import numpy as np


def nearest(kind: str, weights: np.ndarray) -> np.ndarray:
    """What a type can hold nearest to ``weights`` (float32, any shape), ties to even; float32.

    Beyond the type's range that is infinity.
    """
    if kind == "F16":
        return weights.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        bits = weights.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return weights


def to_bytes(kind: str, values: np.ndarray) -> np.ndarray:
    """The bytes of ``values`` (float32 [rows, columns]) all of which the type can hold, uint8 [rows, bytes per row]."""
    if kind == "F16":
        return values.astype(np.float16).view(np.uint8)
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)
