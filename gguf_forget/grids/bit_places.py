"""Single codes in packed blocks, read and replaced without unpacking the others.

Where the bits of each code lie is asked of the codec's own ``pack``, which is given every bit of every code alone. Bits
that lie side by side in one byte, in all codes alike, are moved together: a code is one such piece or two.

Shapes: E weights, named by their flat positions in blocks * block_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.levels import Places

_Bytes = npt.NDArray[np.uint8]
_BITS = 1 << np.arange(8)


@dataclass(frozen=True)
class _Piece:
    """Bits ``first`` to ``first + width - 1`` of a code: those of weight w of a block are in its byte ``byte[w]``, intp
    [block_size], from bit ``shift[w]`` on, uint8 [block_size]."""

    first: int
    width: int
    byte: Places
    shift: _Bytes

    @property
    def mask(self) -> np.uint8:
        return np.uint8((1 << self.width) - 1)


@dataclass(frozen=True)
class BitPlaces:
    """Where the codes of a block type lie."""

    block_size: int
    block_bytes: int
    pieces: tuple[_Piece, ...]

    def read(self, blocks: _Bytes, index: Places) -> _Bytes:
        """The codes' bits, uint8 [E]; blocks: contiguous, [blocks, block_bytes]."""
        flat = blocks.reshape(-1)
        codes = np.zeros(index.size, dtype=np.uint8)
        for piece, byte, shift in self._places(index):
            codes |= (flat[byte] >> shift & piece.mask) << np.uint8(piece.first)
        return codes

    def replace(self, blocks: _Bytes, index: Places, before: _Bytes, after: _Bytes) -> None:
        """Write the codes ``after`` where ``before`` stand, uint8 [E]; each position at most once."""
        flat = blocks.reshape(-1)
        for piece, byte, shift in self._places(index):
            old, new = (codes >> np.uint8(piece.first) & piece.mask for codes in (before, after))
            # Several codes lie in one byte. Differences of separate fields add up without a carry, modulo 256.
            np.add.at(flat, byte, (new << shift) - (old << shift))

    def _places(self, index: Places) -> Iterator[tuple[_Piece, Places, _Bytes]]:
        block, weight = np.divmod(index, self.block_size)
        start = block * self.block_bytes
        for piece in self.pieces:
            yield piece, start + piece.byte[weight], piece.shift[weight]


def find_places(pack: Callable[[_Bytes, Any], None], bits: int, block_size: int, block_bytes: int) -> BitPlaces:
    """pack(blocks uint8 [blocks, block_bytes], codes int16 [blocks, block_size]) writes codes of ``bits`` in place."""
    alone = np.eye(block_size, dtype=np.int16)  # in block w only the code of weight w is not 0
    empty = np.zeros((block_size, block_bytes), dtype=np.uint8)
    pack(empty, 0 * alone)
    pieces: list[_Piece] = []
    for bit in range(bits):
        packed = np.zeros_like(empty)
        pack(packed, alone << bit)
        weight, byte = np.nonzero(packed ^ empty)
        if not np.array_equal(weight, np.arange(block_size)):
            raise AssertionError(f"bit {bit} of a code is not one bit of its block")
        shift = np.searchsorted(_BITS, packed[weight, byte] ^ empty[weight, byte]).astype(np.uint8)
        last = pieces[-1] if pieces else None
        if last and np.array_equal(byte, last.byte) and np.array_equal(shift, last.shift + np.uint8(last.width)):
            pieces[-1] = _Piece(last.first, last.width + 1, byte, last.shift)
        else:
            pieces.append(_Piece(bit, 1, byte, shift))
    return BitPlaces(block_size, block_bytes, tuple(pieces))
