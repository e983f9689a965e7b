"""Q5_1: 32 weights in 24 bytes, ``weight = d * code + m``, codes 0…31. Source: ggml's ``block_q5_1``.

byte   0     1   2     3   4        7   8             …            23
     ┌─────────┬─────────┬────────────┬───────────────────────────────┐
     │ d  f16  │ m  f16  │ qh[4]      │ qs[16]                        │
     └─────────┴─────────┴────────────┴───────────────────────────────┘
qs[j]   bits 3…0: low four bits of weight j    bits 7…4: low four bits of weight j + 16   (j = 0…15)
qh      little-endian 32 bits; bit i: bit 4 of the code of weight i                       (i = 0…31)
"""

from __future__ import annotations

from gguf_forget.grids.fifth_bits import pack_fives, unpack_fives
from gguf_forget.grids.layout import Bytes, Codec, read_float16
from gguf_forget.grids.levels import Codes, Floats


def _codes(blocks: Bytes) -> Codes:
    return unpack_fives(blocks, 4)


def _grid(blocks: Bytes) -> tuple[Floats, Floats]:
    return read_float16(blocks, 0), read_float16(blocks, 2)


def _pack(blocks: Bytes, codes: Codes) -> None:
    pack_fives(codes, blocks, 4)


CODEC = Codec(
    name="Q5_1",
    block_size=32,
    block_bytes=24,
    sub_block=32,
    lowest=0,
    highest=31,
    zero_code=None,
    codes_of=_codes,
    grid_of=_grid,
    pack=_pack,
)
