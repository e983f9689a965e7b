"""How an error made in one column is best made good by the columns after it.

For an error matrix E [rows, columns] and a positive definite H [columns, columns], write H = F·D·Fᵀ with F
unit upper triangular and D diagonal. Then tr(E·H·Eᵀ) = Σ_k D_k · |E_k + Σ_{j<k} E_j·F_jk|², so once columns
before k are decided the best error in column k is -Σ_{j<k} E_j·F_jk. This is the recursion of GPTQ
(arXiv 2210.17323): its Cholesky factor of H⁻¹, rows divided by their diagonal, is F⁻¹. Working with F itself
needs no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError


@dataclass(frozen=True)
class Feedback:
    """Which columns of a tensor are decided, in this order, and F over them: made once, used for any of its rows."""

    columns: npt.NDArray[np.intp]
    factor: npt.NDArray[np.float64]


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
    if broken := int(hessian.size - np.isfinite(hessian).sum()):
        raise InputError(
            f"hessian holds {broken} values that are not finite, all must be finite",
            hint="look for overflow in the run or file that these numbers come from",
        )
    diagonal = np.diagonal(hessian)
    if negative := int((diagonal < 0).sum()):
        raise InputError(f"hessian has {negative} negative diagonal values, 0 are allowed")
    skew = float(np.abs(hessian - hessian.T).max(initial=0))
    if skew > 1e-3 * float(diagonal.max(initial=0)):
        raise InputError(f"hessian differs from its transpose by {skew:g}, a symmetric matrix is needed")
    if not columns.size or not diagonal.any():
        return None
    return Feedback(columns, feedback_factor(damped(hessian, columns, damp)))


def damped(hessian: npt.NDArray[np.floating], columns: npt.NDArray[np.intp], damp: float) -> npt.NDArray[np.float64]:
    """``hessian[columns, columns]`` in float64, made safely positive definite.

    Adds ``damp`` times the mean diagonal (over the live columns of the whole matrix) to the diagonal. A dead
    column (diagonal 0: its input never fired) is tied to no other and gets the mean diagonal itself.
    """
    diagonal = np.diagonal(hessian).astype(np.float64)
    mean = float(diagonal[diagonal > 0].mean())
    matrix = hessian[np.ix_(columns, columns)].astype(np.float64)
    chosen = diagonal[columns]
    np.fill_diagonal(matrix, np.where(chosen > 0, chosen, mean) + damp * mean)
    return matrix


def feedback_factor(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F of the decomposition above, unit upper triangular [columns, columns].

    Raises InputError where ``matrix`` is not positive definite.
    """
    try:
        # Cholesky of the matrix read backwards, read backwards again, is the upper factor R with R·Rᵀ = H.
        upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"the Hessian of {len(matrix)} columns is not positive definite after damping",
            cause=str(error),
            hint="raise damp, or collect calibration inputs in float32 or wider",
        ) from error
    return upper / np.diagonal(upper)
