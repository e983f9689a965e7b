"""The fifth bits of 32 codes in four bytes, and their low four bits in sixteen: what Q5_0 and Q5_1 share.

qh[4]   little-endian 32 bits; bit i: bit 4 of the code of weight i                       (i = 0…31)
qs[16]  bits 3…0 of qs[j]: low four bits of weight j    bits 7…4: of weight j + 16        (j = 0…15)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.layout import Bytes, Codes

# For every value of a byte of qh its eight bits as eight bytes, 16 where one is set; one lookup a byte.
_SPREAD = (np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") << 4).view(np.uint64)[:, 0]


def unpack_fives(high: Bytes, nibbles: Bytes) -> Codes:
    """Codes 0…31, int16 [blocks, 32], of qh, uint8 [blocks, 4], and qs, uint8 [blocks, 16]."""
    codes = np.empty((len(nibbles), 32), dtype=np.int16)
    np.bitwise_and(nibbles, 0x0F, out=codes[:, :16])
    np.right_shift(nibbles, 4, out=codes[:, 16:])
    codes |= _SPREAD[high].view(np.uint8)
    return codes


def pack_fives(codes: Codes, high: Bytes, nibbles: Bytes) -> None:
    """The inverse, written into ``high`` and ``nibbles``."""
    fives = codes.astype(np.uint8)
    # Flat: packing along rows of 32 takes eight times as long.
    high[:] = np.packbits((fives > 15).ravel(), bitorder="little").reshape(-1, 4)
    low = fives[:, 16:] << 4
    low |= fives[:, :16] & 0x0F
    nibbles[:] = low
