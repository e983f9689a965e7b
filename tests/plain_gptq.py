"""GPTQ as published, one weight at a time: the slow oracle of error compensation."""

from __future__ import annotations

import numpy as np

from gguf_forget.grids import Levels


def random_hessian(generator: np.random.Generator, columns: int, tokens: int | None = None) -> np.ndarray:
    mixed = generator.standard_normal((columns, columns)) / np.sqrt(columns) + np.eye(columns)
    inputs = generator.standard_normal((tokens or 4 * columns, columns)) @ mixed + 0.5
    return inputs.T @ inputs


def gptq(
    levels: Levels,
    delta: np.ndarray,
    hessian: np.ndarray,
    damp: float,
    must: np.ndarray,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """GPTQ as published, one weight at a time, with the Cholesky factor of the inverse.

    ``must``: weights that have to leave their code in the edit's direction, and have the room to. ``wanted``: the
    changes of weights that are aimed at, where they are not the edit.
    """
    rows, columns = delta.shape
    matrix = hessian + damp * np.diagonal(hessian).mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    scale = levels.scale_per_weight().astype(np.float64)
    every = np.arange(levels.lowest, levels.highest + 1)
    level = every.astype(np.float64) if levels.table is None else levels.table.astype(np.float64)
    wanted = np.array(delta if wanted is None else wanted, dtype=np.float64)
    codes = levels.codes.copy()
    for column in range(columns):
        done = np.zeros(rows)
        for row in range(rows):
            present = levels.codes[row, column] - levels.lowest
            moves = (level - level[present]) * scale[row, column]  # what each code would change
            allowed = np.ones(every.size, bool)
            if must[row, column]:
                allowed = np.sign(moves) == np.sign(delta[row, column])
            best = np.where(allowed, np.abs(moves - wanted[row, column]), np.inf).argmin()
            codes[row, column], done[row] = every[best], moves[best]
        error = (wanted[:, column] - done) / upper[column, column]
        wanted[:, column:] -= np.outer(error, upper[column, column:])
    return codes
