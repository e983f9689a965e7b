"""A decoded tensor: integer codes, and the grid of levels on which they lie.

Shapes, used through the whole package:
    rows      rows of the tensor as GGUF stores it (one row = one output unit)
    columns   weights in a row, a multiple of the type's block size
    E         some of the tensor's weights, named by their flat positions in [rows, columns]
A *sub-block* is the run of weights that share one scale and one offset, and with them one grid of levels. A code is
an integer in ``[lowest, highest]``. Most grids are affine in it, ``weight = scale * code + offset``; the code-book
types have a table of levels instead, ``weight = scale * table[code - lowest]``, increasing but not evenly spaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]


class _Spacing:
    """What all sub-blocks of a tensor have in common; levels are counted in units of the scale.

    ``zero_code`` is the code of weight 0 in the types that store no offset (``offset = -zero_code * scale``)
    and None where each sub-block stores its own offset. ``table``: float32 [highest - lowest + 1], the levels,
    strictly increasing; None where the grid is affine (then code c has level c).
    """

    lowest: int
    highest: int
    zero_code: int | None
    table: Floats | None

    def level(self, codes: npt.NDArray[Any]) -> Floats:
        """The levels of ``codes`` in units of the scale, before the offset; float32, any shape."""
        if self.table is None:
            return codes.astype(np.float32)
        return self.table[codes - self.lowest]

    def gap(self, codes: npt.NDArray[Any], downwards: npt.NDArray[np.bool_]) -> Floats:
        """The distance from the levels of ``codes`` to the next, in units of the scale; float32, any shape.

        ``downwards``, of the same shape: towards the lower code. Past either end of the range the last gap counts on.
        """
        if self.table is None:
            return np.ones(codes.shape, dtype=np.float32)
        gaps = np.diff(self.table)  # [levels - 1], gap i between levels i and i + 1
        return gaps[np.clip(codes - self.lowest - downwards, 0, len(gaps) - 1)]


@dataclass(frozen=True)
class LevelsAt(_Spacing):
    """The grid at E weights of a tensor whose rows are ``columns`` long, each array [E].

    index: their flat positions. codes: int16; scale, offset: float32, those of each weight's sub-block.
    """

    index: Places
    columns: int
    codes: Codes
    scale: Floats
    offset: Floats
    lowest: int
    highest: int
    zero_code: int | None = None
    table: Floats | None = None

    def values(self) -> Floats:
        """As :meth:`Levels.values`, float32 [E]."""
        # inf * 0 is NaN here as it is in libggml.
        with np.errstate(invalid="ignore"):
            if self.zero_code is None:
                return self.level(self.codes) * self.scale + self.offset
            return self.level(self.codes - np.int16(self.zero_code)) * self.scale

    def steps(self, direction: npt.NDArray[Any]) -> Floats:
        """As :meth:`Levels.step_towards`, float32 [E]; direction: [E]."""
        if self.table is None:
            return np.abs(self.scale)
        return self.gap(self.codes, np.sign(direction) * np.sign(self.scale) < 0) * np.abs(self.scale)


@dataclass(frozen=True)
class Levels(_Spacing):
    """codes: int16 [rows, columns]; scale, offset: float32 [rows, columns // sub_block]."""

    codes: Codes
    scale: Floats
    offset: Floats
    sub_block: int
    lowest: int
    highest: int
    zero_code: int | None = None
    table: Floats | None = None

    def values(self) -> Floats:
        """The weights, float32 [rows, columns], bit-equal to libggml's ``dequantize_row_*``."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, -1, self.sub_block)  # [rows, sub-blocks, sub_block]
        # inf * 0 is NaN here as it is in libggml.
        with np.errstate(invalid="ignore"):
            if self.zero_code is None:
                weights = self.level(grouped)
                weights *= self.scale[:, :, None]
                weights += self.offset[:, :, None]
            else:
                # Centring the code first keeps libggml's sign of zero (-0.0 under a negative scale).
                weights = self.level(grouped - np.int16(self.zero_code))
                weights *= self.scale[:, :, None]
        return weights.reshape(rows, columns)

    def scale_per_weight(self) -> Floats:
        """The signed scale at every weight, float32 [rows, columns].

        Its sign says whether a larger code is a larger weight. On an affine grid it is the distance between
        neighbouring levels.
        """
        return np.repeat(self.scale, self.sub_block, axis=1)

    def step_towards(self, direction: npt.NDArray[Any]) -> Floats:
        """How far the next level is from the present one in the given direction; float32 [rows, columns], not negative.

        direction: [rows, columns], of which the sign counts, in weight units (0: the step upwards in code). Past
        either end of the range the last step counts on; 0 where the scale is 0.
        """
        scale = self.scale_per_weight()
        return self.gap(self.codes, np.sign(direction) * np.sign(scale) < 0) * np.abs(scale)

    def at(self, index: Places) -> LevelsAt:
        """The grid at the flat positions ``index`` [E]."""
        place = index // self.sub_block  # a row is a whole number of sub-blocks
        return LevelsAt(
            index,
            self.codes.shape[1],
            self.codes.ravel()[index],
            self.scale.ravel()[place],
            self.offset.ravel()[place],
            self.lowest,
            self.highest,
            self.zero_code,
            self.table,
        )
