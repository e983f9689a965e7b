"""IQ4_XS: 256 weights in 136 bytes, ``weight = d * (sc - 32) * TABLE[code]``, codes 0…15.

Source: ggml's ``block_iq4_xs``. Eight sub-blocks of 32 weights; sub-block s has a 6-bit scale sc[s], centred
at 32 (so the scale may be negative). The table is that of :mod:`gguf_forget.grids.iq4_nl`.

    byte   0     1   2          3   4          7   8              …              135
         ┌─────────┬──────────────┬──────────────┬──────────────────────────────────┐
         │ d  f16  │ scales_h u16 │ scales_l[4]  │ qs[128]                          │
         └─────────┴──────────────┴──────────────┴──────────────────────────────────┘
    scales_h        little-endian; bits 2 s + 1 … 2 s: bits 5…4 of sc[s]           (s = 0…7)
    scales_l[j]     bits 3…0: low bits of sc[2 j]     bits 7…4: low bits of sc[2 j + 1]
    qs[16 s + l]    bits 3…0: weight 32 s + l         bits 7…4: weight 32 s + 16 + l      (l = 0…15)
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.iq4_nl import TABLE
from gguf_forget.grids.layout import PAIR_SHIFTS, Bytes, Codec, part_of, read_float16, write_part
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    codes = split_fields(part_of(blocks, 8, 136).reshape(-1, 8, 16), 4)  # [blocks, s, half, l]
    return codes.reshape(-1, 256).astype(np.int16)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    high = blocks[:, 2:4, None] >> PAIR_SHIFTS[:, 0] & 3  # [blocks, byte, s % 4]
    low = np.stack([blocks[:, 4:8] & 0x0F, blocks[:, 4:8] >> 4], axis=2)  # [blocks, j, s % 2]
    multiplier = low.reshape(-1, 8) | high.reshape(-1, 8) << 4
    scale = read_float16(blocks, 0) * (multiplier.astype(np.float32) - 32)
    return scale, np.zeros_like(scale)


def _pack(blocks: Bytes, codes: Codes) -> None:
    quads = codes.astype(np.uint8).reshape(-1, 8, 2, 16)  # [blocks, s, half, l]
    write_part(blocks, 8, join_fields(quads, 4).reshape(-1, 128))


CODEC = Codec(
    name="IQ4_XS",
    block_size=256,
    block_bytes=136,
    sub_block=32,
    lowest=0,
    highest=15,
    zero_code=0,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
    table=TABLE,
)
