"""Bin-aware, error-compensated code choice on the original's own grid.

The original's quantized weights Q0, the edit D (unlearned minus original, full precision) and the wanted weights V are
given. Codes are chosen to keep tr((Ŵ - V)·H·(Ŵ - V)ᵀ) small, H = Σ x·xᵀ over calibration inputs, while every edit
that must survive lands. V is one of two:

- Q0 + D, "edit transport" (ours): the rounding error of the original is no part of the objective. Right for few edits
  of whole steps: they arrive exactly, and nothing else moves. Edits far smaller than a step are all lost.
- the unlearned weights themselves, where there is an edit. What the original's rounding left over then decides which
  of many small edits cross to the next code, so that on average each arrives: right for edits everywhere.

Everything is done in shifts: how many codes a weight goes from the original's code. Every constraint is an
interval of shifts, and the best shift of one weight is the nearest level inside its interval.

A diagonal H (all that an imatrix holds) ties no weight to another: the code of each that keeps that error least is then
its nearest one, whatever the diagonal. That is what is done without H. What is carried afterwards (:mod:`.carry`)
weighs all columns alike, with or without H.

Rows are independent given H. Where each row may move a few columns of its own, the problem of that row is one of
those columns alone (:mod:`.rows_alone`); all other rows share one order of columns and one factor.

Shapes: rows, columns as in :mod:`gguf_forget.grids.levels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.levels import Codes, Levels, Places
from gguf_forget.rounding.carry import carry
from gguf_forget.rounding.edits import Edits, Mask, find_edits
from gguf_forget.rounding.feedback import Feedback, columns_to_decide, feedback_for
from gguf_forget.rounding.rows_alone import own_places, rows_alone
from gguf_forget.rounding.sweep import Doubles, Sweep, to_whole_shifts

WEIGHTS_PER_SWEEP = 1 << 20  # rows are independent given H; this bounds the float64 work space


@dataclass(frozen=True)
class Rounded:
    """The chosen codes, and what became of the edits. ``asked == landed + saturated`` always holds.

    codes: int16 [rows, columns].
    asked: edited weights that had to land at least one code away, in the edit's direction.
    landed: those that did.
    saturated: those that could not, because the original's code is the last one in that direction (or the
        sub-block's scale is 0, so that all its levels coincide); their error went to the later columns.
    moved_at: flat positions of all weights whose code changed, intp [moved].
    moved_by_compensation: changed codes of weights that had no edit of their own (delta 0, free).
    """

    codes: Codes
    asked: int
    landed: int
    saturated: int
    moved_at: npt.NDArray[np.intp]
    moved_by_compensation: int

    @property
    def moved(self) -> int:
        return len(self.moved_at)


def round_edit(
    levels: Levels,
    delta: npt.NDArray[Any],
    *,
    wanted: npt.NDArray[Any] | None = None,
    hessian: npt.NDArray[Any] | Feedback | None = None,
    free: Mask | None = None,
    must_move: Mask | None = None,
    survive: str = "important",
    damp: float = 0.01,
    carried: npt.NDArray[Any] | None = None,
) -> Rounded:
    """Codes for ``levels.values() + wanted`` on the grid of ``levels``.

    delta: float [rows, columns], the edit in weight units: which weights are edited, and which way.
    wanted: float [rows, columns], V - Q0 above, 0 where delta is; None takes delta. Then an edit that is a whole
        number of steps everywhere comes out exactly as that many codes, with no other code moved, whatever H.
        Without H, no code moves against its edit.
    hessian: float [columns, columns], symmetric, positive semi-definite, or what ``feedback_for`` made of it (for
        some rows of a tensor at a time); None rounds each weight to nearest.
    free: bool [rows, columns], None for all. Where False the original's code stays, whatever delta; the
        error that this makes is still passed to the free columns.
    must_move: bool [rows, columns]; weights with an edit that must land at least one code away in the edit's
        direction. Delta 0 asks nothing. None leaves the choice to ``survive``.
    survive: "all" asks it of every free edit, "important" of those of at least half the step in their direction,
        "none" of no edit.
    damp: added to H's diagonal, as a fraction of its mean; not to a ready Feedback.
    carried: float [rows, columns], an edit of whose rows nothing may be lost: further codes move until it has arrived
        (:mod:`gguf_forget.rounding.carry`).

    Raises InputError for shapes or dtypes that do not fit, values that are not finite, a weight that is in
    ``must_move`` but not ``free``, an unknown ``survive``, and a Hessian that is not symmetric positive semi-definite.
    """
    _check(levels, delta, wanted, free, must_move)
    change = delta if wanted is None else wanted
    feedback = hessian
    if isinstance(hessian, np.ndarray):
        feedback = _feedback(hessian, delta, free, damp)
    index = np.flatnonzero(delta != 0)  # twice as fast as from the floats themselves
    change_at, carried_at = change.ravel()[index], _at(carried, index)
    may_move, must_move_at = _at(free, index), _at(must_move, index)
    edits = find_edits(levels.at(index), delta.ravel()[index], survive=survive, must_move=must_move_at, free=may_move)
    if isinstance(feedback, Feedback):
        shift = _compensate(levels, delta, change, edits, feedback, free)
        went = shift.ravel()[index]
        by_compensation = int(np.count_nonzero(shift)) - int(np.count_nonzero(went))
        if carried_at is not None:
            went = carry(edits, went, carried_at, change_at, may_move)
            shift.ravel()[index] = went
        codes, moved_at = levels.codes + shift, np.flatnonzero(shift)
    else:
        went, by_compensation = round_each(edits, change_at, free=may_move, carried=carried_at), 0
        codes, moved_at = np.array(levels.codes, order="C"), index[went != 0]
        codes.ravel()[index] += went
    return _counted(edits, codes, went, moved_at, by_compensation)


def as_rounded(
    levels: Levels,
    delta: npt.NDArray[Any],
    codes: Codes,
    *,
    survive: str = "important",
    must_move: Mask | None = None,
    free: Mask | None = None,
) -> Rounded:
    """What :func:`round_edit` would say of ``codes`` [rows, columns] that something else chose."""
    index = np.flatnonzero(delta != 0)
    edits = find_edits(
        levels.at(index),
        delta.ravel()[index],
        survive=survive,
        must_move=_at(must_move, index),
        free=_at(free, index),
    )
    shift = codes - levels.codes
    went, moved_at = shift.ravel()[index], np.flatnonzero(shift)
    return _counted(edits, codes, went, moved_at, len(moved_at) - int(np.count_nonzero(went)))


def _counted(edits: Edits, codes: Codes, went: Codes, moved_at: npt.NDArray[np.intp], by_compensation: int) -> Rounded:
    return Rounded(
        codes=codes,
        asked=int(edits.asked.sum()),
        landed=edits.landed(went),
        saturated=int(edits.saturated.sum()),
        moved_at=moved_at,
        moved_by_compensation=by_compensation,
    )


def _at(array: npt.NDArray[Any] | None, index: Places) -> npt.NDArray[Any] | None:
    return None if array is None else array.ravel()[index]


def round_each(
    edits: Edits,
    wanted: npt.NDArray[Any],
    *,
    free: Mask | None = None,
    carried: npt.NDArray[Any] | None = None,
) -> Codes:
    """As :func:`round_edit` without H: how many codes every edited weight goes, int16 [E].

    wanted, free, carried: [E]. Work grows with the edits, not with the tensor.
    """
    went = _nearest_shifts(wanted, edits, free)
    return went if carried is None else carry(edits, went, carried, wanted, free)


def _nearest_shifts(change: npt.NDArray[Any], edits: Edits, free: Mask | None) -> Codes:
    """The shift of every edited weight on its own, in its edit's direction, int16 [E]; change, free: [E]."""
    at, direction = edits.at, edits.direction
    held = edits.saturated | (direction == 0)
    if free is not None:
        held |= ~free
    # In steps along the edit's direction: none (one where it must land) up to the end of the range.
    room = np.where(direction > 0, at.highest - at.codes, at.codes - at.lowest)
    most = np.where(held, 0, np.maximum(room, 0))
    shift = change / np.where(direction != 0, edits.scale, 1.0)
    to_whole_shifts(shift, at.table, None if at.table is None else at.codes - at.lowest)
    shift *= direction
    np.clip(shift, edits.asked & ~held, most, out=shift)
    shift *= direction
    return shift.astype(np.int16)


