"""Noise as large as rounding: every matrix, block by block, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmark_support.noise import write_noisy

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.llama.quantizer import quantize


def test_noise_has_the_size_of_the_roundings_error_and_nothing_of_its_signs(project: Path, tmp_path: Path) -> None:
    full = project / "done" / "load" / "template.gguf"
    rounded, restored, noisy = (tmp_path / f"{name}.gguf" for name in ("rounded", "restored", "noisy"))
    quantize(full, rounded, "Q4_0")
    quantize(rounded, restored, "F32", allow_requantize=True)
    write_noisy(full, restored, noisy, np.random.default_rng(1))
    before, quantized, after = (GgufFile(path) for path in (full, restored, noisy))
    for name in before.tensors:
        weights, changed = before.weights(name), after.weights(name)
        if weights.ndim != 2:
            np.testing.assert_array_equal(weights, changed)
            continue
        error, noise = quantized.weights(name) - weights, changed - weights
        np.testing.assert_allclose(np.std(noise), np.sqrt(np.mean(error**2)), rtol=0.1)
        if weights.size > 4096:
            assert abs(np.corrcoef(error.ravel(), noise.ravel())[0, 1]) < 0.1
