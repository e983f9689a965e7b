"""Every codec against libggml: same floats from the same bytes, same bytes from the same codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libggml_oracle import TYPE_IDS, dequantize, library, quantize

from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.grids import CODECS, Codec, codec_for, nearest_codes

TYPES = list(CODECS)


def bits(weights: np.ndarray) -> np.ndarray:
    """float32 as bits, every NaN alike: a NaN's sign and payload are the processor's business."""
    return np.where(np.isnan(weights), np.float32(np.nan), weights).view(np.uint32)


def rows_of(kind: str, columns: int, rows: int = 4) -> np.ndarray:
    generator = np.random.default_rng(7)
    normal = generator.standard_normal((rows, columns)).astype(np.float32)
    if kind == "random":
        return normal * np.float32(0.02)
    if kind == "zero":
        return np.zeros((rows, columns), np.float32)
    if kind == "constant":
        return np.repeat(np.float32([[0.5], [-0.5], [1e-3], [-7.0]]), columns, axis=1)
    if kind == "outlier":
        weights = normal * np.float32(1e-4)
        weights[np.arange(rows), np.arange(rows) * 5 + 3] = [9.0, -9.0, 300.0, -300.0]
        return weights
    if kind == "huge":
        return normal * np.float32(3e4)
    if kind == "overflow":  # the float16 scale becomes infinite
        return normal * np.float32(1e8)
    if kind == "denormal":
        return normal * np.float32(2e-6)
    if kind == "positive":
        return np.abs(normal)
    raise KeyError(kind)


KINDS = ["random", "zero", "constant", "outlier", "huge", "overflow", "denormal", "positive"]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks_in_row", [1, 3])
def test_blocks_of_llama_cpp(name: str, kind: str, blocks_in_row: int) -> None:
    codec = codec_for(name)
    columns = codec.block_size * blocks_in_row
    blocks = quantize(name, rows_of(kind, columns))
    assert blocks.shape == (4, blocks_in_row * codec.block_bytes)
    levels = codec.decode(blocks)
    assert levels.codes.dtype == np.int16
    assert levels.scale.shape == levels.offset.shape == (4, columns // codec.sub_block)
    assert levels.codes.min() >= codec.lowest
    assert levels.codes.max() <= codec.highest
    np.testing.assert_array_equal(bits(levels.values()), bits(dequantize(name, blocks, columns)))
    np.testing.assert_array_equal(codec.with_codes(blocks, levels.codes), blocks)


@pytest.mark.parametrize("name", TYPES)
def test_blocks_written_with_an_importance_matrix(name: str) -> None:
    weights = rows_of("random", 512)
    importance = np.random.default_rng(3).exponential(size=512).astype(np.float32)
    blocks = quantize(name, weights, importance)
    levels = codec_for(name).decode(blocks)
    np.testing.assert_array_equal(bits(levels.values()), bits(dequantize(name, blocks, 512)))
    np.testing.assert_array_equal(codec_for(name).with_codes(blocks, levels.codes), blocks)


@pytest.mark.parametrize("name", TYPES)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(
        st.sampled_from(["random", "zero", "constant", "denormal", "huge", "outlier"]), min_size=1, max_size=4
    ),
    magnitude=st.floats(1e-12, 1e4),
)
@settings(max_examples=25, deadline=None)
def test_rows_of_awkward_blocks(name: str, seed: int, kinds: list[str], magnitude: float) -> None:
    """Each 256 weights of the row are of one kind; what llama.cpp writes is decoded and written again bit for bit."""
    codec = codec_for(name)
    generator = np.random.default_rng(seed)
    parts = []
    for kind in kinds:
        part = generator.standard_normal(256) * magnitude
        if kind == "zero":
            part[:] = 0
        elif kind == "constant":
            part[:] = part[0]
        elif kind == "denormal":
            part *= 1e-40 / magnitude
        elif kind == "huge":
            part *= 1e7 / magnitude
        elif kind == "outlier":
            part[generator.integers(256)] *= 1e6
        parts.append(part)
    weights = np.concatenate(parts).astype(np.float32)[None]
    blocks = quantize(name, weights)
    levels = codec.decode(blocks)
    values = levels.values()
    np.testing.assert_array_equal(bits(values), bits(dequantize(name, blocks, weights.size)))
    np.testing.assert_array_equal(codec.with_codes(blocks, levels.codes), blocks)
    on_grid = nearest_codes(levels, np.where(np.isfinite(values), values, 0))
    moved = codec.decode(codec.with_codes(blocks, on_grid)).values()
    np.testing.assert_array_equal(moved[np.isfinite(values)], values[np.isfinite(values)])


@pytest.mark.parametrize("name", TYPES)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), blocks_in_row=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_any_bytes_whatever(name: str, seed: int, rows: int, blocks_in_row: int) -> None:
    codec = codec_for(name)
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, blocks_in_row * codec.block_bytes), dtype=np.uint8)
    before = blocks.copy()
    levels = codec.decode(blocks)
    columns = blocks_in_row * codec.block_size
    np.testing.assert_array_equal(bits(levels.values()), bits(dequantize(name, blocks, columns)))
    np.testing.assert_array_equal(codec.with_codes(blocks, levels.codes), blocks)
    fresh = generator.integers(codec.lowest, codec.highest + 1, levels.codes.shape)
    changed = codec.with_codes(blocks, fresh)
    again = codec.decode(changed)
    np.testing.assert_array_equal(again.codes, fresh)
    np.testing.assert_array_equal(bits(again.scale), bits(levels.scale))
    np.testing.assert_array_equal(bits(again.offset), bits(levels.offset))
    np.testing.assert_array_equal(bits(again.values()), bits(dequantize(name, changed, columns)))
    np.testing.assert_array_equal(blocks, before)


@pytest.mark.parametrize("name", TYPES)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), share=st.sampled_from([0.0, 0.01, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_a_few_weights_are_read_and_replaced_as_in_the_whole(name: str, seed: int, rows: int, share: float) -> None:
    codec = codec_for(name)
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, 3 * codec.block_bytes), dtype=np.uint8)
    before = blocks.copy()
    levels = codec.decode(blocks)
    index = np.flatnonzero(generator.random(levels.codes.shape) < share)
    found = codec.at(blocks, index)
    np.testing.assert_array_equal(found.codes, levels.codes.ravel()[index])
    np.testing.assert_array_equal(bits(found.values()), bits(levels.values().ravel()[index]))
    direction = generator.choice([-1.0, 0.0, 1.0], levels.codes.shape)
    with np.errstate(invalid="ignore"):  # scales that are NaN
        steps = levels.step_towards(direction).ravel()[index]
        np.testing.assert_array_equal(bits(found.steps(direction.ravel()[index])), bits(steps))
    fresh = levels.codes.copy()
    fresh.ravel()[index] = generator.integers(codec.lowest, codec.highest + 1, index.size)
    changed = codec.with_codes_at(blocks, found, fresh.ravel()[index])
    np.testing.assert_array_equal(changed, codec.with_codes(blocks, fresh))
    np.testing.assert_array_equal(codec.with_codes_at(blocks, found, found.codes), before)
    np.testing.assert_array_equal(blocks, before)


@pytest.mark.parametrize("name", TYPES)
def test_a_code_outside_the_range_is_refused_where_it_stands(name: str) -> None:
    codec = codec_for(name)
    blocks = quantize(name, rows_of("random", 256))
    found = codec.at(blocks, np.array([5, 256 + 7]))
    for code in (codec.lowest - 1, codec.highest + 1):
        with pytest.raises(InputError, match=rf"{name} code {code} at row 1, column 7 is outside .* \(1 such codes\)"):
            codec.with_codes_at(blocks, found, np.array([codec.lowest, code], np.int16))


@pytest.mark.parametrize("name", TYPES)
def test_every_value_is_scale_times_level_plus_offset(name: str) -> None:
    codec = codec_for(name)
    levels = codec.decode(quantize(name, rows_of("random", 512)))
    offset = np.repeat(levels.offset, codec.sub_block, axis=1).astype(np.float64)
    level = levels.codes if codec.table is None else codec.table[levels.codes]
    affine = levels.scale_per_weight().astype(np.float64) * level + offset
    np.testing.assert_array_equal(affine.astype(np.float32), levels.values())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("upwards", [True, False])
def test_one_code_further_is_one_step_further(name: str, upwards: bool) -> None:
    codec = codec_for(name)
    blocks = quantize(name, rows_of("random", 512))
    levels = codec.decode(blocks)
    scale = levels.scale_per_weight()
    codes = levels.codes + np.where((scale > 0) == upwards, 1, -1)
    room = (codes >= codec.lowest) & (codes <= codec.highest) & (scale != 0)
    there = codec.decode(codec.with_codes(blocks, np.where(room, codes, levels.codes)))
    went = there.values().astype(np.float64) - levels.values()
    assert ((went > 0) == upwards)[room].all()
    towards = levels.step_towards(np.full(codes.shape, 1.0 if upwards else -1.0))
    np.testing.assert_allclose(np.abs(went)[room], towards[room], rtol=1e-4)
    assert (towards >= 0).all()
    assert room.mean() > 0.5


def test_steps_of_a_code_book_differ_by_direction_and_go_on_past_its_ends() -> None:
    codec = codec_for("IQ4_NL")
    blocks = np.zeros((1, codec.block_bytes), np.uint8)
    blocks[0, :2] = np.array([-2.0], "<f2").view(np.uint8)  # a larger code is a smaller weight
    codes = np.zeros((1, 32), np.int16)
    codes[0, :4] = [0, 8, 8, 15]  # levels -127 (next -104), 1 (between -10 and 13), 113 (next 89)
    levels = codec.decode(codec.with_codes(blocks, codes))
    assert levels.step_towards(np.full((1, 32), -1.0))[0, :4].tolist() == [46.0, 24.0, 24.0, 48.0]
    assert levels.step_towards(np.full((1, 32), 1.0))[0, :4].tolist() == [46.0, 22.0, 22.0, 48.0]


@pytest.mark.parametrize("name", TYPES)
def test_sizes_agree_with_libggml(name: str) -> None:
    codec = codec_for(name)
    assert codec.name == name
    assert library().ggml_row_size(TYPE_IDS[name], 512) == 512 // codec.block_size * codec.block_bytes


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q3_K", "Q6_K"])
def test_a_negative_step_keeps_its_sign(name: str) -> None:
    weights = np.full((1, 256), 0.001, np.float32)
    weights[0, ::16] = 1.0  # the largest magnitude is positive, so llama.cpp stores a negative step
    levels = codec_for(name).decode(quantize(name, weights))
    assert (levels.scale < 0).all()
    assert (levels.codes[0, ::16] == 0).all()


def one_block(codec: Codec) -> np.ndarray:
    return np.zeros((1, codec.block_bytes), np.uint8)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("side", ["below", "above"])
def test_codes_outside_the_range_are_refused(name: str, side: str) -> None:
    codec = codec_for(name)
    codes = np.zeros((1, codec.block_size), np.int64)
    wrong = codec.lowest - 1 if side == "below" else codec.highest + 1
    codes[0, 5] = wrong
    with pytest.raises(InputError, match=rf"{name} code {wrong} at row 0, column 5 is outside") as caught:
        codec.with_codes(one_block(codec), codes)
    assert f"[{codec.lowest}, {codec.highest}] (1 such codes)" in caught.value.message


def test_minus_128_stays_only_where_it_was() -> None:
    codec = codec_for("Q8_0")
    blocks = one_block(codec)
    blocks[0, 2 + 4] = 0x80
    codes = codec.decode(blocks).codes
    assert codes[0, 4] == -128
    np.testing.assert_array_equal(codec.with_codes(blocks, codes), blocks)
    codes[0, 9] = -128
    with pytest.raises(InputError, match=r"Q8_0 code -128 at row 0, column 9 .*"):
        codec.with_codes(blocks, codes)


@pytest.mark.parametrize("name", TYPES)
def test_malformed_arrays_are_refused(name: str) -> None:
    codec = codec_for(name)
    blocks = one_block(codec)
    with pytest.raises(InputError, match=f"{name} rows are {codec.block_bytes - 1} bytes"):
        codec.decode(blocks[:, :-1])
    with pytest.raises(InputError, match=f"{name} blocks are float32"):
        codec.decode(blocks.astype(np.float32))
    with pytest.raises(InputError, match=rf"{name} blocks are uint8 \[{codec.block_bytes}\]"):
        codec.decode(blocks[0])
    with pytest.raises(InputError, match=rf"{name} codes have shape \[2, {codec.block_size}\]"):
        codec.with_codes(blocks, np.zeros((2, codec.block_size), np.int16))
    with pytest.raises(InputError, match=f"{name} codes have dtype float64"):
        codec.with_codes(blocks, np.zeros((1, codec.block_size)))


def test_read_only_and_strided_bytes_are_accepted() -> None:
    codec = codec_for("Q4_K")
    blocks = quantize("Q4_K", rows_of("random", 512))
    wide = np.zeros((4, blocks.shape[1] + 7), np.uint8)
    wide[:, 3:-4] = blocks
    view = wide[:, 3:-4]
    view.flags.writeable = False
    np.testing.assert_array_equal(codec.decode(view).values(), codec.decode(blocks).values())
    changed = codec.with_codes(view, np.zeros((4, 512), np.int8))
    assert changed.flags.writeable
    assert (codec.decode(changed).codes == 0).all()


def test_unknown_type() -> None:
    with pytest.raises(UnsupportedError, match="block type 'IQ3_S' has no codec, one of Q4_0, Q4_1"):
        codec_for("IQ3_S")
