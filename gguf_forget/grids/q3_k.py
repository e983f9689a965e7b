"""Q3_K: 256 weights in 110 bytes, ``weight = d * (sc - 32) * (code - 4)``, codes 0…7.

Source: ggml's ``block_q3_K``. Sixteen sub-blocks of 16 weights; sub-block s has a 6-bit scale sc[s], centred
at 32 (so the step may be negative).

    byte   0      …      31   32     …      95   96     …      107   108   109
         ┌──────────────────┬──────────────────┬───────────────────┬───────────┐
         │ hmask[32]        │ qs[64]           │ scales[12]        │ d  f16    │
         └──────────────────┴──────────────────┴───────────────────┴───────────┘
    For weight 128 h + 32 g + l   (h = 0, 1;  g = 0…3;  l = 0…31):
    low two bits   qs[32 h + l]   bits 2 g + 1 … 2 g
    high bit       hmask[l]       bit 4 h + g
    scales[j]       (j = 0…7)     bits 3…0: low bits of sc[j]     bits 7…4: low bits of sc[j + 8]
    scales[j + 8]   (j = 0…3)     bits 2 i + 1 … 2 i: bits 5…4 of sc[4 i + j]      (i = 0…3)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import PAIR_SHIFTS, Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    low = split_fields(part_of(blocks, 32, 96).reshape(-1, 2, 32), 2)  # [blocks, h, g, l]
    high = split_fields(part_of(blocks, 0, 32), 1)  # [blocks, 4 h + g, l]
    codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 2
    return codes.astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    nibbles = blocks[:, 96:104]
    fifths = blocks[:, 104:108].reshape(-1, 1, 4) >> PAIR_SHIFTS & 3  # [blocks, i, j]
    multiplier = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1) | fifths.reshape(-1, 16) << 4
    scale = read_float16(blocks, 108) * (multiplier.astype(np.float32) - 32)
    return scale, np.float32(-4) * scale


def _pack(blocks: Bytes, codes: Codes) -> None:
    threes = codes.astype(np.uint8)
    write_part(blocks, 32, join_fields(threes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64))
    write_part(blocks, 0, join_fields((threes >> np.uint8(2)).reshape(-1, 8, 32), 1))


CODEC = Codec(
    name="Q3_K",
    block_size=256,
    block_bytes=110,
    sub_block=16,
    lowest=0,
    highest=7,
    zero_code=4,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
