"""Scales and offsets read and written against the codecs, which are themselves held to libggml."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.grids import CODECS, codec_for
from gguf_forget.grids.scale_codes import SCALE_CODES


def random_blocks(name: str, seed: int = 0, count: int = 40) -> np.ndarray:
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (count, codec_for(name).block_bytes), dtype=np.uint8)
    layout = SCALE_CODES[name]
    layout.write_bases(blocks, *(generator.standard_normal(count).astype(np.float16).astype(float) for _ in range(2)))
    return blocks


def test_every_type_with_a_codec_has_its_scale_codes() -> None:
    assert SCALE_CODES.keys() == CODECS.keys()


@pytest.mark.parametrize("name", CODECS)
def test_what_is_read_gives_the_codecs_scale_and_offset(name: str) -> None:
    codec, layout, blocks = codec_for(name), SCALE_CODES[name], random_blocks(name)
    levels = codec.decode(blocks)
    (base, base_offset), (multiplier, minimum) = layout.bases(blocks), layout.read(blocks)
    np.testing.assert_array_equal(base[:, None] * multiplier, levels.scale)
    if layout.offset_at is not None:
        np.testing.assert_array_equal(-(base_offset[:, None] * minimum), levels.offset)
    assert multiplier.min() >= layout.multipliers[0]
    assert multiplier.max() <= layout.multipliers[1]
    assert minimum.min() >= layout.minima[0]
    assert minimum.max() <= layout.minima[1]


@pytest.mark.parametrize("name", CODECS)
def test_others_are_written_and_no_other_bit(name: str) -> None:
    codec, layout, blocks = codec_for(name), SCALE_CODES[name], random_blocks(name)
    same = blocks.copy()
    layout.write_bases(same, *layout.bases(blocks))
    layout.write(same, *layout.read(blocks))
    np.testing.assert_array_equal(same, blocks)

    other = random_blocks(name, seed=1)
    numbers, bases = layout.read(other), layout.bases(other)
    codes = codec.decode(blocks).codes
    layout.write_bases(blocks, *bases)
    layout.write(blocks, *numbers)
    np.testing.assert_array_equal(codec.decode(blocks).codes, codes)
    for found, expected in zip(layout.read(blocks), numbers, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(layout.bases(blocks), bases, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(codec.decode(blocks).scale, codec.decode(other).scale)
    np.testing.assert_array_equal(codec.decode(blocks).offset, codec.decode(other).offset)
