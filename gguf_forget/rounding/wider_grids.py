"""The best grid for some sub-blocks on which every edit that is asked for can land, and every weight its nearest code.

Shapes: n sub-blocks, L weights of each, C candidate grids of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.layout import Codec
from gguf_forget.grids.scale_codes import ScaleCodes

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NUMBERS_AT_ONCE = 1 << 17
SCALES, OFFSETS = 16, 7  # looked at first where a type has too many of both to look at all
FEW = 600  # grids of one sub-block that are all looked at


@dataclass(frozen=True)
class Wanted:
    """What some sub-blocks hold and are to hold; each array [n, L], float64 but for ``direction``.

    before: the stock file's weights. after: with the edits. direction: int8, of the edits that must land in weight
    units, else 0. importance: what a squared error of each weight counts.
    """

    before: Doubles
    after: Doubles
    direction: npt.NDArray[np.int8]
    importance: Doubles

    def __getitem__(self, index: Any) -> Wanted:
        return Wanted(self.before[index], self.after[index], self.direction[index], self.importance[index])

    def __len__(self) -> int:
        return len(self.before)

    def extremes(self) -> tuple[Doubles, Doubles]:
        """The smallest and the largest of all weights before and after, [n] each."""
        low = np.minimum(self.before.min(axis=1), self.after.min(axis=1))
        return low, np.maximum(self.before.max(axis=1), self.after.max(axis=1))


def grid_errors(codec: Codec, wanted: Wanted, scale: Doubles, offset: Doubles) -> Doubles:
    """Weighted squared error of every candidate grid, inf where an edit cannot land on it; scale, offset: [n, C].

    An edit lands one code or more beyond the code nearest to the weight before, in its direction.
    """
    result = np.full(scale.shape, np.inf)
    at_once = max(1, NUMBERS_AT_ONCE // (scale.shape[1] * wanted.before.shape[1]))
    for start in range(0, len(scale), at_once):
        part = slice(start, start + at_once)
        result[part] = _errors(codec, wanted[part], scale[part, :, None], offset[part, :, None])
    return result


def _errors(codec: Codec, wanted: Wanted, scale: Doubles, offset: Doubles) -> Doubles:
    before, after, direction = wanted.before[:, None], wanted.after[:, None], wanted.direction[:, None]  # [n, 1, L]
    finite = np.isfinite(scale) & np.isfinite(offset)
    scale, offset = np.where(finite, scale, 0.0), np.where(finite, offset, 0.0)
    usable = scale != 0  # [n, C, 1]; a scale of 0 is a grid of one level
    divisor = np.where(usable, scale, 1.0)
    towards = direction * np.sign(divisor)  # of the edit, in codes
    base = base_codes(codec, before, after, towards, divisor, offset)
    codes = nearest(codec, (after - offset) / divisor)
    codes = np.where(towards > 0, np.maximum(codes, base + 1), codes)
    codes = np.where(towards < 0, np.minimum(codes, base - 1), codes)
    asked = direction != 0
    fits = ~asked | (usable & (codes >= codec.lowest) & (codes <= codec.highest))
    fits &= ~asked | ((base >= codec.lowest) & (base <= codec.highest))
    error = level(codec, np.clip(codes, codec.lowest, codec.highest)) * scale + offset - after
    total: Doubles = (wanted.importance[:, None] * error**2).sum(axis=2)
    total[~(fits.all(axis=2) & finite[..., 0])] = np.inf
    return total


def base_codes(
    codec: Codec, before: Doubles, after: Doubles, towards: npt.NDArray[Any], scale: Doubles, offset: Doubles
) -> Doubles:
    """The code from which an edit must move on: the nearest to the weight before, any shape; may be out of range.

    Where that code lies beyond the edited weight already, the one before it in the edit's direction.
    """
    code = nearest(codec, (before - offset) / scale)
    behind = after - (level(codec, code) * scale + offset)
    return np.where((towards != 0) & (behind * towards * np.sign(scale) <= 0), code - towards, code)


def nearest(codec: Codec, place: Doubles) -> Doubles:
    """The codes (whole numbers) nearest to places in units of the scale, any shape."""
    if codec.table is None:
        return np.clip(np.rint(place), codec.lowest, codec.highest)
    middles = (codec.table[1:].astype(np.float64) + codec.table[:-1]) / 2
    return np.searchsorted(middles, place).astype(np.float64) + codec.lowest


def level(codec: Codec, codes: Doubles) -> Doubles:
    """The levels of ``codes`` in units of the scale, any shape; out of range the end's."""
    if codec.table is None:
        return codes
    return codec.table.astype(np.float64)[np.clip(codes - codec.lowest, 0, len(codec.table) - 1).astype(np.int64)]


def offsets_of(codec: Codec, layout: ScaleCodes, scale: Doubles, base_offset: Doubles, minimum: Integers) -> Doubles:
    if layout.offset_at is None:
        with np.errstate(invalid="ignore"):  # a scale beyond float16 is told apart later
            return -float(codec.zero_code or 0) * scale
    return -(base_offset * minimum)


