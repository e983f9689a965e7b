"""IQ4_NL: 32 weights in 18 bytes, ``weight = d * TABLE[code]``, codes 0…15. Source: ggml's ``block_iq4_nl``.

    byte   0     1   2              …             17
         ┌─────────┬────────────────────────────────┐
         │ d  f16  │ qs[16]                         │
         └─────────┴────────────────────────────────┘
    qs[j]   bits 3…0: code of weight j      bits 7…4: code of weight j + 16      (j = 0…15)

The levels are not evenly spaced: they lie closer where weights are frequent. ``d`` may be negative.
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats

# ggml's ``kvalues_iq4nl``
TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
TABLE.flags.writeable = False


def _codes(blocks: Bytes) -> Codes:
    return split_fields(part_of(blocks, 2, 18), 4).reshape(-1, 32).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = read_float16(blocks, 0)
    return scale, np.zeros_like(scale)


def _pack(blocks: Bytes, codes: Codes) -> None:
    write_part(blocks, 2, join_fields(codes.astype(np.uint8).reshape(-1, 2, 16), 4))


CODEC = Codec(
    name="IQ4_NL",
    block_size=32,
    block_bytes=18,
    sub_block=32,
    lowest=0,
    highest=15,
    zero_code=0,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
    table=TABLE,
)
