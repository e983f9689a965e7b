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

Shapes: E edited weights of a tensor, in the order of rows, then columns; R rows that still miss something, n the most
edits of any of them.
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
    """``shift`` [E] (codes that each weight moves, chosen already) with those added that the rows' edits still need.

    edit, wanted: [E], the edit, and what the shipped weight is best away from the stock file's, in weight units.
    free: bool [E], weights that may move; None for all.
    """
    result = np.array(shift)
    if not edits.index.size:
        return result
    went, step, can = _places(levels, edits, shift, edit)
    if free is not None:
        can &= free
    rows = edits.index // levels.codes.shape[1]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    edit = edit.astype(np.float64)
    missing = np.add.reduceat((edit - went) * edit, starts)
    counts = np.diff(starts, append=rows.size)
    short = np.flatnonzero(missing > 0)
    if not short.size:
        return result
    # The edits of the rows that miss something, a row each, ragged ends filled up with places that none can take.
    column = np.arange(counts[short].max())
    place = np.minimum(starts[short, None] + column, rows.size - 1)
    can_here = can[place] & (column < counts[short, None])
    size, step_here = np.abs(edit)[place], step[place]
    left = np.sign(edit)[place] * (wanted - went)[place]
    with np.errstate(divide="ignore", invalid="ignore"):
        order_by = np.where(can_here, (step_here - 2 * left) / size, np.inf)
    take = _enough(order_by, np.where(can_here, step_here * size, 0), missing[short])
    chosen = place[take]
    result[chosen] += edits.direction[chosen]
    return result


def _places(
    levels: Levels, edits: Edits, shift: Codes, edit: npt.NDArray[np.floating]
) -> tuple[Doubles, Doubles, Mask]:
    """How far each weight went, how far its next level is in its edit's direction, and whether it has one; [E] each."""
    present = edits.codes + shift
    following = present + edits.direction
    can: Mask = (edits.direction != 0) & (edit != 0) & (following >= levels.lowest) & (following <= levels.highest)
    if levels.table is None:
        return shift * edits.scale, np.abs(edits.scale), can
    here = levels.level(present).astype(np.float64)
    on = levels.level(np.clip(following, levels.lowest, levels.highest))
    return (here - levels.level(edits.codes)) * edits.scale, np.abs((on - here) * edits.scale), can


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
