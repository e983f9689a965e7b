"""Saturated edits get room: every edit that is asked for is in the bytes, decoded by libggml, on every grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libggml_oracle import dequantize, quantize

from gguf_forget.grids import CODECS, Codec, codec_for, nearest_codes
from gguf_forget.rounding import round_edit
from gguf_forget.rounding.edits import find_edits
from gguf_forget.rounding.widening import Widened, widen

KINDS = ("random", "zero", "constant", "denormal", "huge", "outlier", "positive", "small")


def adversarial(generator: np.random.Generator, kind: str, columns: int) -> np.ndarray:
    row = generator.standard_normal(columns)
    if kind == "zero":
        row[:] = 0
    elif kind == "constant":
        row[:] = row[0]
    elif kind == "denormal":
        row *= 1e-40
    elif kind == "huge":
        row *= 1e3
    elif kind == "outlier":
        row[generator.integers(columns)] *= 1e3
    elif kind == "positive":
        row = 3 + np.abs(row)
    elif kind == "small":
        row *= 1e-3
    return row.astype(np.float32)


def ship(codec: Codec, blocks: np.ndarray, delta: np.ndarray, survive: str, **options: object) -> tuple:
    """(widened or None, what round_edit says, the bytes)"""
    widened = widen(codec, blocks, delta, survive=survive)
    if widened is None:
        rounded = round_edit(codec.decode(blocks), delta, survive=survive, **options)
        return None, rounded, codec.with_codes(blocks, rounded.codes)
    rounded = round_edit(codec.decode(widened.blocks), widened.delta, must_move=widened.must_move, **options)
    return widened, rounded, codec.with_codes(widened.blocks, rounded.codes)


def per_weight(codec: Codec, widened: Widened | None, shape: tuple[int, ...]) -> np.ndarray:
    if widened is None:
        return np.zeros(shape, bool)
    return np.repeat(widened.regridded, codec.sub_block, axis=1)


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 2**32 - 1), survive=st.sampled_from(["all", "important"]))
@settings(max_examples=5)
def test_every_edit_that_is_asked_for_lands(name: str, seed: int, survive: str) -> None:
    generator = np.random.default_rng(seed)
    codec = codec_for(name)
    weights = np.stack([adversarial(generator, kind, 512) for kind in KINDS])
    blocks = quantize(name, weights)
    levels = codec.decode(blocks)
    size = np.abs(weights).max(axis=1, keepdims=True) + 1e-3
    delta = generator.standard_normal(weights.shape) * size * 10.0 ** generator.uniform(-3, 0.5, (len(weights), 1))
    delta *= generator.random(weights.shape) < generator.choice([0.01, 0.1, 1.0])
    delta = delta.astype(np.float32)
    asked = np.zeros(delta.shape, bool)
    index = np.flatnonzero(delta)
    edits = find_edits(levels.at(index), delta.ravel()[index], survive=survive)
    asked.ravel()[index] = edits.asked
    widened, rounded, shipped = ship(codec, blocks, delta, survive)
    before, after = (dequantize(name, some, 512) for some in (blocks, shipped))
    went = (after.astype(np.float64) - before) * np.sign(delta)
    assert (widened is not None) == edits.saturated.any()
    assert (rounded.asked, rounded.saturated) == (asked.sum(), 0)
    assert (went > 0)[asked].all()
    there = per_weight(codec, widened, delta.shape)
    np.testing.assert_array_equal(after[~there & (delta == 0)], before[~there & (delta == 0)])
    assert (went >= 0)[~there].all()
    if widened is not None:
        nearest = nearest_codes(codec.decode(shipped), before)
        still = there & (delta == 0)
        found = codec.decode(shipped).codes
        grid = np.repeat(codec.decode(shipped).scale != 0, codec.sub_block, axis=1)
        np.testing.assert_array_equal(found[still & grid], nearest[still & grid])


@pytest.mark.parametrize("name", CODECS)
def test_only_sub_blocks_that_need_it_get_another_grid(name: str) -> None:
    generator = np.random.default_rng(3)
    codec = codec_for(name)
    blocks = quantize(name, generator.standard_normal((8, 512)).astype(np.float32))
    levels = codec.decode(blocks)
    step = levels.step_towards(np.ones(delta_shape := levels.codes.shape))
    delta = np.where(generator.random(delta_shape) < 0.03, generator.standard_normal(delta_shape) * 1.5, 0) * step
    outmost = (levels.codes == levels.lowest) & (generator.random(delta_shape) < 0.05)
    delta = np.where(outmost, -1.5 * levels.scale_per_weight(), delta)
    index = np.flatnonzero(delta)
    edits = find_edits(levels.at(index), delta.ravel()[index], survive="important")
    short = np.zeros(levels.scale.shape, bool)
    short.ravel()[index[edits.saturated] // codec.sub_block] = True
    widened, rounded, shipped = ship(codec, blocks, delta, "important")
    assert widened is not None
    assert rounded.saturated == 0
    assert widened.regridded[short].all()
    # Others change only with the base of their block.
    same_block = np.repeat(
        short.reshape(len(short), -1, codec.block_size // codec.sub_block).any(axis=2),
        codec.block_size // codec.sub_block,
        axis=1,
    )
    assert not widened.regridded[~same_block].any()
    # The error beyond the edits stays a fraction of a step.
    values = dequantize(name, shipped, 512)
    error = values - (levels.values() + delta)
    there = np.repeat(widened.regridded, codec.sub_block, axis=1)
    assert np.sqrt(np.mean((error[there] / np.maximum(step[there], 1e-9)) ** 2)) < 0.75
    again = widen(codec, blocks, delta)
    assert again is not None
    np.testing.assert_array_equal(again.blocks, widened.blocks)


def test_without_saturation_nothing_is_done() -> None:
    codec = codec_for("Q4_K")
    blocks = quantize("Q4_K", np.random.default_rng(1).standard_normal((2, 256)).astype(np.float32))
    levels = codec.decode(blocks)
    delta = np.where((levels.codes > 3) & (levels.codes < 12), levels.scale_per_weight(), 0)
    assert widen(codec, blocks, delta) is None
    assert widen(codec, blocks, np.zeros((2, 256)), survive="all") is None
    assert widen(codec, blocks, np.ones((2, 256)), survive="none") is None


def test_a_step_by_hand() -> None:
    """Codes 0…15 of Q4_0 with step 1 are -8…7: the weight 7 can go no further up until the step is larger or turned."""
    codec = codec_for("Q4_0")
    blocks = np.zeros((1, codec.block_bytes), np.uint8)
    blocks[0, :2] = np.array([1.0], "<f2").view(np.uint8)
    codes = np.full((1, 32), 8)
    codes[0, :3] = [15, 1, 12]
    blocks = codec.with_codes(blocks, codes)
    delta = np.zeros((1, 32), np.float32)
    delta[0, 0] = 1.0
    widened, rounded, shipped = ship(codec, blocks, delta, "important")
    assert (rounded.asked, rounded.landed, rounded.saturated) == (1, 1, 0)
    # Turned: -1 · (code - 8) has 8 at code 0, and every other weight is where it was.
    np.testing.assert_array_equal(dequantize("Q4_0", shipped, 32)[0], [8.0, -7.0, 4.0, *[0.0] * 29])
    assert widened.regridded.tolist() == [[True]]


def test_what_counts_more_is_kept_better() -> None:
    generator = np.random.default_rng(8)
    codec = codec_for("Q4_1")
    blocks = quantize("Q4_1", generator.standard_normal((60, 32)).astype(np.float32))
    levels = codec.decode(blocks)
    delta = np.where(levels.codes == 15, 2 * levels.scale_per_weight(), 0)
    important = np.zeros(32)
    important[:4] = 1
    important[4:] = 1e-4
    errors = []
    for importance in (None, important):
        widened = widen(codec, blocks, delta, importance=importance)
        assert widened is not None
        rounded = round_edit(codec.decode(widened.blocks), widened.delta, must_move=widened.must_move)
        values = dequantize("Q4_1", codec.with_codes(widened.blocks, rounded.codes), 32)
        errors.append((((values - levels.values() - delta) ** 2) * important).sum())
    assert errors[1] < 0.8 * errors[0]


def test_where_float16_has_no_room_the_edit_is_still_counted() -> None:
    codec = codec_for("Q8_0")
    blocks = np.zeros((1, codec.block_bytes), np.uint8)
    blocks[0, :2] = np.array([65504.0], "<f2").view(np.uint8)
    blocks = codec.with_codes(blocks, np.full((1, 32), 127))
    delta = np.zeros((1, 32), np.float32)
    delta[0, 5] = 65504.0
    widened, rounded, shipped = ship(codec, blocks, delta, "important")
    assert (rounded.asked, rounded.landed, rounded.saturated) == (1, 0, 1)
    np.testing.assert_array_equal(shipped, blocks)
    assert not widened.regridded.any()
