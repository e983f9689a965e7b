"""NF4 against a search over its levels, and what of a model it touches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from forgetting_benchmark.nf4 import LEVELS, LINEAR, nf4_rounded, write_nf4
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.llama.quantizer import quantize


def slow(weights: np.ndarray) -> np.ndarray:
    result = np.zeros(weights.size, dtype=np.float32)
    flat = weights.ravel()
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        largest = max(abs(weight) for weight in block)
        for place, weight in enumerate(block):
            result[start + place] = min((level * largest for level in LEVELS), key=lambda level: abs(level - weight))
    return result.reshape(weights.shape)


def test_every_weight_gets_the_nearest_level_of_its_block() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    weights[2, :64] = 0
    weights[3, 5] = 40.0
    assert np.array_equal(nf4_rounded(weights), slow(weights))
    assert np.array_equal(nf4_rounded(weights)[2, :64], np.zeros(64))
    assert nf4_rounded(weights)[3, 5] == 40.0


def test_linear_layers_are_rounded_and_nothing_else(tmp_path: Path) -> None:
    quantize(build_tiny_gguf(tmp_path / "model.gguf"), tmp_path / "F16.gguf", "F16")
    write_nf4(tmp_path / "F16.gguf", tmp_path / "NF4.gguf")
    before, after = GgufFile(tmp_path / "F16.gguf"), GgufFile(tmp_path / "NF4.gguf")
    touched = {name for name in before.tensors if not np.array_equal(before.weights(name), after.weights(name))}
    assert touched == {name for name in before.tensors if LINEAR.fullmatch(name)}
    assert len(touched) == 14  # seven of each of the two layers
    for name in touched:
        assert np.array_equal(after.weights(name), nf4_rounded(before.weights(name)).astype(np.float16))
