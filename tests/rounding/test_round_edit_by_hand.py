"""Edits of two to four weights whose rounding can be worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.errors import InputError
from gguf_forget.grids import Levels
from gguf_forget.rounding import round_edit


def grid(codes: list[list[int]], scale: list[list[float]] | None = None, sub_block: int = 2) -> Levels:
    """Codes 0…15; scale 1 everywhere unless given."""
    present = np.array(codes, np.int16)
    scales = np.ones((present.shape[0], present.shape[1] // sub_block)) if scale is None else np.array(scale)
    return Levels(
        codes=present,
        scale=scales.astype(np.float32),
        offset=np.zeros_like(scales, dtype=np.float32),
        sub_block=sub_block,
        lowest=0,
        highest=15,
    )


def none_must(levels: Levels) -> np.ndarray:
    return np.zeros(levels.codes.shape, bool)


TIED = np.array([[1.0, 0.8], [0.8, 1.0]])  # the second input mostly repeats the first


def test_the_second_column_makes_good_the_error_of_the_first() -> None:
    # 0.4 rounds to 0, which leaves 0.4 of column 0 undone; H says that 0.8 / 1 of it can be done by column 1:
    # 0.3 + 0.8 * 0.4 = 0.62 rounds to 1. Rounded alone, both would stay.
    levels = grid([[5, 5]])
    delta = np.array([[0.4, 0.3]], np.float32)
    assert round_edit(levels, delta).codes.tolist() == [[5, 5]]
    result = round_edit(levels, delta, hessian=TIED, damp=0.0)
    assert result.codes.tolist() == [[5, 6]]
    assert (result.asked, result.landed, result.saturated, result.moved) == (0, 0, 0, 1)


def test_a_forced_move_is_paid_back_by_a_weight_without_edit() -> None:
    # 0.45 is forced to 1: error -0.55, of which column 1 should carry 0.8 * -0.55 = -0.44, or with H = 1
    # everywhere off the diagonal nearly -0.55, which rounds to -1.
    levels = grid([[5, 5]])
    delta = np.array([[0.45, 0.0]], np.float32)
    must = np.array([[True, False]])
    assert round_edit(levels, delta, hessian=TIED, must_move=must, damp=0.0).codes.tolist() == [[6, 5]]
    nearly_one = np.array([[1.0, 0.99], [0.99, 1.0]])
    result = round_edit(levels, delta, hessian=nearly_one, must_move=must, damp=0.0)
    assert result.codes.tolist() == [[6, 4]]
    assert (result.asked, result.landed, result.moved, result.moved_by_compensation) == (1, 1, 2, 1)


def test_damping_weakens_the_compensation() -> None:
    # Damp 1 doubles the diagonal: column 1 is asked for 0.3 + 0.8 / 2 * 0.4 = 0.46, which rounds to 0.
    levels = grid([[5, 5]])
    delta = np.array([[0.4, 0.3]], np.float32)
    assert round_edit(levels, delta, hessian=TIED, damp=1.0).codes.tolist() == [[5, 5]]


def test_half_a_step_is_asked_to_move_by_default() -> None:
    levels = grid([[5, 5, 5, 5]])
    delta = np.array([[0.5, -0.5, 0.49, -1.2]], np.float32)
    result = round_edit(levels, delta)
    assert result.codes.tolist() == [[6, 4, 5, 4]]
    assert (result.asked, result.landed, result.saturated, result.moved) == (3, 3, 0, 3)


def test_what_survive_asks() -> None:
    levels = grid([[5, 5, 5, 15]])
    delta = np.array([[0.1, -0.6, 0.0, 0.2]], np.float32)
    every = round_edit(levels, delta, survive="all")
    assert every.codes.tolist() == [[6, 4, 5, 15]]
    assert (every.asked, every.landed, every.saturated, every.moved) == (3, 2, 1, 2)
    nothing = round_edit(levels, delta, survive="none")
    assert nothing.codes.tolist() == [[5, 4, 5, 15]]
    assert (nothing.asked, nothing.landed, nothing.saturated, nothing.moved) == (0, 0, 0, 1)
    with pytest.raises(InputError, match="survive is 'some', one of all, important, none is needed"):
        round_edit(levels, delta, survive="some")


def test_on_a_table_half_a_step_is_half_the_way_to_the_next_level() -> None:
    # Levels -4, 0, 1 times -2: 8, 0, -2. From the middle code up in weight are 8 units, down are 2.
    table = np.array([-4.0, 0.0, 1.0], np.float32)
    one = np.ones((1, 1), np.float32)
    levels = Levels(np.ones((1, 4), np.int16), -2 * one, 0 * one, 4, 0, 2, 0, table)
    result = round_edit(levels, np.array([[3.9, 4.1, -0.9, -1.1]], np.float32))
    assert result.codes.tolist() == [[1, 0, 1, 2]]
    assert (result.asked, result.landed, result.saturated) == (2, 2, 0)
    # Column 0 is given 8 of 5, which leaves -3; half of it, -1.5, is what column 1 is asked for: code 2.
    tied = np.array([[1.0, 0.5], [0.5, 1.0]])
    pair = Levels(np.ones((1, 2), np.int16), -2 * one, 0 * one, 2, 0, 2, 0, table)
    assert round_edit(pair, np.array([[5.0, 0.0]], np.float32), hessian=tied, damp=0.0).codes.tolist() == [[0, 2]]


def test_a_negative_scale_turns_the_direction_round() -> None:
    levels = grid([[5, 5, 0, 15]], [[-2.0, -2.0]])
    delta = np.array([[0.1, -0.1, 3.0, 3.0]], np.float32)
    result = round_edit(levels, delta, must_move=np.ones((1, 4), bool))
    # Column 2 wants a lower code than 0 and stays; column 3 goes down by 1.5 steps, which rounds to 2.
    assert result.codes.tolist() == [[4, 6, 0, 13]]
    assert (result.asked, result.landed, result.saturated) == (4, 3, 1)


def test_a_saturated_weight_stays_and_a_later_column_carries_its_edit() -> None:
    levels = grid([[15, 5]])
    delta = np.array([[1.0, 0.0]], np.float32)
    result = round_edit(levels, delta, hessian=TIED, damp=0.0)
    assert result.codes.tolist() == [[15, 6]]  # 0.8 rounds to 1
    assert (result.asked, result.landed, result.saturated, result.moved_by_compensation) == (1, 0, 1, 1)


def test_an_edit_larger_than_the_range_goes_to_the_end() -> None:
    result = round_edit(grid([[5, 12]]), np.array([[-40.0, 9.0]], np.float32))
    assert result.codes.tolist() == [[0, 15]]
    assert (result.asked, result.landed, result.saturated) == (2, 2, 0)


def test_a_frozen_weight_stays_and_passes_its_error_on_even_backwards() -> None:
    levels = grid([[5, 5]])
    for frozen, other in ((0, 1), (1, 0)):
        delta = np.zeros((1, 2), np.float32)
        delta[0, frozen] = 1.0
        free = np.ones((1, 2), bool)
        free[0, frozen] = False
        result = round_edit(levels, delta, hessian=TIED, free=free, damp=0.0)
        assert result.codes[0, frozen] == 5
        assert result.codes[0, other] == 6
        assert (result.asked, result.moved, result.moved_by_compensation) == (0, 1, 1)


def test_a_sub_block_without_a_step_keeps_its_codes() -> None:
    levels = grid([[5, 5, 5, 5]], [[0.0, 1.0]])
    delta = np.array([[3.0, 0.0, 0.0, 0.0]], np.float32)
    result = round_edit(levels, delta, hessian=np.eye(4) + 0.3, damp=0.0)
    # The undone 3.0 of column 0 is shared by columns 2 and 3: 3 * 0.3 / 1.6 = 0.5625 for column 2, that
    # rounds to 1 and leaves 0.3 * (3 - 1) / 1.3 = 0.46 for column 3.
    assert result.codes.tolist() == [[5, 5, 6, 5]]
    assert (result.asked, result.landed, result.saturated) == (1, 0, 1)


def test_dead_inputs_neither_give_nor_take() -> None:
    hessian = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 0.9, 1.0]])
    levels = grid([[5, 5, 5]], sub_block=1)
    delta = np.array([[0.4, 0.4, 0.2]], np.float32)
    assert round_edit(levels, delta, hessian=hessian, damp=0.0).codes.tolist() == [[5, 5, 6]]
    silent = round_edit(levels, delta + 0.2, hessian=np.zeros((3, 3)))
    assert silent.codes.tolist() == [[6, 6, 5]]


def test_a_code_below_the_range_stays_where_nothing_asks_it_to_move() -> None:
    levels = Levels(
        codes=np.array([[-128, -128, 3]], np.int16),
        scale=np.ones((1, 3), np.float32),
        offset=np.zeros((1, 3), np.float32),
        sub_block=1,
        lowest=-127,
        highest=127,
        zero_code=0,
    )
    result = round_edit(levels, np.array([[0.2, -3.0, 2.0]], np.float32))
    assert result.codes.tolist() == [[-128, -128, 5]]
    assert (result.asked, result.landed, result.saturated) == (2, 1, 1)


def test_delta_zero_asks_nothing() -> None:
    levels = grid([[5, 5]])
    result = round_edit(levels, np.zeros((1, 2), np.float32), must_move=np.ones((1, 2), bool), hessian=TIED)
    assert result.codes.tolist() == [[5, 5]]
    assert (result.asked, result.moved) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": np.zeros((2, 2))}, r"delta has shape \[2, 2\], \[1, 2\] is needed"),
        ({"delta": np.array([[np.nan, np.inf]])}, "delta holds 2 values that are not finite"),
        ({"hessian": np.eye(3)}, r"hessian has shape \[3, 3\], \[2, 2\] is needed"),
        ({"hessian": np.array([[1.0, np.nan], [0.0, 1.0]])}, "hessian holds 1 values that are not finite"),
        ({"hessian": np.array([[1.0, 0.5], [0.0, 1.0]])}, "hessian differs from its transpose by 0.5"),
        ({"hessian": np.diag([1.0, -1.0])}, "hessian has 1 negative diagonal values"),
        (
            {"hessian": np.array([[1.0, 2.0], [2.0, 1.0]])},
            "Hessian of 2 columns is not positive definite",
        ),
        ({"hessian": np.ones((2, 2)), "damp": 0.0}, "Hessian of 2 columns is not positive definite"),
        ({"free": np.ones((2, 1), bool)}, r"free has shape \[2, 1\], \[1, 2\] is needed"),
        ({"free": np.ones((1, 2))}, "free has dtype float64, bool is needed"),
        ({"must_move": np.ones((1, 2), np.int8)}, "must_move has dtype int8, bool is needed"),
        (
            {"must_move": np.ones((1, 2), bool), "free": np.array([[True, False]])},
            "must_move asks 1 weights to move that free forbids",
        ),
        ({"damp": -0.1, "hessian": np.eye(2)}, "damp is -0.1"),
        ({"damp": float("nan"), "hessian": np.eye(2)}, "damp is nan"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    delta = arguments.pop("delta", np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match=message):
        round_edit(grid([[5, 5]]), delta, **arguments)


def test_a_grid_with_an_infinite_scale_is_refused() -> None:
    with pytest.raises(InputError, match="the grid's scale holds 1 values that are not finite"):
        round_edit(grid([[5, 5]], [[np.inf]]), np.ones((1, 2), np.float32))
