"""Fields of bytes beside the same in plain Python, bit by bit; parts of blocks beside slices."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.grids.bit_fields import join_fields, split_fields
from gguf_forget.grids.layout import part_of, write_part

SHAPES = [(3, 16), (2, 4, 32), (5, 2, 64), (1, 8), (0, 16)]


def packed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_field_p_of_a_byte_is_its_bits_from_width_times_p_on(shape: tuple[int, ...], width: int) -> None:
    content = packed(shape)
    fields = split_fields(content, width)
    assert fields.shape == (*shape[:-1], 8 // width, shape[-1])
    for place in np.ndindex(*fields.shape):
        *lead, number, byte = place
        bits = f"{content[(*lead, byte)]:08b}"[::-1]
        assert fields[place] == int(bits[width * number : width * (number + 1)][::-1], 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_joining_gives_the_bytes_back_and_leaves_higher_bits_out(shape: tuple[int, ...], width: int) -> None:
    content = packed(shape)
    fields = split_fields(content, width)
    dirty = fields | packed(fields.shape, 1) << np.uint8(width)
    for given in (fields, dirty):
        before = given.copy()
        np.testing.assert_array_equal(join_fields(given, width), content)
        np.testing.assert_array_equal(given, before)


def test_a_part_of_blocks_is_a_slice_and_writing_it_changes_nothing_else() -> None:
    blocks = packed((7, 22))
    part = part_of(blocks, 6, 22)
    np.testing.assert_array_equal(part, blocks[:, 6:22])
    assert part.flags.c_contiguous
    changed = blocks.copy()
    write_part(changed, 2, packed((7, 4), 2))
    np.testing.assert_array_equal(changed[:, 2:6], packed((7, 4), 2))
    np.testing.assert_array_equal(changed[:, :2], blocks[:, :2])
    np.testing.assert_array_equal(changed[:, 6:], blocks[:, 6:])
