"""Q4_0: 32 weights in 18 bytes, ``weight = d * (code - 8)``, codes 0…15. Source: ggml's ``block_q4_0``.

    byte   0     1   2              …             17
         ┌─────────┬────────────────────────────────┐
         │ d  f16  │ qs[16]                         │
         └─────────┴────────────────────────────────┘
    qs[j]   bits 3…0: code of weight j      bits 7…4: code of weight j + 16      (j = 0…15)

``d`` may be negative: llama.cpp gives the weight of largest magnitude code 0, so its sign goes into d.
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    return split_fields(part_of(blocks, 2, 18), 4).reshape(-1, 32).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = read_float16(blocks, 0)
    return scale, np.float32(-8) * scale


def _pack(blocks: Bytes, codes: Codes) -> None:
    write_part(blocks, 2, join_fields(codes.astype(np.uint8).reshape(-1, 2, 16), 4))


CODEC = Codec(
    name="Q4_0",
    block_size=32,
    block_bytes=18,
    sub_block=32,
    lowest=0,
    highest=15,
    zero_code=8,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
