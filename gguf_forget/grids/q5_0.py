"""Q5_0: 32 weights in 22 bytes, ``weight = d * (code - 16)``, codes 0…31. Source: ggml's ``block_q5_0``.

    byte   0     1   2        5   6             …            21
         ┌─────────┬────────────┬───────────────────────────────┐
         │ d  f16  │ qh[4]      │ qs[16]                        │
         └─────────┴────────────┴───────────────────────────────┘
    qs[j]   bits 3…0: low four bits of weight j    bits 7…4: low four bits of weight j + 16   (j = 0…15)
    qh      little-endian 32 bits; bit i: bit 4 of the code of weight i                       (i = 0…31)

``d`` may be negative, as in Q4_0.
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.fifth_bits import pack_fives, unpack_fives
from gguf_forget.grids.layout import Bytes, Codec, read_float16
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    return unpack_fives(blocks, 2)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = read_float16(blocks, 0)
    return scale, np.float32(-16) * scale


def _pack(blocks: Bytes, codes: Codes) -> None:
    pack_fives(codes, blocks, 2)


CODEC = Codec(
    name="Q5_0",
    block_size=32,
    block_bytes=22,
    sub_block=32,
    lowest=0,
    highest=31,
    zero_code=16,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
