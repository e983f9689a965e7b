from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.errors import InputError
from gguf_forget.rounding import Survival, surviving, update_to_step


def test_surviving_counts_every_fate() -> None:
    before = np.array([[5, 5, 5, 5], [0, 0, 9, 9]], np.int16)
    after = np.array([[6, 4, 5, 4], [3, 0, 9, 7]], np.int16)
    sign = np.array([[1, 1, -1, -1], [0, 0, 1, -1]])
    counts = surviving(before, after, sign)
    assert counts == Survival(edits=6, survived=3, unmoved=2, reversed=1, moved_elsewhere=1)
    assert counts.rate == 0.5


def test_surviving_reads_unsigned_codes_and_float_signs() -> None:
    counts = surviving(np.array([3], np.uint8), np.array([1], np.uint8), np.array([-0.25]))
    assert counts == Survival(edits=1, survived=1, unmoved=0, reversed=0, moved_elsewhere=0)


def test_no_edit_has_no_rate() -> None:
    codes = np.zeros((2, 3), np.int16)
    assert surviving(codes, codes, codes).rate is None


def test_surviving_refuses_unlike_shapes() -> None:
    with pytest.raises(InputError, match=r"have shapes \[\[2\], \[2\], \[3\]\]"):
        surviving(np.zeros(2), np.zeros(2), np.zeros(3))


def test_update_to_step_by_hand() -> None:
    delta = np.array([[0.1, -0.2, 0.0, 0.6, 1.0]], np.float32)
    step = np.array([[-1.0, 1.0, 1.0, 2.0, 0.0]], np.float32)
    summary = update_to_step(delta, step)
    assert (summary.edited, summary.without_step, summary.at_least_half_step) == (4, 1, 0)
    assert summary.median == pytest.approx(0.2)
    assert summary.quantiles is not None
    assert summary.quantiles[0.25] == pytest.approx(0.15)
    assert list(summary.quantiles) == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert update_to_step(-10 * delta, step).at_least_half_step == 3


def test_update_to_step_without_edits() -> None:
    summary = update_to_step(np.zeros((1, 2)), np.ones((1, 2)))
    assert (summary.edited, summary.median, summary.quantiles) == (0, None, None)


def test_update_to_step_refusals() -> None:
    with pytest.raises(InputError, match=r"delta has shape \[1\], steps have \[2\]"):
        update_to_step(np.zeros(1), np.zeros(2))
    with pytest.raises(InputError, match="delta hold 1 values that are not finite"):
        update_to_step(np.array([np.nan, 0.0]), np.zeros(2))
