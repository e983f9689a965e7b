"""Q6_K: 256 weights in 210 bytes, ``weight = d * sc * (code - 32)``, codes 0…63.

Source: ggml's ``block_q6_K``. Sixteen sub-blocks of 16 weights, each with a signed 8-bit scale sc (so the
step may be negative).

    byte   0        …        127   128    …     191   192     …     207   208   209
         ┌──────────────────────┬──────────────────┬──────────────────┬───────────┐
         │ ql[128]              │ qh[64]           │ sc[16], signed   │ d  f16    │
         └──────────────────────┴──────────────────┴──────────────────┴───────────┘
    For each half h = 0, 1 of the block, weight 128 h + 32 g + l   (g = 0…3, l = 0…31):
    low four bits   ql[64 h + 32 (g % 2) + l]   bits 3…0 for g = 0, 1      bits 7…4 for g = 2, 3
    high two bits   qh[32 h + l]                bits 2 g + 1 … 2 g
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    low = split_fields(part_of(blocks, 0, 128).reshape(-1, 2, 64), 4)  # [blocks, h, g // 2, 32 (g % 2) + l]
    high = split_fields(part_of(blocks, 128, 192).reshape(-1, 2, 32), 2)  # [blocks, h, g, l]
    codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
    return codes.astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = read_float16(blocks, 208) * part_of(blocks, 192, 208).view(np.int8).astype(np.float32)
    return scale, np.float32(-32) * scale


def _pack(blocks: Bytes, codes: Codes) -> None:
    sixes = codes.astype(np.uint8)
    write_part(blocks, 0, join_fields(sixes.reshape(-1, 2, 2, 64), 4).reshape(-1, 128))
    write_part(blocks, 128, join_fields((sixes >> np.uint8(4)).reshape(-1, 2, 4, 32), 2).reshape(-1, 64))


CODEC = Codec(
    name="Q6_K",
    block_size=256,
    block_bytes=210,
    sub_block=16,
    lowest=0,
    highest=63,
    zero_code=32,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
