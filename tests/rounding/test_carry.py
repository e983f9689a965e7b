"""Edits far smaller than a step: carry against numbers worked out on paper, a plain loop, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libggml_oracle import quantize

from gguf_forget.grids import CODECS, Levels, codec_for
from gguf_forget.rounding import round_edit
from gguf_forget.rounding.carry import carry
from gguf_forget.rounding.edits import find_edits


def grid(codes: list[list[int]], scale: float = 1.0) -> Levels:
    """Codes 0…15, one sub-block a row."""
    present = np.array(codes, np.int16)
    ones = np.ones((present.shape[0], 1), np.float32)
    return Levels(present, ones * np.float32(scale), 0 * ones, present.shape[1], lowest=0, highest=15)


def carried_codes(
    levels: Levels,
    codes: np.ndarray,
    delta: np.ndarray,
    wanted: np.ndarray,
    free: np.ndarray | None = None,
    survive: str = "important",
) -> np.ndarray:
    index = np.flatnonzero(delta)
    may_move = None if free is None else free.ravel()[index]
    edits = find_edits(levels.at(index), delta.ravel()[index], survive=survive, free=may_move)
    shift = (codes - levels.codes).ravel()[index]
    moved = carry(edits, shift, delta.ravel()[index], wanted.ravel()[index], may_move)
    result = codes.copy()
    result.ravel()[index] += moved - shift
    return result


def test_one_of_four_quarters_moves_and_it_is_the_one_nearest_to_its_edge() -> None:
    # Four edits of 0.25: Σ D² = 0.25, and a code that moves by 1 adds 1 · 0.25. The weights that are aimed at lie 0.2,
    # 0.4, 0.1 and 0.3 above their codes: none of them rounds up by itself.
    levels = grid([[5, 5, 5, 5]])
    delta = np.full((1, 4), 0.25, np.float32)
    wanted = np.array([[0.2, 0.4, 0.1, 0.3]], np.float32)
    assert round_edit(levels, delta, wanted=wanted).codes.tolist() == [[5, 5, 5, 5]]
    result = round_edit(levels, delta, wanted=wanted, carried=delta)
    assert result.codes.tolist() == [[5, 6, 5, 5]]
    assert (result.moved, result.moved_by_compensation) == (1, 0)


def test_what_moved_already_counts() -> None:
    levels = grid([[5, 5, 5, 5]])
    delta = np.full((1, 4), 0.25, np.float32)
    wanted = np.array([[0.2, 0.6, 0.1, 0.3]], np.float32)
    assert round_edit(levels, delta, wanted=wanted, carried=delta).codes.tolist() == [[5, 6, 5, 5]]


def test_what_moved_too_much_goes_back() -> None:
    # Two of four moved, but one quarter in four makes one: the one that was further from its edge goes back.
    levels = grid([[5, 5, 5, 5]])
    delta = np.full((1, 4), 0.25, np.float32)
    wanted = np.array([[0.2, 0.6, 0.1, 0.7]], np.float32)
    assert round_edit(levels, delta, wanted=wanted).codes.tolist() == [[5, 6, 5, 6]]
    assert round_edit(levels, delta, wanted=wanted, carried=delta).codes.tolist() == [[5, 5, 5, 6]]
    # An edit of half a step lands by itself and leaves three quarters, 0.1875, of which one code is 0.25.
    large = np.array([[0.25, 0.25, 0.25, 0.5]], np.float32)
    assert round_edit(levels, large, wanted=wanted, carried=large).codes.tolist() == [[5, 6, 5, 6]]


def test_larger_edits_go_first_and_the_last_code_only_where_it_brings_the_sum_closer() -> None:
    # Σ D² = 0.04 + 0.16 + 0.01 = 0.21. The second adds 0.4: more than 0.21, but 0.4 is closer to it than 0 is.
    levels = grid([[5, 5, 5]])
    delta = np.array([[0.2, 0.4, 0.1]], np.float32)
    assert carried_codes(levels, levels.codes, delta, delta).tolist() == [[5, 6, 5]]
    # A single edit of 0.3: Σ D² = 0.09, the code would add 0.3, and 0 is closer.
    alone = np.array([[0.0, 0.3, 0.0]], np.float32)
    assert carried_codes(levels, levels.codes, alone, alone).tolist() == [[5, 5, 5]]


def test_downwards_under_a_negative_scale_at_the_end_of_the_codes_and_under_a_mask() -> None:
    # A negative scale: a smaller weight is a larger code. Column 0 is at the last code, column 1 is not free.
    levels = grid([[15, 5, 5, 5]], scale=-1.0)
    delta = np.full((1, 4), -0.25, np.float32)
    wanted = np.array([[-0.4, -0.3, -0.2, -0.1]], np.float32)
    free = np.array([[True, False, True, True]])
    assert carried_codes(levels, levels.codes, delta, wanted).tolist() == [[15, 6, 5, 5]]
    assert carried_codes(levels, levels.codes, delta, wanted, free).tolist() == [[15, 5, 6, 5]]


def test_equal_weights_move_from_the_left() -> None:
    levels = grid([[5] * 200])
    delta = np.full((1, 200), 0.25, np.float32)
    assert carried_codes(levels, levels.codes, delta, delta).tolist() == [[6] * 50 + [5] * 150]


def plainly(levels: Levels, codes: np.ndarray, delta: np.ndarray, wanted: np.ndarray, survive: str) -> np.ndarray:
    """The rule of the module's docstring, a weight at a time."""
    table = np.arange(levels.lowest, levels.highest + 1) if levels.table is None else levels.table
    scale = levels.scale_per_weight()
    must = np.abs(delta) >= 0.5 * levels.step_towards(delta) if survive == "important" else np.zeros(delta.shape, bool)
    result = codes.copy()
    for row in range(codes.shape[0]):
        edited = np.flatnonzero((delta[row] != 0) & ~must[row] & (scale[row] != 0))
        edit, a = delta[row].astype(float), scale[row].astype(float)
        here = table[codes[row] - levels.lowest].astype(float)
        went = (here - table[levels.codes[row] - levels.lowest]) * a
        missing = sum((edit[column] - went[column]) * edit[column] for column in edited)
        way = int(np.sign(missing))
        candidates = []
        for column in edited:
            direction = int(np.sign(edit[column]) * np.sign(a[column]))
            on = codes[row, column] + way * direction
            moved = (codes[row, column] - levels.codes[row, column]) * direction
            if direction == 0 or not levels.lowest <= on <= levels.highest or (way < 0 and moved <= 0):
                continue
            step = abs((table[on - levels.lowest] - here[column]) * a[column])
            left = way * np.sign(edit[column]) * (wanted[row, column] - went[column])
            order_by = float(np.float32((step - 2 * left) / abs(edit[column])))
            candidates.append((order_by, column, on, step * abs(edit[column])))
        missing = abs(missing)
        for _, column, on, worth in sorted(candidates):
            if worth / 2 > missing:
                break
            result[row, column] = on
            missing -= worth
    return result


