"""How an error made in one column is best made good by the columns after it.

For an error matrix E [rows, columns] and a positive definite H [columns, columns], write H = F·D·Fᵀ with F
unit upper triangular and D diagonal. Then tr(E·H·Eᵀ) = Σ_k D_k · |E_k + Σ_{j<k} E_j·F_jk|², so once columns
before k are decided the best error in column k is -Σ_{j<k} E_j·F_jk. This is the recursion of GPTQ
(arXiv 2210.17323): its Cholesky factor of H⁻¹, rows divided by their diagonal, is F⁻¹. Working with F itself
needs no inverse.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError

TILE = 256  # a square of it stays in a processor's cache


@dataclass(frozen=True)
class Feedback:
    """H of a tensor, and which of its columns are decided in this order where rows are decided together.

    Made once, used for any of the tensor's rows, by several threads at a time. hessian: float [columns, columns] of
    the whole tensor. diagonal: float64, its diagonal after damping.
    """

    hessian: npt.NDArray[np.floating]
    diagonal: npt.NDArray[np.float64]
    columns: npt.NDArray[np.intp]
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def factor(self) -> npt.NDArray[np.float64]:
        """F over ``columns``, made when first asked for: rows with columns of their own do without."""
        with self._one_at_a_time:
            return self._factor

    @cached_property
    def _factor(self) -> npt.NDArray[np.float64]:
        matrix = self.hessian[np.ix_(self.columns, self.columns)].astype(np.float64)
        np.fill_diagonal(matrix, self.diagonal[self.columns])
        return feedback_factor(matrix)


def columns_to_decide(edited: npt.NDArray[np.bool_], free: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.intp]:
    """The columns of the sub-problem, in the order of deciding; edited, free: bool [columns], in any row.

    A column without edit that is free in no row makes no error and is left out: the rest is then chosen
    *given* that it stays. A column whose error is given (edited, but free in no row) comes first, so that
    every free column hears of it. Saturation does not change the order: a row's codes would then depend on
    which other rows are rounded with it.
    """
    if free is None:
        return np.arange(edited.size)
    return np.concatenate([np.flatnonzero(edited & ~free), np.flatnonzero(free)])


def feedback_for(
    hessian: npt.NDArray[np.floating], columns: npt.NDArray[np.intp], damp: float = 0.01
) -> Feedback | None:
    """The feedback among ``columns``; None where there is none: no column, or an H that is all 0.

    hessian: float [columns, columns]. Raises InputError where it is not finite, symmetric and positive semi-definite.
    """
    if not (np.isfinite(damp) and damp >= 0):
        raise InputError(f"damp is {damp}, a finite number of at least 0 is needed")
    # A sum is finite only if all its terms are, and much faster than looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        total = hessian.sum()
    if not np.isfinite(total) and (broken := int(hessian.size - np.isfinite(hessian).sum())):
        raise InputError(
            f"hessian holds {broken} values that are not finite, all must be finite",
            hint="look for overflow in the run or file that these numbers come from",
        )
    diagonal = np.diagonal(hessian)
    if negative := int((diagonal < 0).sum()):
        raise InputError(f"hessian has {negative} negative diagonal values, 0 are allowed")
    skew = _skew(hessian)
    if skew > 1e-3 * float(diagonal.max(initial=0)):
        raise InputError(f"hessian differs from its transpose by {skew:g}, a symmetric matrix is needed")
    if not columns.size or not diagonal.any():
        return None
    return Feedback(hessian, _damped_diagonal(diagonal, damp), columns)


def _skew(matrix: npt.NDArray[np.floating]) -> float:
    """The largest difference between a square matrix and its transpose, a tile at a time."""
    largest = 0.0
    for top in range(0, len(matrix), TILE):
        for left in range(0, top + 1, TILE):
            tile = matrix[top : top + TILE, left : left + TILE]
            other = matrix[left : left + TILE, top : top + TILE]
            largest = max(largest, float(np.abs(tile - other.T).max(initial=0)))
    return largest


def _damped_diagonal(diagonal: npt.NDArray[np.floating], damp: float) -> npt.NDArray[np.float64]:
    """The diagonal that makes H safely positive definite.

    Adds ``damp`` times the mean (over the live columns). A dead column (0: its input never fired) is tied to no other
    and gets the mean itself.
    """
    wide = diagonal.astype(np.float64)
    mean = float(wide[wide > 0].mean())
    live: npt.NDArray[np.float64] = np.where(wide > 0, wide, mean)
    return live + damp * mean


def feedback_factor(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F of the decomposition above, unit upper triangular [columns, columns].

    Raises InputError where ``matrix`` is not positive definite.
    """
    # Cholesky of the matrix read backwards, read backwards again, is the upper factor R with R·Rᵀ = H.
    upper = cholesky(matrix[::-1, ::-1])[::-1, ::-1]
    return upper / np.diagonal(upper)


def cholesky(matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The lower factor of a matrix or a stack of them; InputError where one is not positive definite."""
    try:
        lower = np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"the Hessian of {matrices.shape[-1]} columns is not positive definite after damping",
            cause=str(error),
            hint="raise damp, or collect calibration inputs in float32 or wider",
        ) from error
    return np.asarray(lower, dtype=np.float64)
