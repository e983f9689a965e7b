"""Bin-aware, error-compensated code choice on the original's own grid ("edit transport", ours).

The original's quantized weights Q0 and the edit D (unlearned minus original, full precision) ask for
V = Q0 + D. Codes are chosen to keep tr((Ŵ - V)·H·(Ŵ - V)ᵀ) small, H = Σ x·xᵀ over calibration inputs. The
rounding error of the original itself is no part of the objective: where nothing is edited, nothing moves.

Everything is done in shifts: how many codes a weight goes from the original's code. Every constraint is an
interval of shifts, and the best shift of one weight is the nearest integer inside its interval.

Shapes: rows, columns as in :mod:`gguf_forget.grids.layout`. In the sweep arrays lie [columns, rows], so that
the column being decided is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.layout import Codes, Levels
from gguf_forget.rounding.feedback import damped, feedback_factor

Mask = npt.NDArray[np.bool_]

COLUMNS_PER_UPDATE = 128  # lazy updates: later columns hear of the errors once per this many columns
ROWS_PER_SWEEP = 1024  # rows are independent given H; this bounds the float64 work space


@dataclass(frozen=True)
class Rounded:
    """The chosen codes, and what became of the edits. ``asked == landed + saturated`` always holds.

    codes: int16 [rows, columns].
    asked: edited weights that had to land at least one code away, in the edit's direction.
    landed: those that did.
    saturated: those that could not, because the original's code is the last one in that direction (or the
        sub-block's scale is 0, so that all its levels coincide); their error went to the later columns.
    moved: all weights whose code changed.
    moved_by_compensation: changed codes of weights that had no edit of their own (delta 0, free).
    """

    codes: Codes
    asked: int
    landed: int
    saturated: int
    moved: int
    moved_by_compensation: int


def round_edit(
    levels: Levels,
    delta: npt.NDArray[Any],
    *,
    hessian: npt.NDArray[Any] | None = None,
    free: Mask | None = None,
    must_move: Mask | None = None,
    damp: float = 0.01,
) -> Rounded:
    """Codes for ``levels.values() + delta`` on the grid of ``levels``.

    delta: float [rows, columns], the edit in weight units. An edit that is a whole number of steps
        everywhere comes out exactly as that many codes, with no other code moved, whatever H.
    hessian: float [columns, columns], symmetric, positive semi-definite; None rounds each weight to nearest.
    free: bool [rows, columns], None for all. Where False the original's code stays, whatever delta; the
        error that this makes is still passed to the free columns.
    must_move: bool [rows, columns]; weights with an edit that must land at least one code away in the edit's
        direction. None asks it of every free edit of at least half a step. Delta 0 asks nothing.
    damp: added to H's diagonal, as a fraction of its mean.

    Raises InputError for shapes or dtypes that do not fit, values that are not finite, a weight that is in
    ``must_move`` but not ``free``, and a Hessian that is not symmetric positive semi-definite.
    """
    _check(levels, delta, hessian, free, must_move, damp)
    codes, step = levels.codes, levels.scale_per_weight()
    edited = delta != 0
    if must_move is None:
        asked = edited & (np.abs(delta) >= 0.5 * np.abs(step))
        if free is not None:
            asked &= free
    else:
        asked = edited & must_move
    direction = (np.sign(delta) * np.sign(step)).astype(np.int8)  # of the edit, in codes; 0 where no step
    saturated = asked & (
        (direction == 0) | ((direction > 0) & (codes >= levels.highest)) | ((direction < 0) & (codes <= levels.lowest))
    )
    least, most = _intervals(levels, direction, asked, saturated | (step == 0), free)

    shift = np.zeros_like(codes)
    active = np.flatnonzero(edited.any(axis=1))  # rows without an edit have no error to make good
    columns = _columns_to_decide(edited[active], None if free is None else free[active])
    factor = None
    if hessian is not None and np.diagonal(hessian).any() and columns.size:
        factor = feedback_factor(damped(hessian, columns, damp))
    for start in range(0, active.size, ROWS_PER_SWEEP):
        part = np.ix_(active[start : start + ROWS_PER_SWEEP], columns)
        shift[part] = _sweep(delta[part].T, step[part].T, least[part].T, most[part].T, factor).T

    moved = shift != 0
    return Rounded(
        codes=codes + shift,
        asked=int(asked.sum()),
        landed=int((asked & (shift * direction > 0)).sum()),
        saturated=int(saturated.sum()),
        moved=int(moved.sum()),
        moved_by_compensation=int((moved & ~edited).sum()),
    )


def _intervals(
    levels: Levels, direction: npt.NDArray[np.int8], asked: Mask, stuck: Mask, free: Mask | None
) -> tuple[Codes, Codes]:
    """Smallest and largest shift allowed for every weight, int16 [rows, columns] each."""
    # Shift 0 is always in range, also for a code that should not be there (-128 in Q8_0 bytes).
    least = np.minimum(levels.lowest - levels.codes, 0).astype(np.int16)
    most = np.maximum(levels.highest - levels.codes, 0).astype(np.int16)
    least[asked & (direction > 0)] = 1
    most[asked & (direction < 0)] = -1
    held = stuck if free is None else stuck | ~free
    least[held] = 0
    most[held] = 0
    return least, most


def _columns_to_decide(edited: Mask, free: Mask | None) -> npt.NDArray[np.intp]:
    """The columns of the sub-problem, in the order of deciding.

    A column without edit that is free in no row makes no error and is left out: the rest is then chosen
    *given* that it stays. A column whose error is given (edited, but free in no row) comes first, so that
    every free column hears of it. Saturation does not change the order: a row's codes would then depend on
    which other rows are rounded with it.
    """
    if free is None:
        return np.arange(edited.shape[1])
    can_move = free.any(axis=0)
    given = edited.any(axis=0) & ~can_move
    return np.concatenate([np.flatnonzero(given), np.flatnonzero(can_move)])


def _sweep(
    delta: npt.NDArray[Any],
    step: npt.NDArray[np.float32],
    least: Codes,
    most: Codes,
    factor: npt.NDArray[np.float64] | None,
) -> npt.NDArray[np.float64]:
    """The shifts, whole numbers as float64 [columns, rows]; arguments alike, ``factor`` as in feedback."""
    if factor is None:
        return _nearest_shift(delta.astype(np.float64), step, least, most)
    count = len(delta)
    wanted = np.array(delta, dtype=np.float64, order="C")  # the edit plus what earlier columns pass on
    errors = np.zeros_like(wanted)  # asked minus given, in weight units
    shift = np.zeros_like(wanted)
    for start in range(0, count, COLUMNS_PER_UPDATE):
        end = min(start + COLUMNS_PER_UPDATE, count)
        for column in range(start, end):
            wanted[column] += factor[start:column, column] @ errors[start:column]
            shift[column] = _nearest_shift(wanted[column], step[column], least[column], most[column])
            errors[column] = delta[column] - shift[column] * step[column]
        wanted[end:] += factor[start:end, end:].T @ errors[start:end]
    return shift


def _nearest_shift(
    wanted: npt.NDArray[np.float64], step: npt.NDArray[np.float32], least: Codes, most: Codes
) -> npt.NDArray[np.float64]:
    """The whole number of steps nearest to ``wanted`` inside [least, most]; 0 where the step is 0."""
    shift = np.zeros_like(wanted)
    np.divide(wanted, step, out=shift, where=step != 0)
    np.rint(shift, out=shift)
    return np.clip(shift, least, most, out=shift)


def _check(
    levels: Levels,
    delta: npt.NDArray[Any],
    hessian: npt.NDArray[Any] | None,
    free: Mask | None,
    must_move: Mask | None,
    damp: float,
) -> None:
    rows, columns = levels.codes.shape
    wanted_shapes = {"delta": (delta, (rows, columns)), "hessian": (hessian, (columns, columns))}
    masks = {"free": free, "must_move": must_move}
    wanted_shapes |= {name: (mask, (rows, columns)) for name, mask in masks.items()}
    for name, (array, shape) in wanted_shapes.items():
        if array is not None and array.shape != shape:
            raise InputError(f"{name} has shape {list(array.shape)}, {list(shape)} is needed")
    for name, mask in masks.items():
        if mask is not None and mask.dtype != np.bool_:
            raise InputError(f"{name} has dtype {mask.dtype}, bool is needed")
    for name, values in {"delta": delta, "the grid's scale": levels.scale, "hessian": hessian}.items():
        if values is not None and (broken := int(values.size - np.isfinite(values).sum())):
            raise InputError(
                f"{name} holds {broken} values that are not finite, all must be finite",
                hint="look for overflow in the run or file that these numbers come from",
            )
    if free is not None and must_move is not None and (clash := int((must_move & ~free).sum())):
        raise InputError(
            f"must_move asks {clash} weights to move that free forbids, 0 are allowed",
            hint="keep must_move inside free",
        )
    if not (np.isfinite(damp) and damp >= 0):
        raise InputError(f"damp is {damp}, a finite number of at least 0 is needed")
    if hessian is not None:
        diagonal = np.diagonal(hessian)
        if negative := int((diagonal < 0).sum()):
            raise InputError(f"hessian has {negative} negative diagonal values, 0 are allowed")
        skew = float(np.abs(hessian - hessian.T).max(initial=0))
        if skew > 1e-3 * float(diagonal.max(initial=0)):
            raise InputError(f"hessian differs from its transpose by {skew:g}, a symmetric matrix is needed")
