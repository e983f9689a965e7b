"""Bytes that are cut into fields of equal width: what all but one of the block types store their codes in.

Field p of a byte are its bits ``width * p`` to ``width * (p + 1) - 1``. In n bytes side by side lie 8 / width runs of n
codes, run p in the fields p of all of them.

numpy's work goes by the element. So eight bytes are masked and shifted at a time, as one 64-bit word (a shift carries
bits over into the next byte, the mask takes them out again), and a run of n bytes is copied as one element.
"""

from __future__ import annotations

import numpy as np

from gguf_forget.grids.layout import Bytes

_WORD = np.uint64
_EVERY_BYTE = 0x0101010101010101


def split_fields(packed: Bytes, width: int) -> Bytes:
    """uint8 [..., n], n a multiple of 8, to the fields of ``width`` bits (1, 2 or 4), uint8 [..., 8 / width, n]."""
    words = np.ascontiguousarray(packed).view(_WORD)
    fields = np.empty((*packed.shape[:-1], 8 // width, packed.shape[-1]), dtype=np.uint8)
    for place in range(8 // width):
        run = words >> _WORD(width * place)
        run &= _mask(width)
        _runs(fields[..., place, :])[:] = _runs(run.view(np.uint8))
    return fields


def join_fields(fields: Bytes, width: int) -> Bytes:
    """The inverse, uint8 [..., n]; bits above the lowest ``width`` of ``fields`` are left out."""
    packed = np.zeros((*fields.shape[:-2], fields.shape[-1] // 8), dtype=_WORD)
    for place in range(8 // width):
        run = np.ascontiguousarray(_runs(fields[..., place, :])).view(_WORD)
        packed |= (run & _mask(width)) << _WORD(width * place)
    return packed.view(np.uint8)


def _runs(run: Bytes) -> np.ndarray:
    """uint8 [..., n] seen as one element of n bytes, [..., 1]."""
    return run.view(f"V{run.shape[-1]}")


def _mask(width: int) -> np.uint64:
    return _WORD(((1 << width) - 1) * _EVERY_BYTE)
