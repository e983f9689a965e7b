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

from gguf_forget.grids.layout import PAIR_SHIFTS, Bytes, Codec, Codes, Floats, read_float16


def _unpack(blocks: Bytes) -> tuple[Codes, Floats, Floats]:
    nibbles = blocks[:, :128].reshape(-1, 2, 64)  # [blocks, h, 32 (g % 2) + l]
    low = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=2)  # [blocks, h, 32 g + l]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> PAIR_SHIFTS & 3  # [blocks, h, g, l]
    codes = low | high.reshape(-1, 2, 128) << 4
    scale = read_float16(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return codes.reshape(-1, 256).astype(np.int16), scale, np.float32(-32) * scale


def _pack(blocks: Bytes, codes: Codes) -> None:
    sixes = codes.astype(np.uint8).reshape(-1, 2, 128)  # [blocks, h, 32 g + l]
    low = sixes & 0x0F
    blocks[:, :128] = (low[:, :, :64] | low[:, :, 64:] << 4).reshape(-1, 128)
    high = (sixes >> 4).reshape(-1, 2, 4, 32) << PAIR_SHIFTS  # [blocks, h, g, l], four disjoint bit pairs
    blocks[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)


CODEC = Codec(
    name="Q6_K",
    block_size=256,
    block_bytes=210,
    sub_block=16,
    lowest=0,
    highest=63,
    zero_code=32,
    unpack=_unpack,
    pack=_pack,
)
