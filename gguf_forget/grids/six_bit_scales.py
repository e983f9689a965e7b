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


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8 [blocks, 12] to sc and m, uint8 [blocks, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    multiplier = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minimum = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return multiplier, minimum
