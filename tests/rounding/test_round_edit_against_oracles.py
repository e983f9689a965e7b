"""round_edit against a search over every code, a plain GPTQ, and the properties it promises."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libggml_oracle import quantize
from plain_gptq import gptq, random_hessian

from gguf_forget.grids import CODECS, Levels, codec_for, nearest_codes
from gguf_forget.rounding import SURVIVE, columns_to_decide, feedback_for, round_edit


def random_grid(generator: np.random.Generator, rows: int, columns: int, highest: int, sub: int) -> Levels:
    scale = generator.uniform(0.05, 0.2, (rows, columns // sub)) * generator.choice([-1, 1], (rows, 1))
    return Levels(
        codes=generator.integers(0, highest + 1, (rows, columns)).astype(np.int16),
        scale=scale.astype(np.float32),
        offset=generator.standard_normal(scale.shape).astype(np.float32),
        sub_block=sub,
        lowest=0,
        highest=highest,
    )


def objective(levels: Levels, codes: np.ndarray, delta: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """(Ŵ - V)·H·(Ŵ - V)ᵀ of every row."""
    error = (codes - levels.codes.astype(np.float64)) * levels.scale_per_weight() - delta
    return np.einsum("rc,cd,rd->r", error, hessian, error)


def best_by_search(levels: Levels, delta: np.ndarray, hessian: np.ndarray, must: np.ndarray) -> float:
    """The smallest objective of one row over all code combinations that honour the constraints."""
    direction = np.sign(delta * levels.scale_per_weight())[0]
    present = levels.codes[0]
    choices = []
    for column in range(present.size):
        codes = np.arange(levels.lowest, levels.highest + 1)
        if must[0, column]:
            moved = codes[(codes - present[column]) * direction[column] >= 1]
            codes = moved if moved.size else present[column : column + 1]
        choices.append(codes)
    every = np.array(list(itertools.product(*choices)))  # [combinations, columns]
    error = (every - present.astype(np.float64)) * levels.scale_per_weight() - delta
    return float(np.einsum("rc,cd,rd->r", error, hessian, error).min())


@pytest.mark.parametrize(
    ("room", "of_nearest", "of_best"),
    [(0, 0.97, 1.5), (3, 0.87, 1.35)],  # codes anywhere, many saturated; codes three from either end, none
)
def test_between_the_best_of_all_codes_and_the_nearest(room: int, of_nearest: float, of_best: float) -> None:
    generator = np.random.default_rng(11)
    best, compensated, nearest, at_best = 0.0, 0.0, 0.0, 0
    trials = 150
    for _ in range(trials):
        levels = random_grid(generator, 1, 4, 7, 2)
        levels.codes[:] = levels.codes.clip(room, 7 - room)
        delta = (generator.standard_normal((1, 4)) * 0.15).astype(np.float32)
        hessian = random_hessian(generator, 4)
        hessian /= np.trace(hessian)
        result = round_edit(levels, delta, hessian=hessian, damp=0.0)
        must = np.abs(delta) >= 0.5 * np.abs(levels.scale_per_weight())
        moved = (result.codes - levels.codes) * np.sign(delta * levels.scale_per_weight())
        assert int((must & (moved >= 1)).sum()) == result.landed
        assert result.codes.min() >= 0
        assert result.codes.max() <= 7
        lower_bound = best_by_search(levels, delta, hessian, must)
        ours = objective(levels, result.codes, delta, hessian)[0]
        assert ours >= lower_bound - 1e-12
        at_best += ours <= lower_bound + 1e-12
        best += lower_bound
        compensated += ours
        nearest += objective(levels, round_edit(levels, delta).codes, delta, hessian)[0]
    assert compensated < of_nearest * nearest
    assert compensated < of_best * best
    assert at_best > trials // 2


@pytest.mark.parametrize("columns", [32, 128, 160, 288])
def test_equal_to_plain_gptq_without_constraints(columns: int) -> None:
    generator = np.random.default_rng(columns)
    levels = random_grid(generator, 5, columns, 15, 32)
    delta = (generator.standard_normal((5, columns)) * 0.1).astype(np.float32)
    hessian = random_hessian(generator, columns)
    nothing = np.zeros(delta.shape, bool)
    result = round_edit(levels, delta, hessian=hessian, survive="none", damp=0.01)
    np.testing.assert_array_equal(result.codes, gptq(levels, delta, hessian, 0.01, nothing))
    assert result.moved_by_compensation == 0
    error = objective(levels, result.codes, delta, hessian).sum()
    assert error < 0.8 * objective(levels, round_edit(levels, delta).codes, delta, hessian).sum()


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("survive", SURVIVE)
@pytest.mark.parametrize("aim", ["edit", "weights"])
def test_equal_to_plain_gptq_on_every_grid(name: str, survive: str, aim: str) -> None:
    """With the constraint as well: a forced weight takes the best of the codes in its own direction."""
    generator = np.random.default_rng(17)
    original = generator.standard_normal((3, 256)).astype(np.float32)
    levels = codec_for(name).decode(quantize(name, original))
    step = levels.step_towards(np.ones(levels.codes.shape))
    delta = (generator.standard_normal((3, 256)) * 0.4 * step).astype(np.float32)
    hessian = random_hessian(generator, 256)
    direction = np.sign(delta * levels.scale_per_weight())
    end = np.where(direction > 0, levels.highest, levels.lowest)
    delta[levels.codes == end] = 0  # what saturation does has tests of its own
    asked = delta != 0
    if survive == "none":
        asked[:] = False
    elif survive == "important":
        asked &= np.abs(delta) >= 0.5 * levels.step_towards(delta)
    wanted = None if aim == "edit" else np.where(delta != 0, original + delta - levels.values(), 0)
    result = round_edit(levels, delta, wanted=wanted, hessian=hessian, survive=survive)
    np.testing.assert_array_equal(result.codes, gptq(levels, delta, hessian, 0.01, asked, wanted))
    assert (result.asked, result.landed, result.saturated) == (asked.sum(), asked.sum(), 0)


def test_a_diagonal_ties_no_weight_to_another() -> None:
    generator = np.random.default_rng(3)
    levels = random_grid(generator, 4, 64, 15, 16)
    delta = (generator.standard_normal((4, 64)) * 0.1).astype(np.float32)
    diagonal = np.diag(generator.exponential(size=64))
    nearest = round_edit(levels, delta).codes
    np.testing.assert_array_equal(round_edit(levels, delta, hessian=diagonal).codes, nearest)


@pytest.mark.parametrize("name", list(CODECS))
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.02, 0.3, 1.0]))
@settings(max_examples=8, deadline=None)
def test_edits_of_whole_steps_come_out_exactly(name: str, seed: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    original = generator.standard_normal((3, 256)).astype(np.float32)
    levels = codec_for(name).decode(quantize(name, original))
    target = generator.integers(levels.lowest, levels.highest + 1, levels.codes.shape)
    target = np.where(generator.random(target.shape) < density, target, levels.codes)
    target = np.where(levels.scale_per_weight() == 0, levels.codes, target)
    delta = (levels.level(target) - levels.level(levels.codes)) * levels.scale_per_weight()
    hessian = random_hessian(generator, 256, tokens=64)  # rank 64: only damping makes it definite
    result = round_edit(levels, delta, hessian=hessian)
    np.testing.assert_array_equal(result.codes, target)
    edits = int((target != levels.codes).sum())
    assert (result.asked, result.landed, result.saturated, result.moved) == (edits, edits, 0, edits)
    assert result.moved_by_compensation == 0


@given(seed=st.integers(0, 2**32 - 1), tight=st.booleans(), with_hessian=st.booleans())
@settings(max_examples=40, deadline=None)
def test_constraints_are_honoured(seed: int, tight: bool, with_hessian: bool) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = int(generator.integers(1, 5)), 16 * int(generator.integers(1, 12))
    levels = random_grid(generator, rows, columns, 3 if tight else 31, 16)
    levels.scale[generator.random(levels.scale.shape) < 0.1] = 0
    delta = (generator.standard_normal((rows, columns)) * 0.2).astype(np.float32)
    delta[generator.random(delta.shape) < 0.5] = 0
    free = generator.random(delta.shape) < 0.8
    must = free & (generator.random(delta.shape) < 0.4)
    hessian = random_hessian(generator, columns) if with_hessian else None
    result = round_edit(levels, delta, hessian=hessian, free=free, must_move=must)

    assert result.codes.dtype == np.int16
    assert result.codes.min() >= levels.lowest
    assert result.codes.max() <= levels.highest
    np.testing.assert_array_equal(result.codes[~free], levels.codes[~free])
    untouched = ~(delta != 0).any(axis=1)
    np.testing.assert_array_equal(result.codes[untouched], levels.codes[untouched])

    direction = np.sign(delta * levels.scale_per_weight())
    shift = result.codes.astype(int) - levels.codes
    asked = must & (delta != 0)
    end = np.where(direction > 0, levels.highest, levels.lowest)
    stuck = asked & ((direction == 0) | (levels.codes == end))
    assert (shift[stuck] == 0).all()
    assert ((shift * direction)[asked & ~stuck] >= 1).all()
    assert result.asked == asked.sum() == result.landed + result.saturated
    assert result.saturated == stuck.sum()
    assert result.moved == (shift != 0).sum()
    assert result.moved_by_compensation == ((shift != 0) & (delta == 0)).sum()

    again = round_edit(levels, delta, hessian=hessian, free=free, must_move=must)
    np.testing.assert_array_equal(again.codes, result.codes)


@pytest.mark.parametrize("name", list(CODECS))
def test_without_hessian_the_nearest_code(name: str) -> None:
    generator = np.random.default_rng(5)
    levels = codec_for(name).decode(quantize(name, generator.standard_normal((4, 512)).astype(np.float32)))
    delta = (generator.standard_normal((4, 512)) * 0.1).astype(np.float32)
    wanted = levels.values().astype(np.float64) + delta
    codes = round_edit(levels, delta, survive="none").codes
    np.testing.assert_array_equal(codes, nearest_codes(levels, wanted))


@pytest.mark.parametrize("name", list(CODECS))
def test_small_edits_everywhere_arrive_on_average(name: str) -> None:
    """Aimed at the unlearned weights, most of what edits of a tenth of a step ask arrives."""
    generator = np.random.default_rng(6)
    original = generator.standard_normal((64, 512)).astype(np.float32)
    levels = codec_for(name).decode(quantize(name, original))
    sign = generator.choice([-1.0, 1.0], original.shape)
    delta = (0.1 * sign * levels.step_towards(sign)).astype(np.float32)
    wanted = original + delta - levels.values()
    moved = round_edit(levels, delta, wanted=wanted)
    change = replace(levels, codes=moved.codes).values() - levels.values()
    assert (change * sign).min() >= 0
    inside = (levels.codes > levels.lowest) & (levels.codes < levels.highest)
    # Not quite all of it: the stock code is not the nearest one everywhere, and then no code moves back.
    assert 0.55 < (change * sign)[inside].mean() / np.abs(delta)[inside].mean() < 1.05
    assert round_edit(levels, delta).moved == 0


def test_frozen_columns_are_left_out_of_the_problem() -> None:
    generator = np.random.default_rng(2)
    levels = random_grid(generator, 6, 64, 15, 16)
    chosen = np.sort(generator.choice(64, 9, replace=False))
    free = np.zeros((6, 64), bool)
    free[:, chosen] = True
    delta = np.where(free, generator.standard_normal((6, 64)) * 0.1, 0).astype(np.float32)
    hessian = random_hessian(generator, 64)
    hessian /= np.diagonal(hessian).mean()
    result = round_edit(levels, delta, hessian=hessian, free=free, damp=0.0)
    alone = Levels(
        codes=levels.codes[:, chosen],
        scale=levels.scale_per_weight()[:, chosen],
        offset=np.zeros((6, 9), np.float32),
        sub_block=1,
        lowest=0,
        highest=15,
    )
    expected = round_edit(alone, delta[:, chosen], hessian=hessian[np.ix_(chosen, chosen)], damp=0.0)
    np.testing.assert_array_equal(result.codes[:, chosen], expected.codes)
    np.testing.assert_array_equal(result.codes[~free], levels.codes[~free])


def test_rows_do_not_hear_of_one_another() -> None:
    generator = np.random.default_rng(9)
    levels = random_grid(generator, 1600, 32, 15, 16)  # 1066 rows with an edit: more than one sweep takes
    delta = (generator.standard_normal((1600, 32)) * 0.1).astype(np.float32)
    delta[::3] = 0
    hessian = random_hessian(generator, 32)
    whole = round_edit(levels, delta, hessian=hessian)
    np.testing.assert_array_equal(whole.codes[::3], levels.codes[::3])
    for row in (1, 512, 1535, 1537, 1598):
        one = slice(row, row + 1)
        alone = Levels(levels.codes[one], levels.scale[one], levels.offset[one], 16, 0, 15)
        np.testing.assert_array_equal(round_edit(alone, delta[one], hessian=hessian).codes, whole.codes[one])


def test_a_feedback_made_once_serves_any_rows() -> None:
    generator = np.random.default_rng(21)
    levels = random_grid(generator, 40, 64, 15, 16)
    delta = (generator.standard_normal((40, 64)) * 0.1).astype(np.float32)
    hessian = random_hessian(generator, 64)
    whole = round_edit(levels, delta, hessian=hessian)
    feedback = feedback_for(hessian, columns_to_decide(np.ones(64, bool), None))
    for part in (slice(0, 7), slice(7, 40)):
        some = Levels(levels.codes[part], levels.scale[part], levels.offset[part], 16, 0, 15)
        np.testing.assert_array_equal(round_edit(some, delta[part], hessian=feedback).codes, whole.codes[part])
    assert feedback_for(np.zeros((64, 64)), np.arange(64)) is None
    assert feedback_for(hessian, np.arange(0)) is None
