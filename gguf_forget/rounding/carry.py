"""Edits far smaller than a step, carried row by row (ours).

A weight of a tenth of a step's edit either keeps its code or moves ten times as far. Where the original's weights lie
anywhere in their bins, one in ten crosses to the next code and the edit arrives on average: rounding is its own dither.
Where they lie near the middle of their bins, as in a model that was itself stored in four bits before, next to none
crosses, and rounding to the nearest code brings back nearly all of what was unlearned.

So further codes move, one step each and in their edits' direction, until the row's edit D has arrived:

    Σ M·D = Σ D²        M = shipped minus stock weights; sums over the row's edited weights

Those go first that add least squared error to what they add to Σ M·D: with r = how much of the edit (or of the weight
aimed at) is missing there, in the edit's direction, a code of step s adds s·(s - 2·r) to the error and s·|D| to the
sum, so the order is (s - 2·r) / |D|. The last code is taken where it brings the sum closer.

Shapes: rows, columns as in :mod:`gguf_forget.grids.layout`; n columns that any of the rows edits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.layout import Codes, Levels
from gguf_forget.rounding.edits import Mask

FIRST = 32  # codes a row for which an order is made at first; more only where they do not suffice


def carry(
    levels: Levels, codes: Codes, delta: npt.NDArray[Any], wanted: npt.NDArray[Any], free: Mask | None = None
) -> Codes:
    """``codes`` with those moved that the rows' edits still need; int16 [rows, columns], a copy.

    levels: of the stock file. codes: chosen already. delta, wanted: float [rows, columns], the edit, and what the
    chosen weight is best away from the stock file's, both in weight units. free: as in ``round_edit``.
    """
    result = np.array(codes, order="C")
    columns = np.flatnonzero((delta != 0).any(axis=0))
    if not columns.size:
        return result
    part = slice(columns[0], columns[-1] + 1) if columns[-1] - columns[0] + 1 == columns.size else columns
    edit = delta[:, part].astype(np.float32, copy=False)
    present = result[:, part]
    scale = np.repeat(levels.scale, levels.sub_block, axis=1)[:, part]
    direction = np.sign(edit) * np.sign(scale)
    went, step = _moved_and_step(levels, levels.codes[:, part], present, scale, direction)
    missing = np.square(edit).sum(axis=1, dtype=np.float64) - np.multiply(went, edit).sum(axis=1, dtype=np.float64)
    size = np.abs(edit)
    worth = step * size  # what moving on by a code adds to the row's sum
    following = present + direction.astype(np.int16)
    can = (worth > 0) & (following >= levels.lowest) & (following <= levels.highest)
    if free is not None:
        can &= free[:, part]
    rows = np.flatnonzero((missing > 0) & can.any(axis=1))
    if not rows.size:
        return result
    left = np.sign(edit[rows]) * (wanted[rows][:, part] - went[rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        order_by = np.where(can[rows], (step[rows] - 2 * left) / size[rows], np.inf)
    worth = np.where(can[rows], worth[rows], 0)
    take = _enough(order_by, worth, missing[rows])
    place, column = np.nonzero(take)
    where = (rows[place], columns[column])
    result[where] = following[rows[place], column]
    return result


def _moved_and_step(
    levels: Levels,
    stock: Codes,
    present: Codes,
    scale: npt.NDArray[np.floating],
    direction: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """How far each weight is from the stock file's, and from its next level in ``direction`` (0 past the last one)."""
    if levels.table is None:
        return (present - stock) * scale, np.abs(scale)
    here = levels.level(present)
    on = np.clip(present + direction.astype(np.int16), levels.lowest, levels.highest)
    return (here - levels.level(stock)) * scale, np.abs((levels.level(on) - here) * scale)


def _enough(
    order_by: npt.NDArray[np.floating], worth: npt.NDArray[np.floating], missing: npt.NDArray[np.float64]
) -> Mask:
    """The first weights of each row, in ascending ``order_by``, whose ``worth`` makes up for what is ``missing``."""
    rows, n = order_by.shape
    take = np.zeros((rows, n), dtype=np.bool_)
    keys = _with_columns(order_by.astype(np.float32, copy=False))
    todo, count = np.arange(rows), min(FIRST, n)
    while todo.size:
        first = np.sort(np.partition(keys[todo], count - 1, axis=1)[:, :count], axis=1)
        order = first & 0xFFFFFFFF
        added = np.take_along_axis(worth[todo], order, axis=1).astype(np.float64)
        before = np.cumsum(added, axis=1) - added
        chosen = (before + added / 2 <= missing[todo, None]) & (added > 0)
        more = chosen[:, -1] & (count < n)  # all of them are wanted: there may be others
        place, which = np.nonzero(chosen & ~more[:, None])
        take[todo[place], order[place, which]] = True
        todo, count = todo[more], min(4 * count, n)
    return take


def _with_columns(order_by: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Whole numbers in the same order, equal ones in that of their columns, which are the lower 32 bits."""
    bits = (order_by + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)
    return (ascending << 32) | np.arange(order_by.shape[1])
