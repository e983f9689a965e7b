"""Room for edits that the original's grid has no code for: a wider grid for their sub-block (ours).

An edit is saturated where the original's code is the last of its grid in the edit's direction. Its sub-block is then
given another scale (and offset), the best on which every edit that must land does, and every other weight takes the
nearest code. Where super-block types have no room left in the sub-block's own scale code, the block's float16 base is
changed, which moves the scales of its other sub-blocks a little too. All other sub-blocks stay as they are.

What "best" means is where a diagonal H counts (from an importance matrix or calibration data): each squared error is
weighted by it.

Shapes: rows, columns as in :mod:`gguf_forget.grids.levels`; n sub-blocks, L weights of each, S of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.layout import Bytes, Codec
from gguf_forget.grids.levels import Levels
from gguf_forget.grids.scale_codes import SCALE_CODES
from gguf_forget.rounding.edits import find_edits
from gguf_forget.rounding.wider_grids import (
    Present,
    Wanted,
    base_codes,
    choose_codes,
    grid_errors,
    nearest_codes_of,
    offsets_of,
)

Doubles = npt.NDArray[np.float64]
SATURATED = ("count", "widen")
"""What to do with an edit that the grid has no code for: count it and leave it out, or widen its sub-block's grid."""

_WIDER = (1.0, 1.03, 1.07, 1.12, 1.2, 1.3, 1.45, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)  # multiples of the present base
_WIDER_BASE = (1.0, 1.15, 1.5, 2.5)  # the same of a block with scale codes, where each takes a search
_BEYOND = (1.001, 1.05, 1.2, 1.5, 2.0)  # multiples of the least base that reaches all weights
_SMALLEST = 2.0**-24  # positive float16
_PARTS = np.array([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])  # offsets from bottom-aligned (0) to top-aligned (1)


@dataclass(frozen=True)
class Widened:
    """A rounding problem in which saturated edits have room.

    blocks: uint8 [rows, bytes per row]; the given ones but for the sub-blocks with a new grid. There every weight has
    the code nearest to its old value (edits that must land: the code they move on from).
    delta: float64 [rows, columns], what to add to the weights of ``blocks``. must_move: bool [rows, columns].
    regridded: bool [rows, columns // sub_block], the sub-blocks whose grid is new.
    """

    blocks: Bytes
    delta: Doubles
    must_move: npt.NDArray[np.bool_]
    regridded: npt.NDArray[np.bool_]


