"""Q8_0: 32 weights in 34 bytes, ``weight = d * code``, codes -127…127. Source: ggml's ``block_q8_0``.

    byte   0     1   2                    …                   33
         ┌─────────┬────────────────────────────────────────────┐
         │ d  f16  │ qs[32], signed: code of weight j           │
         └─────────┴────────────────────────────────────────────┘

A byte can hold -128, but llama.cpp never writes it (d = largest magnitude / 127). Such a code is decoded as
it stands and may be written back where it was; it is never chosen.
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    return part_of(blocks, 2, 34).view(np.int8).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = read_float16(blocks, 0)
    return scale, np.zeros_like(scale)


def _pack(blocks: Bytes, codes: Codes) -> None:
    write_part(blocks, 2, codes.astype(np.int8).view(np.uint8))


CODEC = Codec(
    name="Q8_0",
    block_size=32,
    block_bytes=34,
    sub_block=32,
    lowest=-127,
    highest=127,
    zero_code=0,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
