"""F32, F16 and BF16 as libggml stores and decodes them."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.export.float_types import nearest, to_bytes
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        ("F32", [1 + 2**-23, -0.0], [1 + 2**-23, -0.0]),
        ("F16", [1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11 - 2**-20, 2**-25, -0.0], [1, 1 + 2**-9, -1 - 2**-10, 0, -0.0]),
        ("BF16", [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, -0.0], [1, 1 + 2**-6, -1 - 2**-7, -0.0]),
        ("BF16", [3.4028235e38, 2**-133, np.inf], [np.inf, 2**-133, np.inf]),
    ],
)
def test_the_nearest_value_ties_to_even(kind: str, weights: list[float], expected: list[float]) -> None:
    found = nearest(kind, np.array(weights, np.float32))
    assert np.array_equal(bits(found), bits(np.array(expected)))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_weights_are_stored_as_llama_cpp_stores_them(kind: str) -> None:
    generator = np.random.default_rng(0)
    weights = (generator.normal(size=(64, 256)) * 10.0 ** generator.integers(-7, 4, (64, 256))).astype(np.float32)
    chosen = nearest(kind, weights)
    raw = to_bytes(kind, chosen)
    assert np.array_equal(raw, quantize_rows(kind, weights))
    assert np.array_equal(bits(dequantize_rows(kind, raw, 256)), bits(chosen))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_every_value_of_the_type_stays_as_it_is(kind: str) -> None:
    words = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    values = dequantize_rows(kind, words.view(np.uint8), 256)
    finite = np.isfinite(values)
    assert np.array_equal(to_bytes(kind, nearest(kind, values)).view(np.uint16)[finite], words[finite])
