"""The eight 6-bit scales sc and 6-bit minima m that Q4_K and Q5_K share. Source: ggml's ``get_scale_min_k4``.

byte   0        3   4        7   8       11
     ┌────────────┬────────────┬────────────┐
     │ first[4]   │ second[4]  │ third[4]   │
     └────────────┴────────────┴────────────┘
first[j]    (j = 0…3)   bits 5…0: sc[j]                   bits 7…6: bits 5…4 of sc[j + 4]
second[j]               bits 5…0: m[j]                    bits 7…6: bits 5…4 of m[j + 4]
third[j]                bits 3…0: low bits of sc[j + 4]   bits 7…4: low bits of m[j + 4]
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.layout import Bytes

_SIX_BITS, _FOUR_BITS, _TWO_BITS = (np.uint32(mask) for mask in (0x3F3F3F3F, 0x0F0F0F0F, 0x03030303))


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8 [blocks, 12] to sc and m, uint8 [blocks, 8] each."""
    # Four bytes at a time, as in ggml: bits that a shift carries into the next byte are masked out.
    first, second, third = np.ascontiguousarray(packed).view(np.uint32).T
    multiplier, minimum = (np.empty((len(packed), 2), dtype=np.uint32) for _ in range(2))
    multiplier[:, 0] = first & _SIX_BITS
    multiplier[:, 1] = third & _FOUR_BITS | (first >> 6 & _TWO_BITS) << 4
    minimum[:, 0] = second & _SIX_BITS
    minimum[:, 1] = third >> 4 & _FOUR_BITS | (second >> 6 & _TWO_BITS) << 4
    return multiplier.view(np.uint8), minimum.view(np.uint8)
