"""Deciding the columns of some rows one after the other, each hearing of the errors before it.

Shapes: every array lies [columns, rows], so that the column being decided is contiguous. columns: those that are
decided, in order; where rows have columns of their own, column k is the k-th of each row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.levels import Codes, Floats
from gguf_forget.grids.nearest import nearest_level

Doubles = npt.NDArray[np.float64]

COLUMNS_PER_UPDATE = 128  # lazy updates: later columns hear of the errors once per this many columns,
COLUMNS_PER_SMALL_UPDATE = 16  # and those inside the same 128 once per this many


def to_whole_shifts(shift: Doubles, table: Floats | None, present: Codes | None) -> None:
    """Turn wanted changes, in units of the scale, into the shifts to the nearest levels, in place, any shape."""
    if table is None or present is None:
        np.rint(shift, out=shift)
    else:
        np.subtract(nearest_level(table[present] + shift, 0, len(table) - 1, table), present, out=shift)


@dataclass(frozen=True)
class Sweep:
    """One pass over the columns of some rows; every array [columns, rows].

    change (what is wanted less Q0), scale, least, most: float64, scale nowhere 0. present: the original's codes less
    the lowest, and table: the levels in units of the scale, both None on an affine grid.
    """

    change: Doubles
    scale: Doubles
    least: Doubles
    most: Doubles
    present: Codes | None
    table: Floats | None

    def run(self, factor: Doubles) -> Doubles:
        """The shifts, whole numbers as float64 [columns, rows]; ``factor`` is that of ``feedback_factor``."""
        count = len(self.change)
        wanted = self.change.copy()  # plus what earlier columns pass on
        errors = np.empty_like(wanted)  # asked minus given, in weight units
        shift = np.empty_like(wanted)
        for start in range(0, count, COLUMNS_PER_UPDATE):
            end = min(start + COLUMNS_PER_UPDATE, count)
            for small in range(start, end, COLUMNS_PER_SMALL_UPDATE):
                small_end = min(small + COLUMNS_PER_SMALL_UPDATE, end)
                for column in range(small, small_end):
                    if column > small:
                        wanted[column] += factor[small:column, column] @ errors[small:column]
                    self._decide(column, wanted[column], shift[column], errors[column])
                if small_end < end:
                    wanted[small_end:end] += factor[small:small_end, small_end:end].T @ errors[small:small_end]
            if end < count:
                wanted[end:] += factor[start:end, end:].T @ errors[start:end]
        return shift

    def run_alone(self, factors: Doubles) -> Doubles:
        """As :meth:`run` for rows with a factor each, float64 [rows, columns, columns]: the lower Cholesky factors of
        the rows' H *read backwards*, so that what column k has to say to those after it lies in one line.
        """
        count, rows = self.change.shape
        heard = np.zeros((rows, count))  # backwards as well: what each column hears, times its diagonal
        diagonal = np.ascontiguousarray(np.diagonal(factors, axis1=1, axis2=2).T)
        error = np.empty(rows)
        shift = np.empty_like(self.change)
        for column in range(count):
            back = count - 1 - column
            wanted = self.change[column] + heard[:, back] / diagonal[back]
            self._decide(column, wanted, shift[column], error)
            heard[:, :back] += factors[:, back, :back] * error[:, None]
        return shift

    def _decide(self, column: int, wanted: Doubles, shift: Doubles, error: Doubles) -> None:
        """The nearest level to ``wanted`` inside the interval, into ``shift``; what it leaves undone into ``error``."""
        scale = self.scale[column]
        np.divide(wanted, scale, out=shift)
        present = None if self.present is None else self.present[column]
        to_whole_shifts(shift, self.table, present)
        np.maximum(shift, self.least[column], out=shift)
        np.minimum(shift, self.most[column], out=shift)
        if self.table is None or present is None:
            np.multiply(shift, scale, out=error)
        else:
            there = self.table[present + shift.astype(np.int16)].astype(np.float64)
            np.multiply(there - self.table[present], scale, out=error)
        np.subtract(self.change[column], error, out=error)
