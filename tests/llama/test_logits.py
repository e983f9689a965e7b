"""Reductions of a row of logits, by hand and against float64."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.llama.logits import best, draw, is_best, log_probability, log_sum_exp, top

ROWS = np.array([[0.0, 1.0, 3.0, 3.0, 2.0], [5.0, -np.inf, 5.0, 4.0, 5.0]], dtype=np.float32)
BROKEN = np.array([[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3, [0.0, 2.0, 1.0]], dtype=np.float32)


def test_log_probabilities_sum_to_one_and_are_exact_to_a_millionth() -> None:
    logits = (8 * np.random.default_rng(0).standard_normal((3, 50_000))).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    np.testing.assert_allclose(log_sum_exp(logits), expected, rtol=0, atol=2e-6)
    row, token = np.array([0, 2, 2]), np.array([7, 49_999, 0])
    np.testing.assert_allclose(log_probability(logits, row, token), wide[row, token] - expected[row], rtol=0, atol=2e-6)


def test_ties_go_to_the_lowest_id() -> None:
    assert best(ROWS).tolist() == [2, 0]
    assert is_best(ROWS, np.array([0, 0, 1, 1]), np.array([2, 3, 0, 2])).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_top_by_hand() -> None:
    lines = top(ROWS, np.array([1, 0, 0]), 2)
    assert lines[:, :2].tolist() == [[0, 2], [2, 3], [2, 3]]
    for line, row in zip(lines, (ROWS[1], ROWS[0], ROWS[0]), strict=True):
        logs = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
        likely = logs[np.isfinite(logs)]
        mean = (np.exp(likely) * likely).sum()
        variance = (np.exp(likely) * likely**2).sum() - mean**2
        np.testing.assert_allclose(line[2:], [logs.max(), logs.max(), mean, variance], rtol=1e-12)


def test_top_of_everything_is_a_sorted_distribution() -> None:
    (line,) = top(ROWS[:1], np.array([0]), 5)
    assert line[:5].tolist() == [2, 3, 4, 1, 0]
    assert np.exp(line[5:10]).sum() == pytest.approx(1.0)


def test_rows_that_are_not_finite_give_no_number() -> None:
    rows, tokens = np.arange(4), np.array([0, 1, 2, 1])
    assert np.isfinite(log_probability(BROKEN, rows, np.zeros(4, np.int64))).tolist() == [False, False, False, True]
    assert best(BROKEN).tolist() == [-1, -1, -1, 1]
    assert np.isfinite(is_best(BROKEN, rows, tokens)).tolist() == [False, False, False, True]
    assert np.isfinite(top(BROKEN, rows, 2)).all(axis=1).tolist() == [False, False, False, True]
    assert [draw(row, 1.0, 0.5) for row in BROKEN] == [-1, -1, -1, 1]


def test_a_draw_follows_the_cumulative_shares() -> None:
    row = np.log(np.array([0.2, 1e-30, 0.5, 0.3], dtype=np.float64)).astype(np.float32)
    assert [draw(row, 1.0, uniform) for uniform in (0.0, 0.19, 0.21, 0.69, 0.71, 1 - 1e-16)] == [0, 0, 2, 2, 3, 3]
    # At temperature 1/2 the shares are squared: 0.04, 0.25, 0.09 of 0.38.
    assert [draw(row, 0.5, uniform) for uniform in (0.1, 0.11, 0.76, 0.77)] == [0, 2, 2, 3]
