"""Nearest codes on a grid that is given and stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.levels import Codes, Floats, Levels


def nearest_codes(levels: Levels, weights: npt.NDArray[Any]) -> Codes:
    """For every weight the code of the nearest level of its own sub-block, int16 [rows, columns].

    weights: float [rows, columns]. Code c is taken if and only if ``(weight - offset) / scale`` is nearer to the
    level of c than to those of c - 1 and c + 1, without bound at the two end codes. A tie goes to the even code, in
    a table of levels to the lower one. Where the scale is 0
    (or not finite) all levels coincide and the code that is there stays.
    Raises InputError for a shape that does not fit or for weights that are not finite.
    """
    rows, columns = levels.codes.shape
    if weights.shape != (rows, columns):
        raise InputError(f"weights have shape {list(weights.shape)}, the grid has {[rows, columns]}")
    broken = int(weights.size - np.isfinite(weights).sum())
    if broken:
        raise InputError(f"weights hold {broken} values that are not finite, all must be finite")
    usable = (levels.scale != 0) & np.isfinite(levels.scale) & np.isfinite(levels.offset)
    # float64: the quotient of float32 numbers then falls on the right side of every half-way point.
    step = np.where(usable, levels.scale, 1).astype(np.float64)[:, :, None]  # [rows, sub-blocks, 1]
    place = weights.astype(np.float64).reshape(rows, -1, levels.sub_block)
    place -= np.where(usable, levels.offset, 0)[:, :, None]
    place /= step
    place = nearest_level(place, levels.lowest, levels.highest, levels.table)
    present = levels.codes.reshape(place.shape)
    return np.where(usable[:, :, None], place.astype(np.int16), present).reshape(rows, columns)


def nearest_level(
    place: npt.NDArray[np.float64], lowest: int, highest: int, table: Floats | None
) -> npt.NDArray[np.float64]:
    """The codes (whole numbers as float64) whose levels are nearest to ``place``, in units of the scale, any shape."""
    if table is None:
        return np.clip(np.rint(place), lowest, highest)
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return np.searchsorted(middles, place).astype(np.float64) + lowest
