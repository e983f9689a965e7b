"""Nearest codes against a search over every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libggml_oracle import quantize

from gguf_forget.errors import InputError
from gguf_forget.grids import CODECS, Levels, codec_for, nearest_codes


def nearest_by_search(levels: Levels, weights: np.ndarray) -> np.ndarray:
    """Distance from every weight to its nearest level, by trying every code."""
    offset = np.repeat(levels.offset, levels.sub_block, axis=1).astype(np.float64)
    scale = levels.scale_per_weight().astype(np.float64)
    every = np.arange(levels.lowest, levels.highest + 1) if levels.table is None else levels.table.astype(np.float64)
    return np.abs(scale[..., None] * every + offset[..., None] - weights[..., None]).min(axis=-1)


@pytest.mark.parametrize("name", list(CODECS))
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=10, deadline=None)
def test_no_level_is_nearer(name: str, seed: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    original = generator.standard_normal((2, 256)).astype(np.float32)
    levels = codec_for(name).decode(quantize(name, original))
    weights = (spread * generator.standard_normal((2, 256))).astype(np.float32)
    codes = nearest_codes(levels, weights)
    assert codes.dtype == np.int16
    offset = np.repeat(levels.offset, levels.sub_block, axis=1).astype(np.float64)
    level = codes if levels.table is None else levels.table[codes]
    distance = np.abs(levels.scale_per_weight().astype(np.float64) * level + offset - weights)
    np.testing.assert_allclose(distance, nearest_by_search(levels, weights), rtol=1e-9, atol=1e-12)
    assert codes.min() >= levels.lowest
    assert codes.max() <= levels.highest


@pytest.mark.parametrize("name", list(CODECS))
def test_a_level_is_its_own_nearest(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    levels = codec_for(name).decode(quantize(name, weights))
    usable = levels.scale_per_weight() != 0
    np.testing.assert_array_equal(nearest_codes(levels, levels.values())[usable], levels.codes[usable])


def small(scale: float, offset: float) -> Levels:
    return Levels(
        codes=np.array([[7, 7, 7, 7]], np.int16),
        scale=np.array([[scale]], np.float32),
        offset=np.array([[offset]], np.float32),
        sub_block=4,
        lowest=0,
        highest=15,
    )


def test_by_hand() -> None:
    weights = np.array([[-9.0, 0.4, 1.6, 99.0]], np.float32)
    assert nearest_codes(small(0.5, -1.0), weights).tolist() == [[0, 3, 5, 15]]
    assert nearest_codes(small(-0.5, 1.0), weights).tolist() == [[15, 1, 0, 0]]


def test_a_tie_goes_to_the_even_code() -> None:
    weights = np.array([[0.5, 1.5, 2.5, 3.5]], np.float32)
    assert nearest_codes(small(1.0, 0.0), weights).tolist() == [[0, 2, 2, 4]]


def test_in_a_table_of_levels_a_tie_goes_to_the_lower_code() -> None:
    table = np.array([-4.0, 0.0, 1.0], np.float32)
    levels = Levels(
        np.ones((1, 4), np.int16), np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), 4, 0, 2, 0, table
    )
    assert nearest_codes(levels, np.array([[-2.1, -2.0, -1.9, 0.6]])).tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize("scale", [0.0, -0.0, np.inf, np.nan])
def test_without_a_step_the_code_stays(scale: float) -> None:
    assert nearest_codes(small(scale, 0.0), np.array([[1.0, 2.0, -3.0, 0.0]])).tolist() == [[7, 7, 7, 7]]


def test_refusals() -> None:
    with pytest.raises(InputError, match="weights hold 2 values that are not finite"):
        nearest_codes(small(1.0, 0.0), np.array([[1.0, np.nan, np.inf, 0.0]]))
    with pytest.raises(InputError, match=r"weights have shape \[1, 3\], the grid has \[1, 4\]"):
        nearest_codes(small(1.0, 0.0), np.zeros((1, 3)))
