"""How an error made in one column is best made good by the columns after it.

For an error matrix E [rows, columns] and a positive definite H [columns, columns], write H = F·D·Fᵀ with F
unit upper triangular and D diagonal. Then tr(E·H·Eᵀ) = Σ_k D_k · |E_k + Σ_{j<k} E_j·F_jk|², so once columns
before k are decided the best error in column k is -Σ_{j<k} E_j·F_jk. This is the recursion of GPTQ
(arXiv 2210.17323): its Cholesky factor of H⁻¹, rows divided by their diagonal, is F⁻¹. Working with F itself
needs no inverse.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError


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
