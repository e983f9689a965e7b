"""Whole code moves: nothing, or at least the floor, and never beyond the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguf_forget.unlearning.floor import floored_moves


def moves(latent: list[float], *, floor: int, lowest: float = -8, highest: float = 7) -> list[float]:
    x = torch.tensor(latent)
    room = torch.full_like(x, lowest), torch.full_like(x, highest)
    return floored_moves(x, floor=floor, lowest=room[0], highest=room[1]).tolist()


@pytest.mark.parametrize(
    ("floor", "latent", "expected"),
    [
        (1, [0.0, 0.49, -0.49, 0.5, -0.5, 1.4, 1.6, -2.6], [0, 0, 0, 1, -1, 1, 2, -3]),
        (2, [0.0, 0.5, 0.99, -0.99, 1.0, -1.0, 2.4, 2.6, -3.4], [0, 0, 0, 0, 2, -2, 2, 3, -3]),
        (1, [6.9, 7.4, 40.0, -8.4, -40.0], [7, 7, 7, -8, -8]),
    ],
)
def test_by_hand(floor: int, latent: list[float], expected: list[float]) -> None:
    assert moves(latent, floor=floor) == expected


def test_without_room_a_weight_stays() -> None:
    assert moves([5.0, -5.0], floor=1, lowest=0, highest=15) == [5, 0]
    assert moves([5.0, -5.0], floor=1, lowest=-15, highest=0) == [0, -5]
    # One code of room is less than a floor of two: a move of one is never made.
    assert moves([5.0, -5.0], floor=2, lowest=-1, highest=1) == [0, 0]
    assert moves([5.0, -5.0], floor=2, lowest=-2, highest=1) == [0, -2]


def test_each_weight_has_its_own_room() -> None:
    latent = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])
    lowest, highest = torch.tensor([[-9.0, -9.0], [-1.0, -2.0]]), torch.tensor([[1.0, 2.0], [9.0, 9.0]])
    found = floored_moves(latent, floor=1, lowest=lowest, highest=highest)
    assert found.tolist() == [[1.0, 2.0], [-1.0, -2.0]]


def test_no_floor_leaves_the_update_as_it_is_inside_the_grid() -> None:
    assert moves([0.0, 0.25, -0.25, 1.5, 40.0, -40.0], floor=0) == [0.0, 0.25, -0.25, 1.5, 7.0, -8.0]


@given(st.floats(-40, 40, width=32), st.integers(1, 3), st.integers(0, 15))
def test_a_move_is_nothing_or_at_least_the_floor_in_the_right_direction(latent: float, floor: int, code: int) -> None:
    (found,) = moves([latent], floor=floor, lowest=-code, highest=15 - code)
    assert found == int(found)
    assert -code <= found <= 15 - code
    assert found == 0 or (abs(found) >= floor and found * latent > 0)
    assert abs(found) <= max(floor, abs(latent) + 0.5)
