"""What each edited weight wants and may do, before any code is chosen.

Everything is kept for the edited weights alone (1-D, E of them): where 3 % of a matrix is edited, 97 % costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.layout import Levels

Mask = npt.NDArray[np.bool_]

SURVIVE = ("all", "important", "none")
"""Which edits must land: every one, those of at least half a step (which would not round back), or none."""


@dataclass(frozen=True)
class Edits:
    """The edited weights of one tensor, each array [E].

    index: flat position in [rows, columns].
    delta, scale: float64, the edit and the signed scale in weight units.
    codes: int16, the original's codes.
    direction: int8, of the edit, in codes; 0 where the scale is 0.
    asked: must land at least one code away in ``direction``.
    saturated: asked, but the original's code is the last one in that direction, or all levels coincide.
    """

    index: npt.NDArray[np.intp]
    delta: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int16]
    direction: npt.NDArray[np.int8]
    asked: Mask
    saturated: Mask


def find_edits(
    levels: Levels,
    delta: npt.NDArray[Any],
    *,
    survive: str,
    must_move: Mask | None,
    free: Mask | None,
    index: npt.NDArray[np.intp] | None = None,
) -> Edits:
    """The weights whose ``delta`` is not 0. ``must_move``, where given, decides instead of ``survive``.

    index: their flat positions, where the caller has them already. Raises InputError for a ``survive`` that is none of
    ``SURVIVE``.
    """
    if survive not in SURVIVE:
        raise InputError(f"survive is {survive!r}, one of {', '.join(SURVIVE)} is needed")
    if index is None:
        index = np.flatnonzero(delta != 0)  # twice as fast as from the floats themselves
    # A row is a whole number of sub-blocks, so the flat index of a weight gives that of its scale.
    scale = levels.scale.ravel()[index // levels.sub_block].astype(np.float64)
    change, codes = delta.ravel()[index].astype(np.float64), levels.codes.ravel()[index]
    direction = (np.sign(change) * np.sign(scale)).astype(np.int8)
    if must_move is not None:
        asked = must_move.ravel()[index]
    elif survive == "none":
        asked = np.zeros(index.size, dtype=bool)
    elif survive == "all":
        asked = np.ones(index.size, dtype=bool)
    else:
        asked = np.abs(change) >= 0.5 * levels.steps_at(index, change)
    if must_move is None and free is not None:
        asked &= free.ravel()[index]
    at_the_end = (direction > 0) & (codes >= levels.highest) | (direction < 0) & (codes <= levels.lowest)
    return Edits(index, change, scale, codes, direction, asked, asked & (at_the_end | (direction == 0)))
