"""How every block type stores the scales and offsets of its sub-blocks, and how to write others.

    scale  = base * multiplier             base: float16 of the block, multiplier: an integer of the sub-block
    offset = -(base_offset * minimum)      where the type stores an offset; else it follows from ``zero_code``

A type with one scale a block has the multiplier 1 (and the minimum 1). The bit layouts are drawn in each type's codec.

Shapes: blocks as in :mod:`gguf_forget.grids.layout`; S sub-blocks of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.layout import PAIR_SHIFTS, Bytes, part_of, read_float16
from gguf_forget.grids.six_bit_scales import unpack_scales

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScaleCodes:
    """read gives (multiplier, minimum), int64 [blocks, S] each; write puts such numbers into ``blocks`` in place.

    base_at, offset_at: the byte of the block where its float16 is; None for a type without a stored offset.
    offset_sign: -1 where the float16 at ``offset_at`` is subtracted, 1 where it is added.
    """

    multipliers: tuple[int, int]  # lowest and highest
    minima: tuple[int, int]
    base_at: int
    offset_at: int | None
    offset_sign: int
    read: Callable[[Bytes], tuple[Integers, Integers]] = field(repr=False)
    write: Callable[[Bytes, Integers, Integers], None] = field(repr=False)

    @property
    def own_bases(self) -> bool:
        """Whether every sub-block has a base of its own, so that nothing else depends on it."""
        return self.multipliers == (1, 1)

    def bases(self, blocks: Bytes) -> tuple[Doubles, Doubles]:
        """base and base_offset of uint8 [blocks, block_bytes], float64 [blocks] each."""
        base = read_float16(blocks, self.base_at)[:, 0].astype(np.float64)
        if self.offset_at is None:
            return base, np.zeros_like(base)
        return base, -self.offset_sign * read_float16(blocks, self.offset_at)[:, 0].astype(np.float64)

    def write_bases(self, blocks: Bytes, base: Doubles, base_offset: Doubles) -> None:
        """The inverse of :meth:`bases`, in place; the values must be float16 numbers."""
        blocks[:, self.base_at : self.base_at + 2] = _float16_bytes(base)
        if self.offset_at is not None:
            blocks[:, self.offset_at : self.offset_at + 2] = _float16_bytes(-self.offset_sign * base_offset)


def _float16_bytes(values: Doubles) -> Bytes:
    return np.ascontiguousarray(values.astype("<f2")[:, None]).view(np.uint8)


def _read_ones(blocks: Bytes) -> tuple[Integers, Integers]:
    ones = np.ones((len(blocks), 1), dtype=np.int64)
    return ones, ones


def _write_nothing(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    """A type with one scale a block has no scale codes."""


def _read_six_bits(blocks: Bytes) -> tuple[Integers, Integers]:
    multiplier, minimum = unpack_scales(part_of(blocks, 4, 16))
    return multiplier.astype(np.int64), minimum.astype(np.int64)


def _write_six_bits(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    sc, m = multiplier.astype(np.uint8), minimum.astype(np.uint8)
    blocks[:, 4:8] = sc[:, :4] | sc[:, 4:] >> 4 << 6
    blocks[:, 8:12] = m[:, :4] | m[:, 4:] >> 4 << 6
    blocks[:, 12:16] = sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4


def _read_q2_k(blocks: Bytes) -> tuple[Integers, Integers]:
    return (blocks[:, :16] & 15).astype(np.int64), (blocks[:, :16] >> 4).astype(np.int64)


def _write_q2_k(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    blocks[:, :16] = multiplier.astype(np.uint8) | minimum.astype(np.uint8) << 4


def _read_q3_k(blocks: Bytes) -> tuple[Integers, Integers]:
    nibbles = blocks[:, 96:104]
    high = blocks[:, 104:108].reshape(-1, 1, 4) >> PAIR_SHIFTS & 3  # [blocks, i, j]
    stored = np.concatenate([nibbles & 15, nibbles >> 4], axis=1) | high.reshape(-1, 16) << 4
    return stored.astype(np.int64) - 32, np.zeros((len(blocks), 16), dtype=np.int64)


def _write_q3_k(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    stored = (multiplier + 32).astype(np.uint8)
    low, high = stored & 15, stored >> 4
    blocks[:, 96:104] = low[:, :8] | low[:, 8:] << 4
    blocks[:, 104:108] = np.bitwise_or.reduce(high.reshape(-1, 4, 4) << PAIR_SHIFTS, axis=1)


def _read_q6_k(blocks: Bytes) -> tuple[Integers, Integers]:
    return blocks[:, 192:208].view(np.int8).astype(np.int64), np.zeros((len(blocks), 16), dtype=np.int64)


def _write_q6_k(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    blocks[:, 192:208] = multiplier.astype(np.int8).view(np.uint8)


def _read_iq4_xs(blocks: Bytes) -> tuple[Integers, Integers]:
    high = blocks[:, 2:4, None] >> PAIR_SHIFTS[:, 0] & 3  # [blocks, byte, s % 4]
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2)  # [blocks, j, s % 2]
    stored = low.reshape(-1, 8) | high.reshape(-1, 8) << 4
    return stored.astype(np.int64) - 32, np.zeros((len(blocks), 8), dtype=np.int64)


def _write_iq4_xs(blocks: Bytes, multiplier: Integers, minimum: Integers) -> None:
    stored = (multiplier + 32).astype(np.uint8)
    low, high = stored & 15, stored >> 4
    blocks[:, 2:4] = np.bitwise_or.reduce(high.reshape(-1, 2, 4) << PAIR_SHIFTS[:, 0], axis=2)
    blocks[:, 4:8] = low[:, ::2] | low[:, 1::2] << 4


def _one_scale(offset_at: int | None = None) -> ScaleCodes:
    return ScaleCodes((1, 1), (1, 1), 0, offset_at, 1, _read_ones, _write_nothing)


_SIX_BITS = ScaleCodes((0, 63), (0, 63), 0, 2, -1, _read_six_bits, _write_six_bits)

SCALE_CODES: dict[str, ScaleCodes] = {
    "Q4_0": _one_scale(),
    "Q4_1": _one_scale(offset_at=2),
    "Q5_0": _one_scale(),
    "Q5_1": _one_scale(offset_at=2),
    "Q8_0": _one_scale(),
    "Q2_K": ScaleCodes((0, 15), (0, 15), 80, 82, -1, _read_q2_k, _write_q2_k),
    "Q3_K": ScaleCodes((-32, 31), (0, 0), 108, None, -1, _read_q3_k, _write_q3_k),
    "Q4_K": _SIX_BITS,
    "Q5_K": _SIX_BITS,
    "Q6_K": ScaleCodes((-128, 127), (0, 0), 208, None, -1, _read_q6_k, _write_q6_k),
    "IQ4_NL": _one_scale(),
    "IQ4_XS": ScaleCodes((-32, 31), (0, 0), 0, None, -1, _read_iq4_xs, _write_iq4_xs),
}