@dataclass(frozen=True)
class Present:
    """The grids that some sub-blocks have, float64 [n] each."""

    scale: Doubles
    offset: Doubles

    def __getitem__(self, index: Any) -> Present:
        return Present(self.scale[index], self.offset[index])


def choose_codes(
    codec: Codec,
    layout: ScaleCodes,
    wanted: Wanted,
    present: Present,
    base: Doubles,
    base_offset: Doubles,
    *,
    thorough: bool,
) -> tuple[Integers, Integers, Doubles]:
    """The best multiplier and minimum of every sub-block for given bases, and their error (inf: none will do).

    base, base_offset: [n]. thorough: where no likely grid will do, look at all. Multiplier, minimum, error: [n] each.
    """
    best = np.full(len(wanted), np.inf)
    chosen = np.zeros((2, len(wanted)), dtype=np.int64)

    def look(rows: npt.NDArray[np.intp], multiplier: Integers, minimum: Integers) -> None:
        scale = base[rows, None] * multiplier
        offset = offsets_of(codec, layout, scale, base_offset[rows, None], minimum)
        errors = grid_errors(codec, wanted[rows], scale, offset)
        line, place = np.arange(len(rows)), errors.argmin(axis=1)
        better = errors[line, place] < best[rows]
        for target, candidates in zip(chosen, (multiplier, minimum), strict=True):
            target[rows[better]] = np.broadcast_to(candidates, errors.shape)[line, place][better]
        best[rows[better]] = errors[line, place][better]

    pairs = np.array(
        np.meshgrid(*(np.arange(low, high + 1) for low, high in (layout.multipliers, layout.minima)))
    ).reshape(2, 1, -1)
    every = np.arange(len(wanted))
    few = pairs.shape[2] <= FEW
    if few:
        look(every, pairs[0], pairs[1])
    else:
        look(every, *_likely(codec, layout, wanted, base, base_offset, present.scale))
    left = np.flatnonzero(np.isinf(best))
    if thorough and not few and left.size:
        look(left, pairs[0], pairs[1])
    return chosen[0], chosen[1], best


def nearest_codes_of(
    codec: Codec, layout: ScaleCodes, wanted: Wanted, present: Present, base: Doubles, base_offset: Doubles
) -> tuple[Integers, Integers, Doubles]:
    """As :func:`choose_codes` for sub-blocks that need no wider grid: the nearest to the present one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        multiplier = np.nan_to_num(np.rint(present.scale / base), posinf=0, neginf=0)
        minimum = np.nan_to_num(np.rint(-present.offset / base_offset), posinf=0, neginf=0)
    around = np.array([[0, 0, 0, 1, -1, 1, 1, -1, -1], [0, 1, -1, 0, 0, 1, -1, 1, -1]])
    if layout.offset_at is None:
        around = around[:, [0, 3, 4]]
    candidates = [
        np.clip(middle[:, None] + shifts, *limits).astype(np.int64)
        for middle, shifts, limits in zip(
            (multiplier, minimum), around, (layout.multipliers, layout.minima), strict=True
        )
    ]
    scale = base[:, None] * candidates[0]
    offset = offsets_of(codec, layout, scale, base_offset[:, None], candidates[1])
    errors = grid_errors(codec, wanted, scale, offset)
    line, place = np.arange(len(wanted)), errors.argmin(axis=1)
    return candidates[0][line, place], candidates[1][line, place], errors[line, place]


def _likely(
    codec: Codec, layout: ScaleCodes, wanted: Wanted, base: Doubles, base_offset: Doubles, present: Doubles
) -> tuple[Integers, Integers]:
    """Scales from the present one up to that which spans all weights; offsets from bottom-aligned to top-aligned."""
    low, high = wanted.extremes()
    width = codec.highest - codec.lowest
    step = np.where(base != 0, np.abs(base), 1.0)
    needed = (high - np.minimum(low, 0)) / width
    asked = (wanted.direction != 0).any(axis=1)
    first = 0.9 * np.abs(present) / step
    last = np.maximum(1.25 * np.abs(present), np.where(asked, 1.3 * np.maximum(needed, np.abs(present)), 0)) / step + 1
    parts = np.linspace(0, 1, SCALES)
    multiplier = np.rint(first[:, None] + (last - first)[:, None] * parts)  # [n, SCALES]
    multiplier = np.clip(multiplier, max(layout.multipliers[0], 0), layout.multipliers[1])
    scale = multiplier * base[:, None]
    bottom, top = low[:, None] - codec.lowest * scale, high[:, None] - codec.highest * scale
    parts = np.linspace(-0.25, 1.25, OFFSETS)
    offset = bottom[..., None] + (top - bottom)[..., None] * parts  # [n, SCALES, OFFSETS]
    unit = np.where(base_offset != 0, base_offset, np.inf)[:, None, None]
    minimum = np.clip(np.rint(-offset / unit), *layout.minima).reshape(len(base), -1)
    return np.repeat(multiplier, OFFSETS, axis=1).astype(np.int64), minimum.astype(np.int64)
