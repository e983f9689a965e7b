"""What every block codec shares: the decoded form of a tensor and the checks around a bit layout.

Shapes, used through the whole package:
    rows      rows of the tensor as GGUF stores it (one row = one output unit)
    columns   weights in a row, a multiple of ``block_size``
    blocks    rows * columns // block_size
A *sub-block* is the run of weights that share one scale and one offset, and with them one grid of levels. A code is
an integer in ``[lowest, highest]``. Most grids are affine in it, ``weight = scale * code + offset``; the code-book
types have a table of levels instead, ``weight = scale * table[code - lowest]``, increasing but not evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]

PAIR_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]  # [g, 1]: the four bit pairs of a byte


@dataclass(frozen=True)
class Levels:
    """A decoded tensor: integer codes, and the grid of levels on which they lie.

    codes: int16 [rows, columns]; scale, offset: float32 [rows, columns // sub_block].
    ``zero_code`` is the code of weight 0 in the types that store no offset (``offset = -zero_code * scale``)
    and None where each sub-block stores its own offset. ``table``: float32 [highest - lowest + 1], the levels in
    units of the scale, strictly increasing; None where the grid is affine (then code c has level c).
    """

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

    def values_at(self, index: npt.NDArray[np.intp]) -> Floats:
        """As :meth:`values` for the weights at the flat positions ``index`` alone, float32 [E]."""
        place, codes = index // self.sub_block, self.codes.ravel()[index]
        if self.zero_code is None:
            weights: Floats = self.level(codes) * self.scale.ravel()[place] + self.offset.ravel()[place]
        else:
            weights = self.level(codes - np.int16(self.zero_code)) * self.scale.ravel()[place]
        return weights

    def level(self, codes: npt.NDArray[Any]) -> Floats:
        """The levels of ``codes`` in units of the scale, before the offset; float32, any shape."""
        if self.table is None:
            return codes.astype(np.float32)
        return self.table[codes - self.lowest]

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

    def steps_at(self, index: npt.NDArray[np.intp], direction: npt.NDArray[Any]) -> Floats:
        """As :meth:`step_towards` for the weights at the flat positions ``index`` alone; index, direction: [E]."""
        # A row is a whole number of sub-blocks, so the flat index of a weight gives that of its scale.
        scale = self.scale.ravel()[index // self.sub_block]
        if self.table is None:
            return np.abs(scale)
        return self.gap(self.codes.ravel()[index], np.sign(direction) * np.sign(scale) < 0) * np.abs(scale)

    def gap(self, codes: npt.NDArray[Any], downwards: npt.NDArray[np.bool_]) -> Floats:
        """The distance from the levels of ``codes`` to the next, in units of the scale; float32, any shape.

        ``downwards``, of the same shape: towards the lower code. Past either end of the range the last gap counts on.
        """
        if self.table is None:
            return np.ones(codes.shape, dtype=np.float32)
        gaps = np.diff(self.table)  # [levels - 1], gap i between levels i and i + 1
        return gaps[np.clip(codes - self.lowest - downwards, 0, len(gaps) - 1)]


@dataclass(frozen=True)
class Codec:
    """One GGUF block type: the sizes of its block, and how its codes, scales and offsets lie in the bytes.

    unpack(blocks uint8 [blocks, block_bytes]) gives codes int16 [blocks, block_size], scale and offset
    float32 [blocks, block_size // sub_block]. pack(blocks, codes) writes codes into ``blocks`` in place and
    touches no other bit. Both are private to the codec files; call :meth:`decode` and :meth:`with_codes`.
    """

    name: str
    block_size: int
    block_bytes: int
    sub_block: int
    lowest: int
    highest: int
    zero_code: int | None
    unpack: Callable[[Bytes], tuple[Codes, Floats, Floats]] = field(repr=False)
    pack: Callable[[Bytes, Codes], None] = field(repr=False)
    table: Floats | None = field(default=None, repr=False)

    def decode(self, blocks: Bytes) -> Levels:
        """Decode uint8 [rows, bytes_per_row]. Raises InputError for another dtype or a torn block."""
        rows, columns = self._shape(blocks)
        # A block may hold an infinite or NaN scale (huge weights): libggml computes on with it, and so do we.
        with np.errstate(invalid="ignore"):
            codes, scale, offset = self.unpack(np.ascontiguousarray(blocks).reshape(-1, self.block_bytes))
        return Levels(
            codes=codes.reshape(rows, columns),
            scale=scale.reshape(rows, columns // self.sub_block),
            offset=offset.reshape(rows, columns // self.sub_block),
            sub_block=self.sub_block,
            lowest=self.lowest,
            highest=self.highest,
            zero_code=self.zero_code,
            table=self.table,
        )

    def with_codes(self, blocks: Bytes, codes: npt.NDArray[Any]) -> Bytes:
        """A new uint8 [rows, bytes_per_row]: the scales and offsets of ``blocks``, the codes of ``codes``.

        ``codes``: any integer dtype, [rows, columns]. Raises InputError when shapes or dtypes do not fit, or
        when a code lies outside ``[lowest, highest]``. A code outside that the block already holds is let
        through (Q8_0 bytes can hold -128, though llama.cpp never writes it), so
        ``with_codes(blocks, decode(blocks).codes)`` gives back any bytes whatever.
        """
        rows, columns = self._shape(blocks)
        if codes.shape != (rows, columns):
            raise InputError(
                f"{self.name} codes have shape {list(codes.shape)}, the blocks hold {[rows, columns]}",
                hint="pass one code for every weight, rows first",
            )
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"{self.name} codes have dtype {codes.dtype}, an integer dtype is needed")
        in_range = not codes.size or (codes.min() >= self.lowest and codes.max() <= self.highest)
        outside = np.zeros(0, dtype=bool)
        if not in_range:
            outside = (codes < self.lowest) | (codes > self.highest)
            outside &= codes != self.decode(blocks).codes
        if outside.any():
            row, column = (int(index) for index in np.argwhere(outside)[0])
            raise InputError(
                f"{self.name} code {int(codes[row, column])} at row {row}, column {column} is outside "
                f"[{self.lowest}, {self.highest}] ({int(outside.sum())} such codes)",
                hint="clamp the codes to the type's range before packing them",
            )
        packed = np.array(blocks, dtype=np.uint8, order="C")
        self.pack(
            packed.reshape(-1, self.block_bytes),
            np.ascontiguousarray(codes, dtype=np.int16).reshape(-1, self.block_size),
        )
        return packed

    def _shape(self, blocks: Bytes) -> tuple[int, int]:
        """(rows, columns) of the tensor in ``blocks``."""
        if blocks.dtype != np.uint8 or blocks.ndim != 2:
            raise InputError(
                f"{self.name} blocks are {blocks.dtype} {list(blocks.shape)}, uint8 [rows, bytes_per_row] is needed",
                hint="reshape the tensor's raw bytes to two dimensions",
            )
        rows, row_bytes = blocks.shape
        if row_bytes % self.block_bytes:
            raise InputError(
                f"{self.name} rows are {row_bytes} bytes, a multiple of {self.block_bytes} is needed",
                hint="check the tensor's type and its row length",
            )
        return rows, row_bytes // self.block_bytes * self.block_size


def part_of(blocks: Bytes, start: int, stop: int) -> Bytes:
    """Bytes ``start`` to ``stop`` of every block, contiguous, uint8 [blocks, stop - start]."""
    # As one element a block: by the byte, runs of 4 or 16 take ten times as long.
    part = blocks[:, start:stop].view(f"V{stop - start}")
    return np.ascontiguousarray(part).view(np.uint8)


def write_part(blocks: Bytes, start: int, content: Bytes) -> None:
    """Write uint8 [blocks, n] to bytes ``start`` to ``start + n`` of every block, in place."""
    kind = f"V{content.shape[1]}"
    blocks[:, start : start + content.shape[1]].view(kind)[:] = np.ascontiguousarray(content).view(kind)


def read_float16(blocks: Bytes, at: int) -> Floats:
    """The little-endian float16 at byte ``at`` of every block, as float32 [blocks, 1]."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)
