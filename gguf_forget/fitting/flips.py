"""Which codes to move by one so that a loss falls, and what that costs (ours).

A weight stays on one of the two levels beside the value that is wanted: every choice is a rounding of the same
weights, and what changes is which of them go up and which go down (as in AdaRound, arXiv 2004.10568, which learns this
for one layer's output; here it is for the answers of the whole model, and few weights at a time).

Moving weight j of row i by a step s gains |g|·s, g the loss's gradient. Its price is what it adds to the error of the
layer's output as a diagonal Kronecker-factored curvature sees it (Martens and Grosse, arXiv 1503.05671):

    (e_new² - e² where positive + s² / 5) · b_i · a_j        e = weight minus wanted

a_j = Σ x_j² over what the map reads, b_i = Σ δ_i² over the gradients of what it gives. The last term keeps codes that
cost nothing by themselves from being moved for nothing.

Shapes: rows, columns, E as in :mod:`gguf_forget.grids.levels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gguf_forget.grids.levels import Codes, Floats, Levels, Places

LEAST_PRICE = 0.2  # of a squared step


@dataclass(frozen=True)
class Candidates:
    """Codes that may move, [E] each. index: flat positions. shift: int16, +1 or -1. gain: float32, of the loss. score:
    float32, gain for its price."""

    index: Places
    shift: Codes
    gain: Floats
    score: Floats


class MovableCodes:
    """The codes of one tensor while they are chosen.

    levels: the grid; of its codes only where they begin. wanted: float32 [rows, columns], what the weights should be.
    may_move: bool [rows, columns]. bound: int8 [rows, columns], +1 or -1 where a weight may only go up or only down
    (its edit has just landed), else 0.
    """

    def __init__(
        self,
        levels: Levels,
        wanted: npt.NDArray[np.float32],
        may_move: npt.NDArray[np.bool_],
        bound: npt.NDArray[np.int8],
    ) -> None:
        self.levels = replace(levels, codes=np.array(levels.codes, order="C"))
        self._error = levels.values() - wanted
        self._may_move, self._bound = may_move, bound

    @property
    def codes(self) -> Codes:
        return self.levels.codes

    def candidates(self, gradient: Floats, read: Floats, given: Floats, count: int) -> Candidates:
        """The ``count`` codes with the best gain for their price, in no order; fewer where fewer may move.

        gradient: float32 [rows, columns], of the loss. read: a [columns], given: b [rows], above.
        """
        towards = -np.sign(gradient)
        step = self.levels.step_towards(towards)
        error = self._error + towards * step
        shift = (towards * np.sign(self.levels.scale_per_weight())).astype(np.int16)
        codes = self.levels.codes + shift
        allowed = self._may_move & (shift != 0) & (np.abs(error) < step)
        allowed &= (codes >= self.levels.lowest) & (codes <= self.levels.highest)
        allowed &= (self._bound == 0) | (self._bound == towards)
        gain = np.abs(gradient) * step
        price = np.maximum(error * error - self._error * self._error, 0) + LEAST_PRICE * step * step
        price *= given[:, None] * read[None, :]
        with np.errstate(over="ignore"):
            score = np.where(allowed & (gain > 0), gain / np.maximum(price, np.finfo(np.float32).tiny), 0).ravel()
        count = min(count, score.size)
        index = np.argpartition(score, score.size - count)[score.size - count :]
        index = np.sort(index[score[index] > 0])
        return Candidates(index, shift.ravel()[index], gain.ravel()[index], score[index])

    def move(self, index: Places, shift: Codes) -> Floats:
        """Move the codes at ``index`` by ``shift``; the new weights there, float32 [E]."""
        before = self.levels.at(index).values()
        self.levels.codes.ravel()[index] += shift
        after = self.levels.at(index).values()
        self._error.ravel()[index] += after - before
        return after


def best(found: list[Candidates], gain: float) -> list[Candidates]:
    """Of all tensors' candidates those with the highest score that together gain at least ``gain``, or all."""
    score = np.concatenate([each.score for each in found])
    order = np.argsort(-score, kind="stable")
    total = np.cumsum(np.concatenate([each.gain for each in found])[order], dtype=np.float64)
    taken = np.zeros(len(order), dtype=bool)
    taken[order[: int(np.searchsorted(total, gain)) + 1]] = True
    chosen, start = [], 0
    for each in found:
        own = taken[start : start + len(each.index)]
        start += len(each.index)
        chosen.append(Candidates(each.index[own], each.shift[own], each.gain[own], each.score[own]))
    return chosen