def _room(levels: Levels, codes: Codes) -> tuple[Codes, Codes]:
    """Smallest and largest shift that the range of codes leaves, int16, the shape of ``codes`` each."""
    # Shift 0 is always in range, also for a code that should not be there (-128 in Q8_0 bytes).
    return np.minimum(levels.lowest - codes, 0), np.maximum(levels.highest - codes, 0)


def _force(least: Codes, most: Codes, edits: Edits) -> None:
    """Narrow the intervals [E] of the edits that must land to one code or more in their direction."""
    lands = edits.asked & ~edits.saturated
    least[lands & (edits.direction > 0)] = 1
    most[lands & (edits.direction < 0)] = -1
    least[edits.saturated] = 0
    most[edits.saturated] = 0


def _compensate(
    levels: Levels,
    delta: npt.NDArray[Any],
    change: npt.NDArray[Any],
    edits: Edits,
    feedback: Feedback,
    free: Mask | None,
) -> Codes:
    """The shifts, int16 [rows, columns], column by column, errors passed on as H says."""
    shift = np.zeros(levels.codes.shape, dtype=np.int16)
    least, most = _room(levels, np.ascontiguousarray(levels.codes))
    index = edits.at.index
    lower, upper = least.ravel()[index], most.ravel()[index]
    _force(lower, upper, edits)
    least.ravel()[index], most.ravel()[index] = lower, upper
    scale = levels.scale_per_weight()
    held = scale == 0 if free is None else ~free | (scale == 0)
    least[held] = 0
    most[held] = 0
    edited = delta != 0
    # Rows without an edit have no error to make good.
    active = edited.any(axis=1)
    usable_scale = np.where(scale != 0, scale, 1)
    if free is not None:
        alone = active & rows_alone(edited | free, len(feedback.columns))
        active &= ~alone
        for part in own_places(edited, free, np.flatnonzero(alone)):
            present = None
            if levels.table is not None:
                present = part.gather(levels.codes, levels.lowest).astype(np.int16) - levels.lowest
            sweep = Sweep(
                part.gather(change, 0),
                part.gather(usable_scale, 1),
                part.gather(least, 0),
                part.gather(most, 0),
                present,
                levels.table,
            )
            part.scatter(sweep.run_alone(part.factors(feedback)), shift)
    rows = np.flatnonzero(active)
    columns = feedback.columns
    at_once = max(1, WEIGHTS_PER_SWEEP // len(columns))
    for start in range(0, rows.size, at_once):
        crossing = _crossing(rows[start : start + at_once], columns)
        sweep = Sweep(
            _columns_first(change[crossing]),
            _columns_first(usable_scale[crossing]),
            _columns_first(least[crossing]),
            _columns_first(most[crossing]),
            None if levels.table is None else np.ascontiguousarray(levels.codes[crossing].T - levels.lowest),
            levels.table,
        )
        shift[crossing] = sweep.run(feedback.factor).T
    return shift


def _crossing(rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Any:
    """An index of the weights where ``rows`` and ``columns`` cross; slices where possible, which are much faster."""
    parts = [slice(index[0], index[-1] + 1) if (np.diff(index) == 1).all() else index for index in (rows, columns)]
    return np.ix_(rows, columns) if not any(isinstance(part, slice) for part in parts) else tuple(parts)


def _columns_first(part: npt.NDArray[Any]) -> Doubles:
    return np.array(part.T, dtype=np.float64, order="C")


def _feedback(hessian: npt.NDArray[Any], delta: npt.NDArray[Any], free: Mask | None, damp: float) -> Feedback | None:
    width = delta.shape[1]
    if hessian.shape != (width, width):
        raise InputError(f"hessian has shape {list(hessian.shape)}, {[width, width]} is needed")
    edited = delta != 0
    active = edited.any(axis=1)  # rows without an edit have no error to make good
    can_move = None if free is None else free[active].any(axis=0)
    return feedback_for(hessian, columns_to_decide(edited.any(axis=0), can_move), damp)


def _check(
    levels: Levels,
    delta: npt.NDArray[Any],
    wanted: npt.NDArray[Any] | None,
    free: Mask | None,
    must_move: Mask | None,
) -> None:
    shape = levels.codes.shape
    masks = {"free": free, "must_move": must_move}
    for name, array in {"delta": delta, "wanted": wanted, **masks}.items():
        if array is not None and array.shape != shape:
            raise InputError(f"{name} has shape {list(array.shape)}, {list(shape)} is needed")
    for name, mask in masks.items():
        if mask is not None and mask.dtype != np.bool_:
            raise InputError(f"{name} has dtype {mask.dtype}, bool is needed")
    for name, values in {"delta": delta, "wanted": wanted, "the grid's scale": levels.scale}.items():
        if values is None:
            continue
        # A sum is finite only if all its terms are, and much faster than looking at each.
        if not np.isfinite(values.sum()) and (broken := int(values.size - np.isfinite(values).sum())):
            raise InputError(
                f"{name} holds {broken} values that are not finite, all must be finite",
                hint="look for overflow in the run or file that these numbers come from",
            )
    if free is not None and must_move is not None and (clash := int((must_move & ~free).sum())):
        raise InputError(
            f"must_move asks {clash} weights to move that free forbids, 0 are allowed",
            hint="keep must_move inside free",
        )
