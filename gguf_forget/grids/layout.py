"""What every block codec shares: bytes to a decoded tensor and back, and the checks around a bit layout.

Shapes as in :mod:`gguf_forget.grids.levels`, and
    blocks    rows * columns // block_size
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError
from gguf_forget.grids.bit_places import BitPlaces, find_places
from gguf_forget.grids.levels import Codes, Floats, Levels, LevelsAt, Places

Bytes = npt.NDArray[np.uint8]

PAIR_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]  # [g, 1]: the four bit pairs of a byte


@dataclass(frozen=True)
class Codec:
    """One GGUF block type: the sizes of its block, and how its codes, scales and offsets lie in the bytes.

    Of blocks uint8 [blocks, block_bytes] codes_of gives the codes, int16 [blocks, block_size], and grid_of scale and
    offset, float32 [blocks, block_size // sub_block]. pack(blocks, codes) writes codes into ``blocks`` in place and
    touches no other bit. They are private to the codec files; call :meth:`decode` and :meth:`with_codes`, or for a few
    weights :meth:`at` and :meth:`with_codes_at`.
    """

    name: str
    block_size: int
    block_bytes: int
    sub_block: int
    lowest: int
    highest: int
    zero_code: int | None
    codes_of: Callable[[Bytes], Codes] = field(repr=False)
    grid_of: Callable[[Bytes], tuple[Floats, Floats]] = field(repr=False)
    pack: Callable[[Bytes, Codes], None] = field(repr=False)
    table: Floats | None = field(default=None, repr=False)

    def decode(self, blocks: Bytes) -> Levels:
        """Decode uint8 [rows, bytes_per_row]. Raises InputError for another dtype or a torn block."""
        rows, columns = self._shape(blocks)
        flat = np.ascontiguousarray(blocks).reshape(-1, self.block_bytes)
        scale, offset = self._grid(flat)
        return Levels(
            codes=self.codes_of(flat).reshape(rows, columns),
            scale=scale.reshape(rows, columns // self.sub_block),
            offset=offset.reshape(rows, columns // self.sub_block),
            sub_block=self.sub_block,
            lowest=self.lowest,
            highest=self.highest,
            zero_code=self.zero_code,
            table=self.table,
        )

    def at(self, blocks: Bytes, index: Places) -> LevelsAt:
        """``decode(blocks).at(index)``: work for the codes grows with ``index``, not with the tensor."""
        _, columns = self._shape(blocks)
        flat = np.ascontiguousarray(blocks).reshape(-1, self.block_bytes)
        scale, offset = (part.ravel() for part in self._grid(flat))
        bits = self._bits.read(flat, index)
        place = index // self.sub_block
        return LevelsAt(
            index,
            columns,
            (bits.view(np.int8) if self.lowest < 0 else bits).astype(np.int16),
            scale[place],
            offset[place],
            self.lowest,
            self.highest,
            self.zero_code,
            self.table,
        )

    def with_codes_at(self, blocks: Bytes, present: LevelsAt, codes: Codes) -> Bytes:
        """:meth:`with_codes` where only the weights ``present`` (of these ``blocks``) take other codes, int16 [E].

        Each position may come once. Raises InputError when a code that is not the present one is outside the range.
        """
        outside = ((codes < self.lowest) | (codes > self.highest)) & (codes != present.codes)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise self._out_of_range(
                int(codes[first]), *divmod(int(present.index[first]), present.columns), int(outside.sum())
            )
        packed = np.array(blocks, dtype=np.uint8, order="C")
        before, after = (some.astype(np.uint8) for some in (present.codes, codes))
        self._bits.replace(packed.reshape(-1, self.block_bytes), present.index, before, after)
        return packed

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
            raise self._out_of_range(int(codes[row, column]), row, column, int(outside.sum()))
        packed = np.array(blocks, dtype=np.uint8, order="C")
        self.pack(
            packed.reshape(-1, self.block_bytes),
            np.ascontiguousarray(codes, dtype=np.int16).reshape(-1, self.block_size),
        )
        return packed

    def _out_of_range(self, code: int, row: int, column: int, count: int) -> InputError:
        return InputError(
            f"{self.name} code {code} at row {row}, column {column} is outside "
            f"[{self.lowest}, {self.highest}] ({count} such codes)",
            hint="clamp the codes to the type's range before packing them",
        )

    def _grid(self, blocks: Bytes) -> tuple[Floats, Floats]:
        # A block may hold an infinite or NaN scale (huge weights): libggml computes on with it, and so do we.
        with np.errstate(invalid="ignore"):
            return self.grid_of(blocks)

    @cached_property
    def _bits(self) -> BitPlaces:
        return find_places(self.pack, (self.highest - self.lowest).bit_length(), self.block_size, self.block_bytes)

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
