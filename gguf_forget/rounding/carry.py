"""Edits far smaller than a step, carried row by row (ours).

A weight of a tenth of a step's edit either keeps its code or moves ten times as far. Where the original's weights lie
anywhere in their bins, one in ten crosses to the next code and the edit arrives on average: rounding is its own dither.
Where they lie near the middle of their bins, as in a model that was itself stored in four bits before, next to none
crosses, and rounding to the nearest code brings back nearly all of what was unlearned.

So further codes move, one step each and in their edits' direction, until the row's edit D has arrived:

    Σ M·D = Σ D²        M = shipped minus stock weights; sums over the row's edited weights

Where more than that moved already, as chance or the repair of the original's rounding errors may have it, codes that
moved in their edits' direction go one step back instead: no row has a bias left, in either direction.

Those go first that add least squared error to what they change in Σ M·D: with r = what is missing there of the weight
that is aimed at, in the direction of the step, a step of size s adds s·(s - 2·r) to the error and changes the sum by
s·|D|, so the order is (s - 2·r) / |D|. The last code is taken where it brings the sum closer.

Edits that must land (half a step and more) do so by themselves and are left out, of the sums as of the steps.

Shapes: E edited weights of a tensor, in the order of rows, then columns, and S of them that need not land; R rows that
have such, n the most of any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.levels import Codes, LevelsAt
from gguf_forget.rounding.edits import Edits, Mask

FIRST = 32  # codes a row for which an order is made at first; more only where they do not suffice
Doubles = npt.NDArray[np.float64]


def carry(
    edits: Edits,
    shift: Codes,
    edit: npt.NDArray[np.floating],
    wanted: npt.NDArray[np.floating],
    free: Mask | None = None,
) -> Codes:
    """``shift`` [E] (codes that each weight moves, chosen already) such that the edit of every row arrives.

    edit, wanted: [E], the edit, and what the shipped weight is best away from the stock file's, in weight units.
    free: bool [E], weights that may move; None for all.
    """
    result = np.array(shift)
    small = np.flatnonzero(~edits.asked & (edit != 0) & (edits.direction != 0))
    if not small.size:
        return result
    at, scale, direction = edits.at, edits.scale[small], edits.direction[small]
    codes = at.codes[small]
    shift, wanted, edit = shift[small], wanted[small], edit[small].astype(np.float64)
    went = _distance(at, codes, scale, np.zeros_like(shift), shift)
    rows = at.index[small] // at.columns
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.diff(starts, append=rows.size)
    missing = np.add.reduceat((edit - went) * edit, starts)
    # Which way a weight of this row would go on: 1 with its edit, -1 back, and then no further than it came.
    way = np.repeat(np.sign(missing).astype(np.int8), counts)
    towards = direction * way
    following = codes + shift + towards
    can = (towards != 0) & (following >= at.lowest) & (following <= at.highest)
    can &= (way > 0) | (shift * direction > 0)
    if free is not None:
        can &= free[small]
    step = np.abs(_distance(at, codes, scale, shift, shift + np.where(can, towards, 0)))
    size = np.abs(edit)
    order_by = np.where(can, (step - 2 * np.sign(edit) * way * (wanted - went)) / size, np.inf)
    worth = np.where(can, step * size, 0)
    # The edits of a row side by side; ragged ends are filled up with places that none can take.
    column = np.arange(counts.max())
    place = np.minimum(starts[:, None] + column, rows.size - 1)
    there = column < counts[:, None]
    take = _enough(np.where(there, order_by[place], np.inf), np.where(there, worth[place], 0), np.abs(missing))
    chosen = place[take]
    result[small[chosen]] += towards[chosen]
    return result


def _distance(at: LevelsAt, codes: Codes, scale: Doubles, before: Codes, after: Codes) -> Doubles:
    """From shifts ``before`` to ``after`` of ``codes``, in weight units, [S]."""
    if at.table is None:
        return (after - before) * scale
    return (at.level(codes + after).astype(np.float64) - at.level(codes + before)) * scale


def _enough(order_by: npt.NDArray[np.floating], worth: npt.NDArray[np.floating], missing: Doubles) -> Mask:
    """bool [R, n]: in ascending ``order_by``, the first places whose ``worth`` makes up for what is ``missing`` [R]."""
    rows, n = order_by.shape
    take = np.zeros((rows, n), dtype=np.bool_)
    keys = _with_columns(order_by.astype(np.float32, copy=False))
    todo, count = np.arange(rows), min(FIRST, n)
    while todo.size:
        first = np.sort(np.partition(keys[todo], count - 1, axis=1)[:, :count], axis=1)
        order = first & 0xFFFFFFFF
        added = np.take_along_axis(worth[todo], order, axis=1)
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
