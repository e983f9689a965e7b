"""Rows whose few movable columns are their own: each row's problem has its own small H.

A column of a row that has no edit and may not move makes no error, so the row's objective is that of H restricted to
its other columns, and the best feedback is the factor of that small matrix. Scattered edits are of this kind: 3 % of
5,632 columns are 169, another 169 in every row. Factors of one size are made together.

Shapes: R rows of a batch, n the most columns that one of them has. A row with fewer is filled up at its end with
columns that have no edit, cannot move and are tied to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.rounding.edits import Mask
from gguf_forget.rounding.feedback import Feedback, cholesky

ENTRIES_AT_ONCE = 1 << 20  # R·n·n of a batch, float64


def rows_alone(involved: Mask, decided: int) -> Mask:
    """The rows, bool [rows], to be decided alone; involved: [rows, columns], edited or free; decided: columns of all.

    Those for which factoring n columns (n³ / 3) is no more work than their part of a sweep over all columns (its
    square). Of any row this depends on its own columns alone; a row that has all the decided ones is as well off, and
    much faster, together with the others.
    """
    counts = np.count_nonzero(involved, axis=1)
    return (counts < decided) & (counts.astype(np.float64) ** 3 <= 3.0 * involved.shape[1] ** 2)


@dataclass(frozen=True)
class OwnPlaces:
    """Where the columns of R rows lie. rows: [R]. columns: [n, R], the k-th column of every row; there: bool [n, R],
    False where the row has no more."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    there: Mask

    def gather(self, array: npt.NDArray[Any], fill: float) -> npt.NDArray[np.float64]:
        """The places of ``array`` [rows, columns], ``fill`` where there is none; float64 [n, R]."""
        return np.where(self.there, array[self.rows, self.columns], fill).astype(np.float64)

    def scatter(self, values: npt.NDArray[np.float64], array: npt.NDArray[Any]) -> None:
        """Write [n, R] to their places in ``array`` [rows, columns]."""
        rows = np.broadcast_to(self.rows, self.columns.shape)
        array[rows[self.there], self.columns[self.there]] = values[self.there]

    def factors(self, feedback: Feedback) -> npt.NDArray[np.float64]:
        """The lower Cholesky factors of each row's H, its columns read backwards; [R, n, n]."""
        back, there = self.columns[::-1].T, self.there[::-1].T  # [R, n]
        matrices = feedback.hessian[back[:, :, None], back[:, None, :]].astype(np.float64)
        matrices *= there[:, :, None]
        matrices *= there[:, None, :]
        diagonal = np.arange(back.shape[1])
        matrices[:, diagonal, diagonal] = np.where(there, feedback.diagonal[back], 1.0)
        return cholesky(matrices)


def own_places(edited: Mask, free: Mask, chosen: npt.NDArray[np.intp]) -> Iterator[OwnPlaces]:
    """Batches of the rows ``chosen``; edited, free: bool [rows, columns].

    As for rows that share their columns, those whose error is given (edited, but not free) come first.
    """
    involved = (edited | free)[chosen]
    counts = np.count_nonzero(involved, axis=1)
    by_size = np.argsort(counts, kind="stable")  # rows of about one size together
    start = 0
    while start < by_size.size:
        stop = start + 1
        while stop < by_size.size and (stop + 1 - start) * int(counts[by_size[stop]]) ** 2 <= ENTRIES_AT_ONCE:
            stop += 1
        part = by_size[start:stop]
        yield _places(involved[part], free[chosen[part]], counts[part], chosen[part])
        start = stop


def _places(involved: Mask, free: Mask, counts: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]) -> OwnPlaces:
    row, column = np.nonzero(involved)
    given = ~free[row, column]
    if given.any():
        order = np.lexsort((column, ~given, row))
        row, column = row[order], column[order]
    place = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (int(counts.max()), rows.size)
    columns, there = np.zeros(shape, dtype=np.intp), np.zeros(shape, dtype=bool)
    columns[place, row] = column
    there[place, row] = True
    return OwnPlaces(rows, columns, there)
