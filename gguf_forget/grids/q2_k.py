"""Q2_K: 256 weights in 84 bytes, ``weight = d * sc * code - dmin * m``, codes 0…3.

Source: ggml's ``block_q2_K``. Sixteen sub-blocks of 16 weights; sub-block s has a 4-bit scale sc[s] and a
4-bit minimum m[s].

    byte   0         …        15   16        …        79   80    81   82    83
         ┌──────────────────────┬────────────────────────┬──────────┬──────────┐
         │ scales[16]           │ qs[64]                 │ d  f16   │ dmin f16 │
         └──────────────────────┴────────────────────────┴──────────┴──────────┘
    scales[s]      bits 3…0: sc[s]      bits 7…4: m[s]
    qs[32 h + l]   bits 2 g + 1 … 2 g: weight 128 h + 32 g + l      (h = 0, 1;  g = 0…3;  l = 0…31)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    codes = split_fields(part_of(blocks, 16, 80).reshape(-1, 2, 32), 2)  # [blocks, h, g, l]
    return codes.reshape(-1, 256).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scales = blocks[:, :16]
    # float16 times four bits, times two bits: exact in float32, so only the subtraction rounds, once.
    scale = read_float16(blocks, 80) * (scales & 0x0F).astype(np.float32)
    return scale, -(read_float16(blocks, 82) * (scales >> 4).astype(np.float32))


def _pack(blocks: Bytes, codes: Codes) -> None:
    write_part(blocks, 16, join_fields(codes.astype(np.uint8).reshape(-1, 2, 4, 32), 2).reshape(-1, 64))


CODEC = Codec(
    name="Q2_K",
    block_size=256,
    block_bytes=84,
    sub_block=16,
    lowest=0,
    highest=3,
    zero_code=None,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