def widen(
    codec: Codec,
    blocks: Bytes,
    delta: npt.NDArray[Any],
    *,
    survive: str = "important",
    importance: npt.NDArray[Any] | None = None,
) -> Widened | None:
    """Give the saturated edits of ``delta`` room; None where there is none, or a scale is not finite.

    blocks: uint8 [rows, bytes per row]; delta: float [rows, columns], finite. importance: float [columns], not
    negative, the diagonal of H. Sub-blocks for which no grid will do stay: ``round_edit`` counts their edits as
    saturated still.
    """
    levels = codec.decode(blocks)
    if not (np.isfinite(levels.scale).all() and np.isfinite(levels.offset).all()):
        return None
    index = np.flatnonzero(delta != 0)
    edits = find_edits(levels.at(index), delta.ravel()[index], survive=survive)
    if not edits.saturated.any():
        return None
    must_move = np.zeros(delta.shape, dtype=bool)
    must_move.ravel()[index] = edits.asked
    before = levels.values().astype(np.float64)
    wanted = _wanted(codec, before, delta, must_move, importance)
    grids = _Grids(codec, blocks)
    short = np.zeros(len(wanted), dtype=bool)  # sub-blocks with a saturated edit
    short[index[edits.saturated] // codec.sub_block] = True
    if not grids.layout.own_bases:
        grids.widen_sub_blocks(np.flatnonzero(short), wanted, short)
    grids.widen_blocks(short, wanted)
    new = grids.written()
    fresh = codec.decode(new)
    changed = ((fresh.scale != levels.scale) | (fresh.offset != levels.offset)).ravel()
    base = _base_blocks(codec, new, levels, wanted, changed)
    return Widened(
        blocks=base,
        delta=np.where(
            np.repeat(changed.reshape(levels.scale.shape), codec.sub_block, axis=1),
            wanted.after.reshape(delta.shape) - codec.decode(base).values(),
            delta,
        ),
        must_move=must_move,
        regridded=changed.reshape(levels.scale.shape),
    )


def _wanted(
    codec: Codec,
    before: Doubles,
    delta: npt.NDArray[Any],
    must_move: npt.NDArray[np.bool_],
    importance: npt.NDArray[Any] | None,
) -> Wanted:
    """All sub-blocks of the rows, one after another."""
    weights = np.ones(delta.shape[1])
    if importance is not None and importance.any():
        weights = np.where(importance > 0, importance, importance[importance > 0].mean())
    shape = (-1, codec.sub_block)
    direction = np.where(must_move, np.sign(delta), 0).astype(np.int8)
    return Wanted(
        before.reshape(shape),
        (before + delta).reshape(shape),
        direction.reshape(shape),
        np.broadcast_to(weights, delta.shape).reshape(shape),
    )


def _base_blocks(codec: Codec, blocks: Bytes, levels: Levels, wanted: Wanted, changed: npt.NDArray[np.bool_]) -> Bytes:
    """``blocks`` with the codes from which the edits move on, in the sub-blocks ``changed`` [n]."""
    fresh = codec.decode(blocks)
    codes = levels.codes.reshape(-1, codec.sub_block).copy()
    part = wanted[changed]
    scale = fresh.scale.reshape(-1, 1)[changed].astype(np.float64)
    offset = fresh.offset.reshape(-1, 1)[changed].astype(np.float64)
    if codec.zero_code is not None:
        offset = -codec.zero_code * scale
    usable = scale != 0
    towards = part.direction * np.sign(scale)
    found = base_codes(codec, part.before, part.after, towards, np.where(usable, scale, 1.0), offset)
    found = np.where(usable, np.clip(found, codec.lowest, codec.highest), codes[changed])
    codes[changed] = found.astype(np.int16)
    return codec.with_codes(blocks, codes.reshape(levels.codes.shape))


class _Grids:
    """The scale codes and bases of all blocks of some rows, while they are chosen."""

    def __init__(self, codec: Codec, blocks: Bytes) -> None:
        self.codec, self.layout = codec, SCALE_CODES[codec.name]
        self._shape = blocks.shape
        self._blocks = blocks.reshape(-1, codec.block_bytes).copy()
        self.base, self.base_offset = self.layout.bases(self._blocks)  # [blocks] each
        self.multiplier, self.minimum = self.layout.read(self._blocks)  # [blocks, S] each
        scale = self.base[:, None] * self.multiplier
        offset = offsets_of(codec, self.layout, scale, self.base_offset[:, None], self.minimum)
        self._present = Present(scale.ravel(), offset.ravel())  # the grids as they were

    def widen_sub_blocks(self, rows: npt.NDArray[np.intp], wanted: Wanted, short: npt.NDArray[np.bool_]) -> None:
        """New scale codes for the sub-blocks ``rows``; clears ``short`` where some will do."""
        count = self.multiplier.shape[1]
        base, offset = self.base[rows // count], self.base_offset[rows // count]
        multiplier, minimum, error = choose_codes(
            self.codec, self.layout, wanted[rows], self._present[rows], base, offset, thorough=True
        )
        good = np.isfinite(error)
        done = rows[good]
        self.multiplier.ravel()[done], self.minimum.ravel()[done] = multiplier[good], minimum[good]
        short[done] = False

    def widen_blocks(self, short: npt.NDArray[np.bool_], wanted: Wanted) -> None:
        """New bases, and with them all scale codes, for the blocks that still have a sub-block in ``short``."""
        count = self.multiplier.shape[1]
        blocks = np.flatnonzero(short.reshape(-1, count).any(axis=1))
        if not blocks.size:
            return
        if self.layout.own_bases:
            self._widen_own_bases(blocks, wanted[blocks])
            return
        for thorough in (False, True):
            left = blocks[self._widen_bases(blocks, short, wanted, thorough=thorough)]
            if not left.size:
                return
            blocks = left

    def _widen_bases(
        self, blocks: npt.NDArray[np.intp], short: npt.NDArray[np.bool_], wanted: Wanted, *, thorough: bool
    ) -> npt.NDArray[np.bool_]:
        """The best bases for every block; says, [blocks], where none will do."""
        count = self.multiplier.shape[1]
        rows = (blocks[:, None] * count + np.arange(count)).ravel()  # sub-blocks
        needy = short[rows] if not thorough else np.ones(len(rows), dtype=bool)
        best = np.full(len(blocks), np.inf)
        numbers = np.zeros((2, len(blocks), count), dtype=np.int64)
        bases = np.stack([self.base[blocks], self.base_offset[blocks]])
        for base, offset in self._super_bases(blocks, wanted[rows]):
            per_row = (np.repeat(base, count), np.repeat(offset, count))
            found = np.zeros((2, len(rows)), dtype=np.int64)
            error = np.zeros(len(rows))
            for part, choose in ((needy, self._chosen(thorough)), (~needy, nearest_codes_of)):
                if part.any():
                    own = (one[part] for one in per_row)
                    *chosen, error[part] = choose(
                        self.codec, self.layout, wanted[rows[part]], self._present[rows[part]], *own
                    )
                    found[:, part] = chosen
            total = error.reshape(-1, count).sum(axis=1)
            better = total < best
            best[better] = total[better]
            numbers[:, better] = found.reshape(2, -1, count)[:, better]
            bases[:, better] = np.stack([base, offset])[:, better]
        good = np.isfinite(best)
        done = blocks[good]
        self.base[done], self.base_offset[done] = bases[:, good]
        self.multiplier[done], self.minimum[done] = numbers[:, good]
        return ~good

    @staticmethod
    def _chosen(thorough: bool) -> Callable[..., tuple[npt.NDArray[Any], npt.NDArray[Any], Doubles]]:
        return partial(choose_codes, thorough=thorough)

    def _super_bases(self, blocks: npt.NDArray[np.intp], wanted: Wanted) -> list[tuple[Doubles, Doubles]]:
        """Bases of float16 to try for every block, [blocks] each."""
        count = self.multiplier.shape[1]
        low, high = (extreme.reshape(-1, count) for extreme in wanted.extremes())
        reach = _reach(self.codec) if self.layout.offset_at is None else float(self.codec.highest - self.codec.lowest)
        span = np.maximum(np.abs(low), np.abs(high)) if self.layout.offset_at is None else high - np.minimum(low, 0)
        least = span.max(axis=1) / ((reach - 0.5) * self.layout.multipliers[1])
        base, offset = self.base[blocks], self.base_offset[blocks]
        sign = np.where(base < 0, -1.0, 1.0)
        wider = [base * factor for factor in _WIDER_BASE]
        wider += [sign * np.maximum(least * factor, _SMALLEST) for factor in (1.001, 1.4)]
        if self.layout.offset_at is None:
            return [(_float16(one), offset) for one in wider[1:]]
        below = np.maximum(0, -low).max(axis=1) / self.layout.minima[1]
        deeper = (
            offset,
            np.maximum(1.15 * below, _SMALLEST),
            1.5 * below + span.max(axis=1) / (reach * self.layout.minima[1]),
        )
        pairs = [(_float16(one), _float16(other)) for one in wider for other in deeper]
        return pairs[1:]

    def _widen_own_bases(self, blocks: npt.NDArray[np.intp], wanted: Wanted) -> None:
        """Types whose sub-block is the block: scale and offset are float16 numbers of its own."""
        low, high = wanted.extremes()
        present = np.abs(self.base[blocks])
        stored = self.layout.offset_at is not None
        reach = float(self.codec.highest - self.codec.lowest) if stored else _reach(self.codec)
        least = (high - low if stored else np.maximum(np.abs(low), np.abs(high))) / (reach - 0.5 * (1 + stored))
        scales = [present * f for f in _WIDER] + [least * f for f in (0.9, 0.95, *_BEYOND)]
        if stored:  # a step that the offset, a float16 number itself, can be shifted by
            scales += [np.maximum(np.abs(low), np.abs(high)) * 2.0**-exponent for exponent in (10, 9)]
        scale = np.stack(scales, axis=1)
        scale = np.maximum(scale, _SMALLEST)
        scale = _float16(scale if stored else np.concatenate([scale, -scale], axis=1))
        if stored:
            bottom = low[:, None] - self.codec.lowest * scale
            top = high[:, None] - self.codec.highest * scale
            offset = _float16((bottom[..., None] + (top - bottom)[..., None] * _PARTS).reshape(len(blocks), -1))
            scale = np.repeat(scale, len(_PARTS), axis=1)
        else:
            offset = offsets_of(self.codec, self.layout, scale, np.zeros(1), np.ones(1, np.int64))
        errors = grid_errors(self.codec, wanted, scale, offset)
        place, line = errors.argmin(axis=1), np.arange(len(blocks))
        good = np.isfinite(errors[line, place])
        done = blocks[good]
        self.base[done] = scale[line, place][good]
        if stored:
            self.base_offset[done] = -offset[line, place][good]

    def written(self) -> Bytes:
        """The blocks with the chosen grids, in the shape that was given; their codes are the old ones."""
        self.layout.write_bases(self._blocks, self.base, self.base_offset)
        self.layout.write(self._blocks, self.multiplier, self.minimum)
        return self._blocks.reshape(self._shape)


def _reach(codec: Codec) -> float:
    """The distance from 0 to the nearer end of the levels, in units of the scale."""
    ends = np.array([codec.lowest, codec.highest]) if codec.table is None else codec.table[[0, -1]]
    return float(np.abs(ends - (codec.zero_code or 0)).min())


def _float16(values: Doubles) -> Doubles:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float64)
