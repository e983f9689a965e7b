"""What each edited weight wants and may do, before any code is chosen.

Everything is kept for the edited weights alone (1-D, E of them): where 3 % of a matrix is edited, 97 % costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.levels import Codes, LevelsAt

Mask = npt.NDArray[np.bool_]

SURVIVE = ("all", "important", "none")
"""Which edits must land: every one, those of at least half a step (which would not round back), or none."""


@dataclass(frozen=True)
class Edits:
    """The edited weights of one tensor: arrays [E], and where they are, with the original's codes.

    scale: float64, signed, in weight units.
    direction: int8, of the edit, in codes; 0 where the scale is 0.
    asked: must land at least one code away in ``direction``.
    saturated: asked, but the original's code is the last one in that direction, or all levels coincide.
    """

    at: LevelsAt
    scale: npt.NDArray[np.float64]
    direction: npt.NDArray[np.int8]
    asked: Mask
    saturated: Mask

    def landed(self, went: Codes) -> int:
        """How many of the asked edits did, where each weight went ``went`` codes, [E]."""
        return int((self.asked & (went * self.direction > 0)).sum())


def find_edits(
    at: LevelsAt, delta: npt.NDArray[Any], *, survive: str, must_move: Mask | None = None, free: Mask | None = None
) -> Edits:
    """What becomes possible of ``delta``, [E], not 0. ``must_move``, where given, decides instead of ``survive``.

    must_move, free: bool [E]. Raises InputError for a ``survive`` that is none of ``SURVIVE``.
    """
    if survive not in SURVIVE:
        raise InputError(f"survive is {survive!r}, one of {', '.join(SURVIVE)} is needed")
    direction = (np.sign(delta) * np.sign(at.scale)).astype(np.int8)
    if must_move is not None:
        asked = must_move.copy()
    elif survive == "none":
        asked = np.zeros(delta.size, dtype=bool)
    elif survive == "all":
        asked = np.ones(delta.size, dtype=bool)
    else:
        asked = np.abs(delta) >= 0.5 * at.steps(delta)
    if must_move is None and free is not None:
        asked &= free
    at_the_end = (direction > 0) & (at.codes >= at.highest) | (direction < 0) & (at.codes <= at.lowest)
    saturated = asked & (at_the_end | (direction == 0))
    return Edits(at, at.scale.astype(np.float64), direction, asked, saturated)
