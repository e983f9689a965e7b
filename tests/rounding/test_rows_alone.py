"""Rows with columns of their own: each is a plain GPTQ of its own small problem."""

from __future__ import annotations

import numpy as np
import pytest
from libggml_oracle import quantize
from plain_gptq import gptq, random_hessian

from gguf_forget.grids import CODECS, Levels, codec_for
from gguf_forget.rounding import round_edit
from gguf_forget.rounding.rows_alone import own_places, rows_alone


def alone(levels: Levels, row: int, columns: np.ndarray) -> Levels:
    """A part of one row as a grid of its own, one weight a sub-block."""
    one = np.ones((1, columns.size), np.float32)
    return Levels(
        codes=levels.codes[row : row + 1, columns],
        scale=levels.scale_per_weight()[row, columns] * one,
        offset=0 * one,
        sub_block=1,
        lowest=levels.lowest,
        highest=levels.highest,
        table=levels.table,
    )


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("survive", ["none", "all"])
def test_scattered_edits_are_plain_gptq_row_by_row(name: str, survive: str) -> None:
    generator = np.random.default_rng(23)
    levels = codec_for(name).decode(quantize(name, generator.standard_normal((40, 512)).astype(np.float32)))
    step = levels.step_towards(np.ones(levels.codes.shape))
    delta = (generator.standard_normal((40, 512)) * 0.6 * step).astype(np.float32)
    delta[generator.random(delta.shape) >= 0.04] = 0
    delta[7] = 0
    end = np.where(delta * levels.scale_per_weight() > 0, levels.highest, levels.lowest)
    delta[levels.codes == end] = 0  # what saturation does has tests of its own
    hessian = random_hessian(generator, 512)
    mean = np.diagonal(hessian).mean()
    expected = levels.codes.copy()
    for row in range(40):
        columns = np.flatnonzero(delta[row])
        if columns.size:
            own = hessian[np.ix_(columns, columns)] + 0.01 * mean * np.eye(columns.size)
            must = np.full((1, columns.size), survive == "all")
            expected[row, columns] = gptq(alone(levels, row, columns), delta[row : row + 1, columns], own, 0.0, must)
    result = round_edit(levels, delta, hessian=hessian, free=delta != 0, survive=survive)
    np.testing.assert_array_equal(result.codes, expected)
    assert result.moved > 100
    np.testing.assert_array_equal(result.codes[7], levels.codes[7])


def test_an_error_that_is_given_is_heard_by_all_free_columns() -> None:
    """An edited weight that may not move comes first, wherever it lies."""
    levels = Levels(
        codes=np.full((1, 64), 8, np.int16),
        scale=np.ones((1, 4), np.float32),
        offset=np.zeros((1, 4), np.float32),
        sub_block=16,
        lowest=0,
        highest=15,
    )
    delta = np.zeros((1, 64), np.float32)
    delta[0, 40] = 3.0  # held
    free = np.zeros((1, 64), bool)
    free[0, 5] = True
    hessian = np.eye(64)
    hessian[5, 40] = hessian[40, 5] = 0.9
    result = round_edit(levels, delta, hessian=hessian, free=free, damp=0.0)
    # 3 asked and not given at 40; what 5 can do about it is 0.9 · 3 = 2.7 codes.
    assert result.codes[0, 5] == 8 + 3
    assert (result.moved, result.moved_by_compensation) == (1, 1)


def test_which_rows_are_alone_and_where_their_columns_lie() -> None:
    involved = np.zeros((4, 100), bool)
    involved[0, [3, 50]] = True
    involved[1, :40] = True  # 40³ > 3 · 100²
    involved[3, [9]] = True
    assert rows_alone(involved, 100).tolist() == [True, False, True, True]
    assert rows_alone(involved, 2).tolist() == [False, False, True, True]
    free = involved.copy()
    free[0, 3] = False  # edited and held
    (places,) = own_places(involved, free, np.array([0, 3]))
    assert places.rows.tolist() == [3, 0]
    assert places.columns.tolist() == [[9, 3], [0, 50]]
    assert places.there.tolist() == [[True, True], [False, True]]
    found = np.full((4, 100), -1.0)
    places.scatter(np.array([[1.0, 2.0], [7.0, 3.0]]), found)
    assert (found[3, 9], found[0, 3], found[0, 50]) == (1.0, 2.0, 3.0)
    assert (found != -1).sum() == 3


def test_scattered_edits_end_at_half_the_error_of_nearest_codes() -> None:
    """Inputs with a few strong directions in common, 3 % of the weights edited (a factor shared by all rows: 0.88)."""
    generator = np.random.default_rng(0)
    levels = codec_for("Q4_0").decode(quantize("Q4_0", generator.standard_normal((128, 512)).astype(np.float32)))
    delta = (generator.standard_normal((128, 512)) * 0.6 * np.abs(levels.scale_per_weight())).astype(np.float32)
    delta[generator.random(delta.shape) >= 0.03] = 0
    shared = generator.standard_normal((4, 512))
    inputs = generator.standard_normal((2048, 512)) + 2 * generator.standard_normal((2048, 4)) @ shared
    hessian = inputs.T @ inputs
    errors = []
    for given in (hessian, None):
        codes = round_edit(levels, delta, hessian=given, free=delta != 0).codes
        error = (codes - levels.codes.astype(np.float64)) * levels.scale_per_weight() - delta
        errors.append(np.einsum("rc,cd,rd->", error, hessian, error))
    assert errors[0] < 0.55 * errors[1]
