"""Which codes are moved, against a loop over single weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libggml_oracle import dequantize, quantize

from gguf_forget.fitting.flips import LEAST_PRICE, Candidates, MovableCodes, best
from gguf_forget.grids import codec_for

KINDS = ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL"]
ROWS, COLUMNS = 3, 512


def problem(kind: str) -> dict[str, Any]:
    generator = np.random.default_rng(sum(map(ord, kind)))

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    blocks = quantize(kind, normal(ROWS, COLUMNS))
    levels = codec_for(kind).decode(blocks)
    step = levels.step_towards(np.ones((ROWS, COLUMNS)))
    return {
        "blocks": blocks,
        "levels": levels,
        "wanted": levels.values() + step * generator.uniform(-1.2, 1.2, (ROWS, COLUMNS)).astype(np.float32),
        "may_move": generator.random((ROWS, COLUMNS)) < 0.8,
        "bound": generator.choice(np.array([0, 0, 0, 1, -1], dtype=np.int8), (ROWS, COLUMNS)),
        "gradient": normal(ROWS, COLUMNS),
        "read": normal(COLUMNS) ** 2,
        "given": normal(ROWS) ** 2,
    }


def movable(given: dict[str, Any]) -> MovableCodes:
    return MovableCodes(*(given[name] for name in ("levels", "wanted", "may_move", "bound")))


def candidates(codes: MovableCodes, given: dict[str, Any], count: int) -> Candidates:
    return codes.candidates(given["gradient"], given["read"], given["given"], count)


def one_by_one(given: dict[str, Any], kind: str) -> dict[int, tuple[int, float, float]]:
    """Flat position to shift, gain and score of every weight that may move, levels decoded by libggml."""
    codec, levels = codec_for(kind), given["levels"]
    decoded = {
        shift: dequantize(
            kind,
            codec.with_codes(
                given["blocks"],
                np.clip(levels.codes + shift, levels.lowest, levels.highest).astype(np.int16),
            ),
            COLUMNS,
        ).reshape(ROWS, COLUMNS)
        for shift in (-1, 0, 1)
    }
    found = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            now, wanted = float(decoded[0][row, column]), float(given["wanted"][row, column])
            slope = float(given["gradient"][row, column])
            for shift in (-1, 1):
                if not levels.lowest <= levels.codes[row, column] + shift <= levels.highest:
                    continue
                change = float(decoded[shift][row, column]) - now
                if change == 0 or change * slope > 0 or not given["may_move"][row, column]:
                    continue
                if given["bound"][row, column] * change < 0 or abs(now + change - wanted) >= abs(change):
                    continue
                price = max((now + change - wanted) ** 2 - (now - wanted) ** 2, 0) + LEAST_PRICE * change**2
                price *= float(given["given"][row]) * float(given["read"][column])
                gain = abs(slope * change)
                found[row * COLUMNS + column] = shift, gain, gain / price
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_those_of_the_loop(kind: str) -> None:
    given = problem(kind)
    expected, found = one_by_one(given, kind), candidates(movable(given), given, ROWS * COLUMNS)
    assert len(expected) > 100
    assert sorted(expected) == found.index.tolist()
    np.testing.assert_array_equal(found.shift, [expected[place][0] for place in found.index])
    np.testing.assert_allclose(found.gain, [expected[place][1] for place in found.index], rtol=1e-4)
    # Differences of squares that nearly cancel are not exact in float32.
    np.testing.assert_allclose(found.score, [expected[place][2] for place in found.index], rtol=1e-2)


def test_of_many_the_best_are_given() -> None:
    given = problem("Q4_K")
    everything = candidates(movable(given), given, ROWS * COLUMNS)
    few = candidates(movable(given), given, 50)
    order = np.argsort(-everything.score)[:50]
    np.testing.assert_array_equal(few.index, np.sort(everything.index[order]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_ever_leaves_the_two_levels_beside_what_is_wanted(kind: str) -> None:
    given, generator = problem(kind), np.random.default_rng(5)
    codes, start = movable(given), given["levels"].codes.copy()
    values = given["levels"].values()
    for _ in range(6):
        given["gradient"] = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        found = candidates(codes, given, 400)
        assert len(found.index) > 0
        values.ravel()[found.index] = codes.move(found.index, found.shift)
    raw = codec_for(kind).with_codes(given["blocks"], codes.codes)
    np.testing.assert_array_equal(dequantize(kind, raw, COLUMNS).reshape(ROWS, COLUMNS), values)
    moved = codes.codes != start
    assert moved.sum() > 100
    assert not (moved & ~given["may_move"]).any()
    went = values - given["levels"].values()
    assert (went * given["bound"] >= 0).all()
    step = codes.levels.step_towards(np.ones_like(values)), codes.levels.step_towards(-np.ones_like(values))
    assert (np.abs(values - given["wanted"])[moved] <= 1.0001 * np.maximum(*step)[moved]).all()
    np.testing.assert_array_equal(given["levels"].codes, start)  # the caller's own are left alone


def test_a_weight_that_is_read_by_nothing_is_no_candidate() -> None:
    given = problem("Q4_0")
    given["gradient"][:] = 0
    assert len(candidates(movable(given), given, 1000).index) == 0


def test_the_best_of_several_tensors_reach_the_gain() -> None:
    def of(gains: list[float], scores: list[float]) -> Candidates:
        count = len(gains)
        return Candidates(
            np.arange(count),
            np.ones(count, dtype=np.int16),
            np.array(gains, dtype=np.float32),
            np.array(scores, dtype=np.float32),
        )

    found = [of([1, 5, 2], [9, 1, 7]), of([3, 4], [8, 2])]
    assert [each.index.tolist() for each in best(found, 3.9)] == [[0], [0]]
    assert [each.index.tolist() for each in best(found, 4.5)] == [[0, 2], [0]]
    assert [each.index.tolist() for each in best(found, 99)] == [[0, 1, 2], [0, 1]]
    assert [each.gain.tolist() for each in best(found, 7)] == [[1, 2], [3, 4]]
