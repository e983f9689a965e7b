"""Q4_K: 256 weights in 144 bytes, ``weight = d * sc * code - dmin * m``, codes 0…15.

Source: ggml's ``block_q4_K``. Eight sub-blocks of 32 weights; sub-block s has a 6-bit scale sc[s] and a
6-bit minimum m[s], packed as :mod:`gguf_forget.grids.six_bit_scales` draws them.

    byte   0     1   2     3   4          15   16              …              143
         ┌─────────┬─────────┬───────────────┬───────────────────────────────────┐
         │ d  f16  │ dmin f16│ scales[12]    │ qs[128]                           │
         └─────────┴─────────┴───────────────┴───────────────────────────────────┘
    qs[32 g + l]    (g = 0…3)   bits 3…0: weight 64 g + l     bits 7…4: weight 64 g + 32 + l      (l = 0…31)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats
from gguf_forget.grids.six_bit_scales import unpack_scales


def _codes(blocks: Bytes) -> Codes:
    codes = split_fields(part_of(blocks, 16, 144).reshape(-1, 4, 32), 4)  # [blocks, g, half, l]
    return codes.reshape(-1, 256).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    multiplier, minimum = unpack_scales(part_of(blocks, 4, 16))  # [blocks, 8] each
    # float16 times six bits, times four bits: exact in float32, so only the subtraction rounds, once.
    scale = read_float16(blocks, 0) * multiplier.astype(np.float32)
    return scale, -(read_float16(blocks, 2) * minimum.astype(np.float32))


def _pack(blocks: Bytes, codes: Codes) -> None:
    halves = codes.astype(np.uint8).reshape(-1, 4, 2, 32)  # [blocks, g, half, l]
    write_part(blocks, 16, join_fields(halves, 4).reshape(-1, 128))


CODEC = Codec(
    name="Q4_K",
    block_size=256,
    block_bytes=144,
    sub_block=32,
    lowest=0,
    highest=15,
    zero_code=None,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
