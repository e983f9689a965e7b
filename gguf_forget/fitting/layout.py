"""Where the weights of a GGUF tensor lie in the torch parameter that was read from it, found by looking.

Shapes: rows, columns as in :mod:`gguf_forget.grids.levels`; torch's array is [rows, columns] or [columns, rows].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gguf_forget.checkpoint.names import interleave_heads


@dataclass(frozen=True)
class Layout:
    """rows: intp [rows], the place among torch's rows of every stored row. transposed: torch has [columns, rows]."""

    rows: np.ndarray
    transposed: bool

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Torch's array as the GGUF's [rows, columns]."""
        return (array.T if self.transposed else array)[self.rows]

    def places(self, index: np.ndarray, columns: int) -> np.ndarray:
        """Flat positions in torch's array of the flat positions ``index`` in [rows, columns]."""
        row, column = np.divmod(index, columns)
        row = self.rows[row]
        return column * len(self.rows) + row if self.transposed else row * columns + column


def layout_of(stored: np.ndarray, own: np.ndarray, heads: Iterable[int]) -> Layout | None:
    """How ``own``, torch's array, holds ``stored`` [rows, columns]; None where in no way that is known.

    heads: numbers of heads by which llama.cpp may have interleaved the rows, as it does for rotary embeddings.
    """
    rows = len(stored)
    straight = np.arange(rows, dtype=np.intp)
    found = [Layout(straight, False), Layout(straight, True)]
    for count in dict.fromkeys(heads):
        if count and rows % (2 * count) == 0:
            found.append(Layout(interleave_heads(straight[:, None], count).ravel(), False))
    for layout in found:
        shape = own.shape[::-1] if layout.transposed else own.shape
        if shape == stored.shape and np.array_equal(layout.stored(own), stored):
            return layout
    return None
