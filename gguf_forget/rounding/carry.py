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

Shapes: E edited weights of a tensor, in the order of rows, then columns; R rows of it, n the most edits of any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.layout import Codes, Levels
from gguf_forget.rounding.edits import Edits, Mask

FIRST = 32  # codes a row for which an order is made at first; more only where they do not suffice
Doubles = npt.NDArray[np.float64]


def carry(
    levels: Levels,
    edits: Edits,
    shift: Codes,
    edit: npt.NDArray[np.floating],
    wanted: npt.NDArray[np.floating],
    free: Mask | None = None,
) -> Codes:
    """``shift`` [E] (codes that each weight moves, chosen already) such that the edit of every row arrives.

    edit, wanted: [E], the edit, and what the shipped weight is best away from the stock file's, in weight units.
    free: bool [E], weights that may move; None for all. Edits that must land stay landed.
    """
    result = np.array(shift)
    if not edits.index.size:
        return result
    edit = edit.astype(np.float64)
    went = _distance(levels, edits, np.zeros_like(shift), shift)
    rows = edits.index // levels.codes.shape[1]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    missing = np.add.reduceat((edit - went) * edit, starts)
    counts = np.diff(starts, append=rows.size)
    # Which way a weight of this row would go on: 1 with its edit, -1 back.
    way = np.repeat(np.sign(missing).astype(np.int8), counts)
    towards = edits.direction * way
    following = edits.codes + shift + towards
    least = np.where(edits.asked & ~edits.saturated, 1, 0)
    can = (towards != 0) & (edit != 0) & (following >= levels.lowest) & (following <= levels.highest)
    can &= (way > 0) | (shift * edits.direction > least)
    if free is not None:
        can &= free
    step = np.abs(_distance(levels, edits, shift, shift + np.where(can, towards, 0)))
    left = np.sign(edit) * way * (wanted - went)
    size = np.abs(edit)
    with np.errstate(divide="ignore", invalid="ignore"):
        order_by = np.where(can, (step - 2 * left) / size, np.inf)
    # The edits of a row side by side; ragged ends are filled up with places that none can take.
    short = np.flatnonzero(missing != 0)
    column = np.arange(counts.max())
    place = np.minimum(starts[short, None] + column, rows.size - 1)
    there = column < counts[short, None]
    take = _enough(
        np.where(there, order_by[place], np.inf),
        np.where(there & can[place], (step * size)[place], 0),
        np.abs(missing[short]),
    )
    chosen = place[take]
    result[chosen] += towards[chosen]
    return result


def _distance(levels: Levels, edits: Edits, before: Codes, after: Codes) -> Doubles:
    """From shifts ``before`` to ``after``, in weight units, [E]."""
    if levels.table is None:
        return (after - before) * edits.scale
    return (levels.level(edits.codes + after).astype(np.float64) - levels.level(edits.codes + before)) * edits.scale


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
