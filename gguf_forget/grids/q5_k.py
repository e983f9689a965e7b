"""Q5_K: 256 weights in 176 bytes, ``weight = d * sc * code - dmin * m``, codes 0…31.

Source: ggml's ``block_q5_K``. Eight sub-blocks of 32 weights; sub-block s has a 6-bit scale sc[s] and a
6-bit minimum m[s], packed as :mod:`gguf_forget.grids.six_bit_scales` draws them.

    byte   0     1   2     3   4          15   16    …    47   48              …              175
         ┌─────────┬─────────┬───────────────┬───────────────┬───────────────────────────────────┐
         │ d  f16  │ dmin f16│ scales[12]    │ qh[32]        │ qs[128]                           │
         └─────────┴─────────┴───────────────┴───────────────┴───────────────────────────────────┘
    low four bits   qs[32 g + l]  (g = 0…3)  bits 3…0: weight 64 g + l   bits 7…4: weight 64 g + 32 + l  (l = 0…31)
    high bit        qh[l]                    bit 2 g: weight 64 g + l    bit 2 g + 1: weight 64 g + 32 + l
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats
from gguf_forget.grids.six_bit_scales import unpack_scales


def _codes(blocks: Bytes) -> Codes:
    low = split_fields(part_of(blocks, 48, 176).reshape(-1, 4, 32), 4)  # [blocks, g, half, l]
    high = split_fields(part_of(blocks, 16, 48), 1)  # [blocks, 2 g + half, l]
    codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
    return codes.astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    multiplier, minimum = unpack_scales(part_of(blocks, 4, 16))  # [blocks, 8] each
    # float16 times six bits, times five bits: exact in float32, so only the subtraction rounds, once.
    scale = read_float16(blocks, 0) * multiplier.astype(np.float32)
    return scale, -(read_float16(blocks, 2) * minimum.astype(np.float32))


def _pack(blocks: Bytes, codes: Codes) -> None:
    fives = codes.astype(np.uint8).reshape(-1, 8, 32)  # [blocks, 2 g + half, l]
    write_part(blocks, 48, join_fields(fives.reshape(-1, 4, 2, 32), 4).reshape(-1, 128))
    write_part(blocks, 16, join_fields(fives >> np.uint8(4), 1))


CODEC = Codec(
    name="Q5_K",
    block_size=256,
    block_bytes=176,
    sub_block=32,
    lowest=0,
    highest=31,
    zero_code=None,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
