"""The fifth bits of 32 codes in four bytes, and their low four bits in sixteen: what Q5_0 and Q5_1 share.

qh[4]   little-endian 32 bits; bit i: bit 4 of the code of weight i                       (i = 0…31)
qs[16]  bits 3…0 of qs[j]: low four bits of weight j    bits 7…4: of weight j + 16        (j = 0…15)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, part_of, write_part
from gguf_forget.grids.levels import Codes

# For every value of a byte of qh its eight bits as eight bytes, 16 where one is set; one lookup a byte.
_SPREAD = (np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") << 4).view(np.uint64)[:, 0]


def unpack_fives(blocks: Bytes, at: int) -> Codes:
    """Codes 0…31, int16 [blocks, 32], of qh at byte ``at`` of every block and qs behind it."""
    codes = split_fields(part_of(blocks, at + 4, at + 20), 4).reshape(-1, 32)
    codes |= _SPREAD.take(part_of(blocks, at, at + 4)).view(np.uint8)
    return codes.astype(np.int16)


def pack_fives(codes: Codes, blocks: Bytes, at: int) -> None:
    """The inverse, written into ``blocks``."""
    fives = codes.astype(np.uint8)
    # Flat: packing along rows of 32 takes eight times as long.
    write_part(blocks, at, np.packbits((fives > 15).ravel(), bitorder="little").reshape(-1, 4))
    write_part(blocks, at + 4, join_fields(fives.reshape(-1, 2, 16), 4))