@pytest.mark.parametrize("name", list(CODECS))
def test_equal_to_a_plain_loop_and_the_edit_arrives(name: str) -> None:
    generator = np.random.default_rng(3)
    codec = codec_for(name)
    weights = generator.standard_normal((6, 512)).astype(np.float32)
    levels = codec.decode(quantize(name, weights))
    # In the middle of their bins but for a little: the case in which nothing would arrive.
    step = levels.step_towards(np.ones_like(weights))
    wanted_base = (generator.uniform(-0.1, 0.1, weights.shape) * step).astype(np.float32)
    delta = (0.03 * step * generator.choice([-1, 1], weights.shape)).astype(np.float32)
    delta[:, generator.random(512) < 0.3] = 0
    wanted = np.where(delta != 0, wanted_base + delta, 0).astype(np.float32)
    alone = round_edit(levels, delta, wanted=wanted, survive="none")
    codes = round_edit(levels, delta, wanted=wanted, survive="none", carried=delta).codes
    np.testing.assert_array_equal(codes, plainly(levels, alone.codes, delta, wanted, "none"))
    moved = np.where(codes != levels.codes, _values(levels, codes) - levels.values(), 0)
    share = (moved * delta).sum() / np.square(delta).sum()
    before = np.where(alone.codes != levels.codes, _values(levels, alone.codes) - levels.values(), 0)
    assert (before * delta).sum() < 0.2 * np.square(delta).sum()
    assert 0.8 < share < 1.2
    assert ((codes != levels.codes) <= (delta != 0)).all()
    assert (moved * delta >= 0).all()


def _values(levels: Levels, codes: np.ndarray) -> np.ndarray:
    return Levels(
        codes,
        levels.scale,
        levels.offset,
        levels.sub_block,
        levels.lowest,
        levels.highest,
        levels.zero_code,
        levels.table,
    ).values()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 3.0), st.sampled_from(list(CODECS)))
def test_equal_to_a_plain_loop_for_edits_of_any_size(seed: int, size: float, name: str) -> None:
    generator = np.random.default_rng(seed)
    levels = codec_for(name).decode(quantize(name, generator.standard_normal((3, 256)).astype(np.float32)))
    step = levels.step_towards(np.ones((3, 256)))
    delta = (generator.standard_normal((3, 256)) * size * step).astype(np.float32)
    delta[generator.random((3, 256)) < 0.5] = 0
    before = round_edit(levels, delta).codes
    after = carried_codes(levels, before, delta, delta)
    np.testing.assert_array_equal(after, plainly(levels, before, delta, delta, "important"))


def test_whole_steps_are_left_as_they_are() -> None:
    levels = grid([[5, 6, 7, 8]])
    delta = np.array([[1.0, -2.0, 0.0, 3.0]], np.float32)
    assert round_edit(levels, delta, carried=delta).codes.tolist() == [[6, 4, 7, 11]]
