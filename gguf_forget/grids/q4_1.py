"""Q4_1: 32 weights in 20 bytes, ``weight = d * code + m``, codes 0…15. Source: ggml's ``block_q4_1``.

byte   0     1   2     3   4              …             19
     ┌─────────┬─────────┬────────────────────────────────┐
     │ d  f16  │ m  f16  │ qs[16]                         │
     └─────────┴─────────┴────────────────────────────────┘
qs[j]   bits 3…0: code of weight j      bits 7…4: code of weight j + 16      (j = 0…15)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    return split_fields(part_of(blocks, 4, 20), 4).reshape(-1, 32).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    return read_float16(blocks, 0), read_float16(blocks, 2)


def _pack(blocks: Bytes, codes: Codes) -> None:
    write_part(blocks, 4, join_fields(codes.astype(np.uint8).reshape(-1, 2, 16), 4))


CODEC = Codec(
    name="Q4_1",
    block_size=32,
    block_bytes=20,
    sub_block=32,
    lowest=0,
    highest=15,
    zero_code=None,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
