"""Where a tensor's weights are in torch's array."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.checkpoint.names import interleave_heads
from gguf_forget.fitting.layout import layout_of

STORED = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def undone(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows (head, i, which half) to (head, which half, i)."""
    rows, columns = weights.shape
    return weights.reshape(heads, -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize(
    "own", [STORED, STORED.T, undone(STORED, 2), undone(STORED, 3)], ids=["same", "transposed", "2 heads", "3 heads"]
)
def test_weights_are_found_wherever_they_are(own: np.ndarray) -> None:
    own = np.ascontiguousarray(own)
    layout = layout_of(STORED, own, (2, 3))
    assert layout is not None
    np.testing.assert_array_equal(layout.stored(own), STORED)
    index = np.random.default_rng(1).permutation(STORED.size)
    np.testing.assert_array_equal(own.ravel()[layout.places(index, 5)], STORED.ravel()[index])


def test_heads_are_undone_as_they_were_made() -> None:
    np.testing.assert_array_equal(interleave_heads(undone(STORED, 3), 3), STORED)


def test_an_order_that_is_not_known_is_none() -> None:
    assert layout_of(STORED, STORED[::-1], (2, 3)) is None
    assert layout_of(STORED, undone(STORED, 3), (2,)) is None
    assert layout_of(STORED, STORED[:6], (0, 5)) is None
